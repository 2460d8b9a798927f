"""All questions, one after the other -> a table and a plot. Run: python -m bench all --out DIR"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from shards.console import RunFailed, UserError
from shards.writer import write_atomic

QUESTIONS = ("ingest", "input", "warp", "train", "score", "explain")


@dataclass(frozen=True)
class AllBench:
    """All questions with their default settings; writes results.json, table.md, plot.png."""

    out: Path
    """Folder for the results."""
    images: Path | None = None
    """Folder with raw images or their tar.gz archives. Default: synthetic radiographs."""
    repeats: int = 5
    """Repetitions of ours and of the peer, in turns."""
    quick: bool = False
    """A smoke test with few small images and a toy network: its rates mean nothing."""


def measure_all(config: AllBench) -> str:
    """Ask all questions and write `config.out`; returns the table."""
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file; --out names a folder")
    config.out.mkdir(parents=True, exist_ok=True)
    arguments = ["--repeats", str(config.repeats)]
    arguments += ["--images", str(config.images)] if config.images else []
    arguments += ["--quick"] if config.quick else []
    results = [ask(question, arguments) for question in QUESTIONS]
    table = format_table(results)
    write_atomic(config.out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_atomic(config.out / "table.md", table.encode())
    draw_plot(results, config.out / "plot.png")
    return table


def ask(question: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One question in a process of its own, so that none finds the threads and memory of another.

    Shows what it prints but its JSON line, which is returned. RunFailed when it fails.
    """
    command = [sys.executable, "-m", "bench", question, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        error = UserError if done.returncode == 2 else RunFailed
        raise error(
            f"bench {question} ended with status {done.returncode}; its reason stands above"
        )
    *words, line = done.stdout.splitlines()
    print("\n".join(words), flush=True)
    result: dict[str, Any] = json.loads(line)
    return result


def describe_run(result: Mapping[str, Any]) -> str:
    """Machine, commit and kind of images, which all results of a run share."""
    machine = result["machine"]
    kind = "synthetic radiographs" if result["synthetic"] else "real radiographs"
    quick = ", --quick: the rates mean nothing" if result["quick"] else ""
    return (
        f"{machine['cpu']}, cores: {machine['cores']}, GPU: {machine['gpu'] or 'none'}; "
        f"{kind}; commit {result['commit']}{quick}"
    )


def format_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown: medians in img/s with the slowest and the fastest repetition."""
    lines = [
        describe_run(results[0]),
        "",
        "| question | ours, img/s | peer, img/s | ratio | n | images | peer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        rates = [_with_spread(result[s], result["spread"][s]) for s in ("ours", "peer")]
        cells = [
            result["name"],
            *rates,
            f"{result['ratio']:.2f}",
            str(result["n"]),
            str(result["images"]),
            result["peer_name"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {result['name']}: {result['what']}" for result in results)]
    return "\n".join(lines) + "\n"


def _with_spread(median: float, spread: Sequence[float]) -> str:
    return f"{median:.1f} ({spread[0]:.1f} to {spread[1]:.1f})"


def draw_plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Ratios on the left; both sides' rates with their spreads on the right."""
    names = [result["name"] for result in results]
    rows = range(len(results))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios = [result["ratio"] for result in results]
    bars = left.barh(rows, ratios, color="#2a6f97")
    left.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3)
    left.axvline(1, color="black", linewidth=0.8, linestyle="--")
    left.margins(x=0.15)
    left.set_xlabel("ours / peer")
    for side, shift, colour in (("ours", -0.2, "#2a6f97"), ("peer", 0.2, "#b5b5b5")):
        rates = [result[side] for result in results]
        below = [rate - result["spread"][side][0] for rate, result in zip(rates, results)]
        above = [result["spread"][side][1] - rate for rate, result in zip(rates, results)]
        places = [row + shift for row in rows]
        right.barh(places, rates, 0.38, xerr=[below, above], capsize=3, color=colour, label=side)
    right.set_xscale("log")
    right.set_xlabel("img/s: median, slowest, fastest")
    right.legend()
    for axes in (left, right):
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
    figure.suptitle(describe_run(results[0]), fontsize=9, wrap=True)
    figure.savefig(path, dpi=120)
