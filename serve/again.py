"""The commands that make a run's results again, with the options that were given.

Each command leaves the options that were given to it, other than the folders that the report knows,
in its JSON file as `options`: the words of a command line. Names of images are none of them: they
may be those of patients.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

MADE = ("scores", "evaluation", "shortcuts", "explain", "features", "faithfulness")


def options_given(config: Any, besides: Sequence[str]) -> list[str]:
    """The words of a command line for a command's settings that are not the default, but for these
    fields."""
    words: list[str] = []
    for one in fields(config):
        value = getattr(config, one.name)
        default = None if one.default is MISSING else one.default
        if one.name in besides or value == default:
            continue
        name = one.name.replace("_", "-")
        if isinstance(value, bool) and isinstance(default, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words.append(f"--{name}")
            words += map(str, value if isinstance(value, tuple) else (value,))
    return words


def commands(
    run: Path, folders: Mapping[str, Path], data: Path, split: str, told: Mapping[str, Any]
) -> list[str]:
    """`python -m serve ...` for each step up to the report. folders: of each of MADE;
    data: the data set's folder; told: what their JSON files hold, None where one is not there."""
    model = run / "model.onnx"

    def given(name: str, *default: str) -> list[str]:
        return list((told.get(name) or {}).get("options", default))

    scored = given("scoring")
    # With --fp16 it is TensorRT that computes an fp32 model so.
    precision = ("--fp16" not in scored and (told["scoring"] or {}).get("precision")) or "fp32"
    explained = ("--shards", str(data), "--method", "lrp,gradcam")
    parts: list[list[str | Path]] = [
        ["export", "--run", run, "--out", model, "--precision", precision],
        ["score", "--model", model, "--out", folders["scores"], data / split, *scored],
        [
            *("evaluate", "--scores", folders["scores"], "--labels", data),
            *("--out", folders["evaluation"]),
            *given("metrics"),
        ],
        [
            *("shortcuts", "--model", model, "--shards", data, "--out", folders["shortcuts"]),
            *given("shortcuts"),
        ],
        [
            *("explain", "--run", run, "--out", folders["explain"]),
            *given("explanations", *explained),
        ],
    ]
    parts += [
        [name, "--run", run, "--shards", data, "--out", folders[name], *given(name)]
        for name in ("features", "faithfulness")
    ]
    return [command_line(part) for part in parts]


def command_line(words: Sequence[str | Path]) -> str:
    """As a shell reads it."""
    return shlex.join(["python", "-m", "serve", *map(str, words)])
