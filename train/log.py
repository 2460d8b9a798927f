"""What a run writes for people: metrics, TensorBoard events, curves, the lists of its splits."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.console import UserError
from shards.writer import write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """RUN/metrics.jsonl and TensorBoard events: one line per epoch."""

    def __init__(self, run: Path, lines: int) -> None:
        """lines: how many are valid; what a killed run wrote after its checkpoint is cut off."""
        self.path, self._run = run / "metrics.jsonl", run
        kept = self.path.read_text().splitlines(keepends=True)[:lines] if lines else []
        write_atomic(self.path, "".join(kept).encode())
        self.lines = len(kept)

    @cached_property
    def events(self) -> "SummaryWriter":
        """Opened after the first epoch: TensorBoard's import takes 0.5 s, which no run should wait
        for before its first step."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._run / "events"), purge_step=self.lines + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Append one epoch."""
        events = self.events
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines += 1
        for name, value in line.items():
            by_label = value if isinstance(value, dict) else {"": value}
            for label, number in by_label.items():
                if isinstance(number, float):
                    path = "/".join(filter(None, (line["stage"], name, label)))
                    events.add_scalar(path, number, self.lines)
        events.flush()

    def close(self) -> None:
        """Close the events file, if any epoch was written."""
        if "events" in vars(self):
            self.events.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of RUN/metrics.jsonl: a killed run may have left half a one. UserError where
    the file is damaged."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error


def draw_curves(run: Path) -> None:
    """RUN/curves.png: loss and accuracy or AUROC by epoch, a panel per stage, phases marked."""
    from matplotlib.figure import Figure

    lines = read_metrics(run)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure = Figure(figsize=(6 * len(stages), 4))
    panels = figure.subplots(1, len(stages), squeeze=False)
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
        panel.xaxis.get_major_locator().set_params(integer=True)
        handles = panel.get_legend_handles_labels()[0] + second.get_legend_handles_labels()[0]
        panel.legend(handles=handles, fontsize="small")
    figure.tight_layout()
    figure.savefig(run / "curves.png", dpi=100)


def write_splits(folder: Path, keys: Mapping[str, Sequence[str]]) -> None:
    """FOLDER/splits/<split>.txt: the keys of the images that a stage trained and was judged on, one
    a line."""
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    for split, names in keys.items():
        text = "".join(f"{name}\n" for name in names)
        write_atomic(folder / "splits" / f"{split}.txt", text.encode())
