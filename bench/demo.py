"""The main job, whole, on synthetic radiographs: what `make demo` runs, on a CPU in minutes.

Run: python -m bench demo --out DIR

Every step is one of the commands that a person would type, in a process of its own; the same
command again goes on where it stopped.
"""

import json
import shlex
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from ingest.synthetic import MARKER
from shards.console import RunFailed
from shards.manifest import load_manifest

CHEST, COVID = "chestxray14", "covid-radiography"


@dataclass(frozen=True)
class DemoConfig:
    """Draw, ingest, verify, train, export, score, evaluate, report."""

    out: Path
    """Folder for everything: raw sets, shards, run, report."""
    images: int = 600
    """Images of the ChestX-ray14 stage."""
    per_class: int = 70
    """Normal and Viral Pneumonia images of the COVID stage, each."""
    covid: int = 32
    """COVID-19 images: fewer, as in the real sets, and 72x instead of 8x in training."""
    test_per_class: int = 20
    """How many of them are for testing."""
    recipe_args: str = ""
    """More settings for the recipe, as one text: "--size 96"."""


def steps(config: DemoConfig) -> list[tuple[str, list[str]]]:
    """Every step's name and its command behind `python -m`."""
    raw, shards, run = config.out / "raw", config.out / "shards", config.out / "run"
    exclude = raw / COVID / "exclude.txt"
    model = run / "model.onnx"
    archive = shards / COVID / "test" / f"{COVID}-test-000000.tar"
    draw = (
        f"ingest synthetic --out {raw} --images {config.images} --per-class {config.per_class} "
        f"--covid {config.covid}"
    )
    covid = f"ingest {COVID} --src {raw / COVID} --out {shards} --exclude {exclude}"
    return [
        ("draw", shlex.split(draw)),
        ("ingest", ["ingest", CHEST, "--src", str(raw / CHEST), "--out", str(shards)]),
        ("ingest", [*shlex.split(covid), "--test-per-class", str(config.test_per_class)]),
        ("verify", ["shards", "verify", str(shards)]),
        ("train", shlex.split(f"train demo --shards {shards} --run {run} {config.recipe_args}")),
        ("export", shlex.split(f"serve export --run {run} --out {model}")),
        ("score", shlex.split(f"serve score --model {model} --out {run / 'scores'} {archive}")),
        (
            "evaluate",
            shlex.split(
                f"serve evaluate --scores {run / 'scores'} --labels {shards / COVID} "
                f"--split test --out {run / 'evaluation'}"
            ),
        ),
        ("report", shlex.split(f"serve report --run {run} --out {run / 'report.html'}")),
    ]


def demo(config: DemoConfig) -> None:
    """Run every step and print the closing table. RunFailed when a step fails."""
    config.out.mkdir(parents=True, exist_ok=True)
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, command in steps(config):
        print(f"\n$ python -m {shlex.join(command)}", flush=True)
        if name == "draw" and (config.out / "raw" / COVID / MARKER).is_file():
            print("already drawn")
            continue
        began = time.monotonic()
        status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        seconds[name] += time.monotonic() - began
        if status:
            raise RunFailed(f"step {name} ended with exit status {status}; its message is above")
    print_closing(config, seconds)


def print_closing(config: DemoConfig, seconds: Mapping[str, float]) -> None:
    """What was read, quarantined, trained, scored; the test accuracy; the time per step."""
    shards, run = config.out / "shards", config.out / "run"
    table = Table("step", "result", "seconds", title="synthetic data: no patient, no real image")
    read, bad = _ingested(shards)
    trained = json.loads((run / "covid" / "result.json").read_bytes())["counts"]
    scores = json.loads((run / "scores" / "scores.json").read_bytes())
    metrics = json.loads((run / "evaluation" / "metrics.json").read_bytes())
    accuracy = metrics["accuracy"]
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = {
        "draw": "two data sets in their publishers' layouts",
        "ingest": f"{read} images read, {bad}",
        "verify": "every byte as the manifests say",
        "train": f"{len(epochs)} epochs, {sum(line['copies'] for line in epochs)} images through "
        f"the network, {median(line['img_s'] for line in epochs):.0f} img/s (median epoch); COVID "
        f"stage {trained['train']} train, {trained['val']} val, {trained['test']} test",
        "export": "torch and ONNX Runtime agree",
        "score": f"{scores['rows']} rows, {scores['errors']} errors",
        "evaluate": f"test accuracy {100 * accuracy['value']:.1f} % "
        f"(95 % interval {100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})",
        "report": str(run / "report.html"),
    }
    for name, result in results.items():
        table.add_row(name, result, f"{seconds[name]:.1f}" if name in seconds else "-")
    table.add_section()
    table.add_row("all", "", f"{sum(seconds.values()):.1f}")
    console = Console()
    console.print()
    console.print(table)
    print(f"report: {run / 'report.html'}")


def _ingested(shards: Path) -> tuple[int, str]:
    """Images read, and in words what did not enter the shards."""
    kept, left = 0, Counter[str]()
    for name in (CHEST, COVID):
        manifest = load_manifest(shards / name)
        kept += sum(counts.samples for counts in manifest.splits.values())
        left.update(manifest.excluded)
    words = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
    return kept + sum(left.values()), f"{kept} in shards, {words}"
