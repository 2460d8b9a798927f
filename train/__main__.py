"""python -m train RECIPE --shards DIR --run DIR; list | show | preview | compare."""

from train import preempted

if __name__ == "__main__":
    preempted.listen()  # before the imports below, which take seconds

import json
import os
import re
import signal
import sys
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shards import malloc
from shards.console import RunFailed, UserError, run
from shards.console import parse as parse_flags
from train.compare import CompareCommand, compare, stdout
from train.config import TrainConfig, check_config, without_skipped
from train.dist import World, is_lost_peer, why_no_exchange
from train.loop import Trainer
from train.preview import PreviewCommand, preview
from train.recipes import RECIPES, recipe
from train.runs import read_json
from train.settings import held, jsonable, write_settings
from train.stop import Interrupted

USAGE = """usage: python -m train RECIPE --shards DIR --run DIR [--SETTING VALUE ...]
       python -m train list           the recipes: source, data, cost, the result to expect
       python -m train show RECIPE    all settings of a recipe
       python -m train preview RECIPE --shards DIR [--out FILE.png]  a class's copies, as a picture
       python -m train compare RUN ...  a table and a plot of their test results by phase
       python -m train RECIPE --help  what each setting means

Trains a recipe on the shards that `python -m ingest` wrote; the same command again goes on from
the last checkpoint. On several GPUs: torchrun --nproc-per-node N -m train RECIPE ..."""


@dataclass(frozen=True)
class TrainCommand:
    """Train a recipe. The same command again goes on from the last checkpoint."""

    shards: Path
    """The folder that python -m ingest wrote: it holds a folder per data set."""
    run: Path
    """The run's folder: settings, metrics, checkpoints, weights."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The recipe's settings, each of which may be given another value."""


Command = TypeVar("Command", bound=TrainCommand | PreviewCommand)


def parse(name: str, arguments: list[str], kind: type[Command], verb: str = "") -> Command:
    """The command line of one recipe. UserError for an unknown setting, which lists the valid."""
    config = recipe(name)
    arguments = [by_number(argument, config) for argument in arguments]
    own = [f"--{item.name}" for item in fields(kind) if item.name != "config"]
    flags = settings_of(config)
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        known = {"--help", "-h", *own, *flags}
        if argument.startswith("--") and flag.replace("_", "-") not in known:
            patterns = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", valid) for valid in flags)
            shown = [valid for valid in patterns if not re.search(r"[-.]no-", valid)]
            raise UserError(
                f"no setting {flag} in recipe {name}; there are (N counts from 0, or is a stage's "
                f"name; --no-... of a switch): {', '.join([*own, *shown])}"
            )
    needed = {item.name: tyro.MISSING for item in fields(kind) if item.default is MISSING}
    default = kind(**{**needed, "config": config})
    prog = f"python -m train {verb}{name}"
    return parse_flags(lambda: tyro.cli(kind, args=arguments, default=default, prog=prog))


def by_number(argument: str, config: TrainConfig) -> str:
    """A flag that names its stage, with the stage's number: --stages.covid.batch 9."""
    for number, stage in enumerate(config.stages):
        name = f"--stages.{stage.name}."
        if argument.startswith(name):
            return f"--stages.{number}.{argument.removeprefix(name)}"
    return argument


def settings_of(value: Any, prefix: str = "--") -> list[str]:
    """Every setting of a nested config as its flag: --stages.0.phases.1.lr. The recipe's name is
    none: it comes first on the command line. Nor is a list of parts that the recipe leaves empty:
    parts are added in a recipe, not by a flag."""
    flags = []
    for item in fields(value):
        inner, name = getattr(value, item.name), f"{prefix}{item.name.replace('_', '-')}"
        if name == "--recipe" or (inner == () and any(map(is_dataclass, get_args(item.type)))):
            continue
        if is_dataclass(inner):
            flags += settings_of(inner, f"{name}.")
        elif isinstance(inner, tuple) and inner and is_dataclass(inner[0]):
            for position, element in enumerate(inner):
                flags += settings_of(element, f"{name}.{position}.")
        elif item.type is bool or isinstance(inner, bool):
            flags += [name, f"{prefix}no-{item.name.replace('_', '-')}"]
        else:
            flags.append(name)
    return flags


def train(command: TrainCommand) -> None:
    """Train to the end and print the result's table."""
    check_config(command.config)
    config = without_skipped(command.config)
    world = World(config.device)
    if world.device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
        malloc.keep_all()
    failed = True
    try:
        _train(command, config, world)
        failed = False
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise RunFailed(why_no_exchange(error)) from error
    finally:
        world.close(failed=failed)
    if world.is_first:
        print_result(command.run, config)


def _train(command: TrainCommand, config: TrainConfig, world: World) -> None:
    trainer = Trainer(config, command.shards, command.run, world)
    done = is_finished(command.run, config)
    with held(command.run) if world.is_first and not done else nullcontext():
        if world.is_first:
            synthetic = any(manifest.synthetic for manifest in trainer.manifests)
            write_settings(command.run, config, command.shards, synthetic)
        world.barrier()
        if done:
            trainer.check_finished()
        else:
            _run(trainer)


def _run(trainer: Trainer) -> None:
    try:
        trainer.run()
    except Interrupted as stop:
        if trainer.world.is_first:
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130 if stop.number == signal.SIGINT else 0)


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether every stage has left its model: then there is nothing to train."""
    return all((folder / stage.name / "model.json").is_file() for stage in config.stages)


def print_result(folder: Path, config: TrainConfig) -> None:
    """The test results at the end of each phase."""
    table = Table(
        "stage", "phase", "epochs", "best epoch", "val loss", "test accuracy", "test AUROC"
    )
    for stage in config.stages:
        result = read_json(folder / stage.name / "result.json")
        for phase in result["phases"]:
            test = phase["test"]
            table.add_row(
                stage.name,
                phase["name"],
                str(phase["epochs"]),
                str(phase["best_epoch"]),
                f"{phase['best_val_loss']:.4f}",
                _percent(test["accuracy"]),
                "-" if test["auroc_mean"] is None else f"{test['auroc_mean']:.3f}",
            )
    out = stdout()
    out.print(table)
    data = "with synthetic data" if any_synthetic(folder) else "research use only"
    out.print(f"{folder} ({data}; not a medical device)")


def any_synthetic(folder: Path) -> bool:
    """Whether the run trained on synthetic images."""
    return bool(read_json(folder / "settings.json")["synthetic"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def list_names() -> None:
    """Names and one sentence each."""
    table = Table("recipe", "what it trains")
    for name, entry in RECIPES.items():
        table.add_row(name, entry.what)
    Console().print(table)


def list_recipes() -> None:
    """Of each recipe: what it trains, its paper, its data's commands, its cost, its result."""
    table = Table.grid(padding=(0, 1))
    for name, entry in RECIPES.items():
        table.add_row(f"[bold]{name}[/bold]", "", escape(entry.what))
        for label in ("source", "data", "cost", "expect"):
            table.add_row("", label, escape(getattr(entry, label)))
        table.add_row()
    Console().print(table)


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        list_names()
    elif arguments[0] == "list":
        if len(arguments) > 1:
            raise UserError(f"list takes no more words, found: {' '.join(arguments[1:])}")
        list_recipes()
    elif arguments[0] == "show":
        if len(arguments) != 2:
            raise UserError(f"show takes one recipe; there are: {', '.join(RECIPES)}")
        print(json.dumps(jsonable(asdict(recipe(arguments[1]))), indent=1))
    elif arguments[0] == "compare":
        words, prog = arguments[1:], "python -m train compare"
        compare(parse_flags(lambda: tyro.cli(CompareCommand, args=words, prog=prog)))
    elif arguments[0] == "preview":
        if len(arguments) < 2 or arguments[1].startswith("-"):
            raise UserError(f"preview takes one recipe first; there are: {', '.join(RECIPES)}")
        preview(parse(arguments[1], arguments[2:], PreviewCommand, "preview "))
    else:
        try:
            train(parse(arguments[0], arguments[1:], TrainCommand))
        finally:  # what there was to save is saved, but Python's own end, a second, would die of it
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    run(main)
