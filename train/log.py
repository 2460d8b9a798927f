"""What a run writes for people: settings, environment, metrics, TensorBoard events, curves."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch.utils.tensorboard import SummaryWriter

from shards.console import UserError
from shards.writer import write_atomic
from train.config import TrainConfig

matplotlib.use("Agg")


def jsonable(value: Any) -> Any:
    """Dataclasses' dicts as JSON holds them: paths as text, tuples as lists."""
    return json.loads(json.dumps(value, default=str))


def write_settings(run: Path, config: TrainConfig, shards: Path, synthetic: bool) -> None:
    """RUN/settings.json; a folder that holds a run with other settings is refused (UserError).

    Until the first checkpoint nothing is lost, so corrected settings replace the old ones.
    """
    path = run / "settings.json"
    settings = {
        "recipe": config.recipe,
        "config": jsonable(asdict(config)),
        "shards": str(shards.resolve()),
        "synthetic": synthetic,
    }
    if path.is_file() and (run / "checkpoints").is_dir():
        differing = _differences(json.loads(path.read_bytes()), settings)
        if differing:
            raise UserError(
                f"{run} holds another run (differing: {', '.join(differing[:5])}); take another "
                "--run folder, or the settings of that run"
            )
        return
    if not path.is_file() and run.is_dir() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run; take another --run folder")
    run.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m train", *sys.argv[1:]])
    write_json(path, {**settings, "command": command, "commit": _commit()})
    write_json(run / "environment.json", _environment())


# What may change when a run goes on: where and how it computes, not what.
_MAY_CHANGE = ("config.device", "config.input", "config.checkpoint_every_s", "shards")


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in new.items():
        name = f"{prefix}{key}"
        if name in _MAY_CHANGE or old.get(key) == value:
            continue
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            found += _differences(old[key], value, f"{name}.")
        else:
            found.append(name)
    return found


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, there whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def _commit() -> str | None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _environment() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        return lines[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or "unknown"


class MetricsLog:
    """RUN/metrics.jsonl and TensorBoard events: one line per epoch."""

    def __init__(self, run: Path, lines: int) -> None:
        """lines: how many are valid; what a killed run wrote after its checkpoint is cut off."""
        self.path = run / "metrics.jsonl"
        kept = self.path.read_text().splitlines(keepends=True)[:lines] if lines else []
        write_atomic(self.path, "".join(kept).encode())
        self.lines = len(kept)
        self.events = SummaryWriter(str(run / "events"), purge_step=self.lines)

    def write(self, line: dict[str, Any]) -> None:
        """Append one epoch."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines += 1
        for name, value in line.items():
            if isinstance(value, float):
                self.events.add_scalar(f"{line['stage']}/{name}", value, self.lines)
        self.events.flush()

    def close(self) -> None:
        """Close the events file."""
        self.events.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of RUN/metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def draw_curves(run: Path) -> None:
    """RUN/curves.png: loss and accuracy or AUROC by epoch, a panel per stage, phases marked."""
    from matplotlib import pyplot as plt

    lines = read_metrics(run)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure, panels = plt.subplots(1, len(stages), figsize=(6 * len(stages), 4), squeeze=False)
    for panel, stage in zip(panels[0], stages):
        rows = [line for line in lines if line["stage"] == stage]
        epochs = [row["epoch"] for row in rows]
        panel.plot(epochs, [row["train_loss"] for row in rows], label="training loss")
        panel.plot(epochs, [row["val_loss"] for row in rows], label="validation loss")
        measure = "val_accuracy" if rows[0]["val_accuracy"] is not None else "val_auroc"
        second = panel.twinx()
        second.plot(epochs, [row[measure] for row in rows], "k:", label=measure.replace("_", " "))
        second.set_ylim(0, 1)
        for before, after in pairwise(rows):
            if before["phase"] != after["phase"]:
                panel.axvline(before["epoch"] + 0.5, color="0.8")
        panel.set(title=stage, xlabel="epoch", ylabel="loss")
        handles = panel.get_legend_handles_labels()[0] + second.get_legend_handles_labels()[0]
        panel.legend(handles=handles, fontsize="small")
    figure.tight_layout()
    figure.savefig(run / "curves.png", dpi=100)
    plt.close(figure)
