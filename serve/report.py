"""A run folder, or two side by side -> one HTML page that needs nothing else.

Run: python -m serve report --run RUN [--run RUN2] [--out report.html]

Reads the run folder, the shards' manifests, and in the run folder scores, evaluation, shortcuts,
explain, features and faithfulness, where they are. What is not there is stated on the page. Every
text that comes from data is escaped; the page's own script draws the charts and asks for nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import tyro

from serve.again import MADE, command_line, options_given
from serve.report_page import render
from serve.report_run import Folders, read_run
from shards.console import UserError
from shards.writer import write_atomic

_MOST_RUNS = 2
_MOST_IMAGES = 1000  # 200 take up to 13 MB
_LETTERS = "AB"
# What a file of another version or a broken hand makes of reading and drawing it.
_WRONG = (jinja2.UndefinedError, LookupError, TypeError, ValueError, AttributeError)
_Paths = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class ReportConfig:
    """Write a run's report, or two runs side by side: one HTML file."""

    run: _Paths
    """Run folder of python -m train; give a second --run to put two side by side."""
    out: Path | None = None
    """The page; by default report.html in the first run's folder."""
    shards: _Paths = ()
    """The folder of the data sets; by default the one the run was trained from. This and the
    folders below are given once for each --run, in the same order."""
    scores: _Paths = ()
    """Folder of python -m serve score; by default RUN/scores."""
    evaluation: _Paths = ()
    """Folder of python -m serve evaluate; by default RUN/evaluation."""
    shortcuts: _Paths = ()
    """Folder of python -m serve shortcuts; by default RUN/shortcuts."""
    explain: _Paths = ()
    """Folder of python -m serve explain, whose maps join the gallery; by default RUN/explain."""
    features: _Paths = ()
    """Folder of python -m serve features; by default RUN/features."""
    faithfulness: _Paths = ()
    """Folder of python -m serve faithfulness; by default RUN/faithfulness."""
    gallery: int = 60
    """At most this many test images of a run are shown with heat maps; 0: none."""


def write_report(config: ReportConfig) -> Path:
    """Write the page and return its path. UserError when a run folder is none, or is damaged."""
    _check(config)
    runs = []
    for place in range(len(config.run)):
        folders = _folders(config, place)
        try:
            runs.append(read_run(folders, config.gallery))
        except _WRONG as error:
            raise _lacks(folders.run, error) from error
    content = {"differences": _differences(runs), "again": _command(config)}
    try:
        html = render({"runs": _named(runs), **content})
    except _WRONG as error:
        raise _lacks(config.run[0], error) from error
    out = config.out or config.run[0] / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html.encode())
    return out


def _check(config: ReportConfig) -> None:
    if not 0 <= config.gallery <= _MOST_IMAGES:
        raise UserError(f"--gallery is {config.gallery}; give 0 to {_MOST_IMAGES}")
    if not 1 <= len(config.run) <= _MOST_RUNS:
        raise UserError(f"{len(config.run)} runs named; give --run once, or twice to compare two")
    if config.out is not None and config.out.is_dir():
        raise UserError(f"{config.out} is a folder; --out names the page, such as report.html")
    for name in ("shards", *MADE):
        given = len(getattr(config, name))
        if given not in (0, len(config.run)):
            raise UserError(
                f"--{name} is given {given} times and --run {len(config.run)} times; give one for "
                "each run, or none"
            )


def _folders(config: ReportConfig, place: int) -> Folders:
    run = config.run[place]

    def of(name: str) -> Path:
        given: tuple[Path, ...] = getattr(config, name)
        return given[place] if given else run / name

    shards = config.shards[place] if config.shards else None
    return Folders(run, shards, **{name: of(name) for name in MADE})


def _command(config: ReportConfig) -> str:
    """What makes this page again."""
    words: list[str | Path] = ["report"]
    for name in ("run", "shards", *MADE):
        for path in getattr(config, name):
            words += [f"--{name}", path]
    return command_line([*words, *options_given(config, ("run", "shards", *MADE))])


def _named(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With a number for the page's anchors, and a title that tells the runs apart."""
    if len(runs) == 1:
        return [runs[0] | {"number": 0, "title": runs[0]["name"]}]
    return [
        run | {"number": i, "title": f"{_LETTERS[i]}: {run['name']}"} for i, run in enumerate(runs)
    ]


def _differences(runs: list[dict[str, Any]]) -> list[str]:
    """What is not the same in two runs, so that their numbers cannot be compared as they stand."""
    if len(runs) == 1:
        return []
    found = []
    for what, values in (
        ("data sets of the last stage", [run["judged"]["name"] for run in runs]),
        ("manifests of the last stage's data set", [run["judged"].get("hash") for run in runs]),
        ("labels", [_evaluated(run, "labels") for run in runs]),
        ("numbers of evaluated images", [_evaluated(run, "evaluated") for run in runs]),
    ):
        if None not in values and values[0] != values[1]:
            found.append(what)
    return found


def _evaluated(run: dict[str, Any], name: str) -> Any:
    return None if run["metrics"] is None else run["metrics"][name]


def _lacks(run: Path, error: Exception) -> UserError:
    return UserError(
        f"a file of {run} lacks a field, or has another kind of value in it ({error}); another "
        "version wrote it: make it again with this one"
    )
