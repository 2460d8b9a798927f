"""Runs side by side: a table, and Figure 1 of Bassi & Attux. Run: python -m train compare RUN ...

The figure is the test accuracy (where labels do not exclude each other, the mean AUROC) at the end
of each phase, by the epoch at which it ended: 10, 58, 106 and 154 where nothing stopped early.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from shards.console import UserError, warn
from train.log import read_metrics
from train.runs import read_settings, stage_names

_SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps")
_DAMAGE = (OSError, ValueError, KeyError, TypeError)
_COLUMNS = (
    *("run", "stage", "phase", "ends at", "best epoch", "val loss"),
    *("test accuracy", "test AUROC", "test F1", "images", "time", "energy"),
)


@dataclass(frozen=True)
class CompareCommand:
    """Compare finished or running trainings: a table, and a plot of the test results by phase."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders of python -m train."""
    out: Path = Path("compare.png")
    """The plot: .png, .svg, .pdf, .jpg, .webp, .tif or .eps. By default compare.png in the folder
    where the command runs; a plot that is there is written over."""
    stage: str | None = None
    """The stage that is plotted; without it each run's last one."""


@dataclass(frozen=True)
class PhaseRow:
    """A finished phase. ends: the stage's epoch after it; copies: images trained; seconds, joules:
    None where the run's metrics do not tell."""

    run: str
    stage: str
    phase: str
    ends: int
    best_epoch: int
    best_val_loss: float
    accuracy: float | None
    auroc: float | None
    f1: float | None
    copies: int
    seconds: float
    joules: float | None


def compare(command: CompareCommand) -> None:
    """Print the table, write the plot. UserError for a folder that is no run, and for a plot of
    another kind."""
    if command.out.suffix.lower() not in _SUFFIXES or command.out.is_dir():
        raise UserError(
            f"--out {command.out}: it must name a file that ends in one of {', '.join(_SUFFIXES)}"
        )
    names = run_names(command.runs)
    rows = [row for run, name in names.items() for row in phase_rows(run, name)]
    plotted = [row for row in rows if row.stage == (command.stage or _last_stage(rows, row.run))]
    if not plotted:
        raise UserError(
            f"nothing to compare: no phase{f' of stage {command.stage}' if command.stage else ''} "
            f"is finished in {', '.join(map(str, command.runs))}"
        )
    out = stdout()
    out.print(_table(rows))
    draw(plotted, command.out)
    synthetic = any(read_settings(run).get("synthetic") for run in command.runs)
    data = "with synthetic data" if synthetic else "research use only"
    out.print(f"{command.out} ({data}; not a medical device)")


def stdout() -> Console:
    """For tables: a pipe would cut them at 80 columns. A folder's name may look like markup."""
    width = None if sys.stdout.isatty() else 150
    return Console(width=width, highlight=False, markup=False)


def run_names(runs: tuple[Path, ...]) -> dict[Path, str]:
    """Each run's recipe, or its folder's name where a recipe was run twice, or its whole path where
    that is another's name too."""
    if not runs:
        raise UserError("compare takes at least one run folder")
    recipes = {run: str(read_settings(run).get("recipe", run.name)) for run in runs}
    found = list(recipes.values())
    names = {r: name if found.count(name) == 1 else r.resolve().name for r, name in recipes.items()}
    found = list(names.values())
    return {run: name if found.count(name) == 1 else str(run) for run, name in names.items()}


def phase_rows(run: Path, name: str) -> list[PhaseRow]:
    """The finished phases of a run: of a finished stage its result, of the stage being trained
    what the newest checkpoint tells."""
    lines, rows = read_metrics(run), []
    for place, stage in enumerate(stage_names(run)):
        mine = [line for line in lines if line["stage"] == stage]
        ends = 0
        for number, result in enumerate(_results(run, place, stage), 1):
            epochs = [line for line in mine if line["phase"] == number]
            ends += result["epochs"]
            rows.append(_row(name, stage, ends, result, epochs))
    return rows


def _results(run: Path, place: int, stage: str) -> list[dict[str, Any]]:
    path = run / stage / "result.json"
    try:
        if path.is_file():
            return json.loads(path.read_bytes())["phases"]
    except _DAMAGE as error:
        raise UserError(f"the results in {path} cannot be read ({error})") from error
    for state in sorted((run / "checkpoints").glob("[0-9]*/state.json"), reverse=True):
        try:
            position = json.loads(state.read_bytes())["position"]
            return position["phases"] if position["stage"] == place else []
        except _DAMAGE as error:
            warn(f"{state} cannot be read ({error}); taking the checkpoint before it")
    return []


def _row(
    run: str, stage: str, ends: int, result: dict[str, Any], epochs: list[dict[str, Any]]
) -> PhaseRow:
    test, joules = result["test"], [line.get("energy_j") for line in epochs]
    f1 = [value for value in test.get("f1", ()) if value is not None]
    return PhaseRow(
        run=run,
        stage=stage,
        phase=result["name"],
        ends=ends,
        best_epoch=result["best_epoch"],
        best_val_loss=result["best_val_loss"],
        accuracy=test["accuracy"],
        auroc=test["auroc_mean"],
        f1=sum(f1) / len(f1) if f1 else None,
        copies=sum(line["copies"] for line in epochs),
        seconds=sum(line["seconds"] for line in epochs),
        joules=sum(j for j in joules if j) if epochs and all(joules) else None,
    )


def _last_stage(rows: list[PhaseRow], run: str) -> str:
    return [row.stage for row in rows if row.run == run][-1]


def _table(rows: list[PhaseRow]) -> Table:
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(
            row.run,
            row.stage,
            row.phase,
            str(row.ends),
            str(row.best_epoch),
            f"{row.best_val_loss:.4f}",
            "-" if row.accuracy is None else f"{100 * row.accuracy:.1f} %",
            "-" if row.auroc is None else f"{row.auroc:.3f}",
            "-" if row.f1 is None else f"{row.f1:.3f}",
            str(row.copies),
            f"{row.seconds / 3600:.2f} h" if row.seconds >= 3600 else f"{row.seconds:.0f} s",
            "-" if row.joules is None else f"{row.joules / 3.6e6:.3f} kWh",
        )
    return table


def draw(rows: list[PhaseRow], path: Path) -> None:
    """One line per run, a mark at the end of each phase."""
    from matplotlib.figure import Figure

    accuracy = all(row.accuracy is not None for row in rows)
    figure = Figure(figsize=(7, 4.5))
    panel = figure.subplots()
    for run in dict.fromkeys(row.run for row in rows):
        mine = [row for row in rows if row.run == run]
        values = [row.accuracy if accuracy else row.auroc for row in mine]
        heights = [float("nan") if value is None else value for value in values]
        panel.plot([row.ends for row in mine], heights, marker="o", label=run.replace("$", r"\$"))
    panel.set_xticks(sorted({row.ends for row in rows}))
    panel.set(
        xlabel="epoch at the end of the phase",
        ylabel="test accuracy" if accuracy else "test AUROC, mean",
    )
    panel.grid(color="0.9")
    lines = panel.get_lines()
    # Said one by one: left to itself, matplotlib takes a label that begins with _ for none.
    panel.legend(lines, [str(line.get_label()) for line in lines])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
