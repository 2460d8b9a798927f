"""serve.again: the options that were given come back as words of a command line."""

import shlex
from pathlib import Path

import pytest
import tyro

from serve.again import commands, options_given
from serve.evaluate import EvaluateConfig
from serve.explain.command import ExplainConfig
from serve.score import ScoreConfig
from serve.shortcuts.command import ShortcutsConfig

EVALUATE = ["--scores", "s", "--labels", "l", "--out", "o"]
SHORTCUTS = ["--shards", "s", "--out", "o", "--model", "m"]
EXPLAIN = ["--run", "r", "--out", "o"]
SCORE = ["--model", "m", "--out", "o", "a.tar"]


@pytest.mark.parametrize(
    ("kind", "needed", "besides", "given"),
    [
        (EvaluateConfig, EVALUATE, ("scores", "labels", "out"), []),
        (
            EvaluateConfig,
            EVALUATE,
            ("scores", "labels", "out"),
            [
                *("--split", "val", "--against", "other scores", "--thresholds", "0.2", "0.4"),
                *("--bootstrap", "200", "--exclusive", "True"),
            ],
        ),
        (
            ShortcutsConfig,
            SHORTCUTS,
            ("model", "run", "shards", "out"),
            ["--word", "SEDUTO", "--on", "Viral Pneumonia", "Normal", "--source-images", "20"],
        ),
        (
            ExplainConfig,
            EXPLAIN,
            ("run", "out", "images"),
            ["--method", "lrp", "--shards", "d", "--where", "true=A"],
        ),
        (ScoreConfig, SCORE, ("model", "out", "archives"), ["--fp16", "--limit", "3"]),
    ],
)
def test_what_was_given_comes_back(kind, needed, besides, given):
    config = tyro.cli(kind, args=[*needed, *given])
    assert options_given(config, besides) == given
    assert tyro.cli(kind, args=[*needed, *options_given(config, besides)]) == config


def test_the_commands_say_the_options_of_each_file():
    names = ("scores", "evaluation", "shortcuts", "explain", "features", "faithfulness")
    folders = {name: Path("my run") / name for name in names}
    told = {"scoring": {"precision": "int8", "options": ["--limit", "3"]}, "metrics": None}
    told["explanations"] = {"options": ["--method", "cam", "IMAGE..."]}
    lines = commands(Path("my run"), folders, Path("data"), "val", told)
    assert [shlex.split(line)[3] for line in lines] == [
        *("export", "score", "evaluate", "shortcuts", "explain", "features", "faithfulness")
    ]
    assert lines[0].endswith("--out 'my run/model.onnx' --precision int8")
    assert lines[1].endswith("--out 'my run/scores' data/val --limit 3")
    assert lines[4] == (
        "python -m serve explain --run 'my run' --out 'my run/explain' --method cam IMAGE..."
    )
    told |= {"explanations": None, "scoring": {"precision": "fp16", "options": ["--fp16"]}}
    defaults = commands(Path("my run"), folders, Path("data"), "val", told)
    assert defaults[0].endswith("--precision fp32")  # TensorRT made fp16 of it
    assert defaults[4].endswith("--shards data --method lrp,gradcam")
