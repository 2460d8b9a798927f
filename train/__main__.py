"""python -m train RECIPE --shards DIR --run DIR; python -m train list | show RECIPE."""

import json
import os
import re
import signal
import sys
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from shards.console import UserError, run
from shards.console import parse as parse_flags
from train.config import TrainConfig, check_config
from train.dist import World
from train.log import jsonable, write_settings
from train.loop import Interrupted, Trainer
from train.recipes import RECIPES, describe, recipe

USAGE = """usage: python -m train RECIPE --shards DIR --run DIR [--SETTING VALUE ...]
       python -m train list           the recipes
       python -m train show RECIPE    all settings of a recipe
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


def parse(name: str, arguments: list[str]) -> TrainCommand:
    """The command line of one recipe. UserError for an unknown setting, which lists the valid."""
    config = recipe(name)
    flags = settings_of(config)
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        known = {"--help", "-h", "--shards", "--run", *flags}
        if argument.startswith("--") and flag.replace("_", "-") not in known:
            patterns = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", valid) for valid in flags)
            raise UserError(
                f"no setting {flag} in recipe {name}; there are (N counts from 0): --shards, "
                f"--run, {', '.join(patterns)}"
            )
    default = TrainCommand(shards=tyro.MISSING, run=tyro.MISSING, config=config)
    prog = f"python -m train {name}"
    return parse_flags(lambda: tyro.cli(TrainCommand, args=arguments, default=default, prog=prog))


def settings_of(value: Any, prefix: str = "--") -> list[str]:
    """Every setting of a nested config as its flag: --stages.0.phases.1.lr."""
    flags = []
    for item in fields(value):
        inner, name = getattr(value, item.name), f"{prefix}{item.name.replace('_', '-')}"
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
    config = command.config
    check_config(config)
    world = World(config.device)
    if world.device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    trainer = Trainer(config, command.shards, command.run, world)
    if world.is_first:
        synthetic = any(manifest.synthetic for manifest in trainer.manifests)
        write_settings(command.run, config, command.shards, synthetic)
    world.barrier()
    try:
        if not is_finished(command.run, config):
            trainer.run()
    except Interrupted as stop:
        if world.is_first:
            print("stopped; a checkpoint is written, the same command goes on", file=sys.stderr)
        sys.exit(130 if stop.number == signal.SIGINT else 0)
    finally:
        world.close()
    if world.is_first:
        print_result(command.run, config)


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether every stage has left its model: then there is nothing to train."""
    return all((folder / stage.name / "model.json").is_file() for stage in config.stages)


def print_result(folder: Path, config: TrainConfig) -> None:
    """The test results at the end of each phase."""
    table = Table(
        "stage", "phase", "epochs", "best epoch", "val loss", "test accuracy", "test AUROC"
    )
    for stage in config.stages:
        result = json.loads((folder / stage.name / "result.json").read_bytes())
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
    console = Console()
    console.print(table)
    data = "synthetic data" if any_synthetic(folder) else "research use only"
    console.print(f"{folder} ({data}; not a medical device)", highlight=False)


def any_synthetic(folder: Path) -> bool:
    """Whether the run trained on synthetic images."""
    return json.loads((folder / "settings.json").read_bytes())["synthetic"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def list_recipes() -> None:
    """Names and one sentence each."""
    table = Table("recipe", "what it trains")
    for name in RECIPES:
        table.add_row(name, describe(name))
    Console().print(table)


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        list_recipes()
    elif arguments[0] == "list":
        list_recipes()
    elif arguments[0] == "show":
        if len(arguments) != 2:
            raise UserError(f"show takes one recipe; there are: {', '.join(RECIPES)}")
        print(json.dumps(jsonable(asdict(recipe(arguments[1]))), indent=1))
    else:
        train(parse(arguments[0], arguments[1:]))


if __name__ == "__main__":
    run(main)
