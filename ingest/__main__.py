"""Raw data sets -> shards. Run: python -m ingest <source> --src PATH --out DIR

And what can be made of finished shards: python -m ingest resplit | merge | retry
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ingest.command import RetryConfig, recall, remember
from ingest.config import IngestConfig
from ingest.estimate import estimate, print_estimate
from ingest.merge import MergeConfig, merge
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.record import Source
from ingest.remote import refuse_urls
from ingest.resplit import ResplitConfig, resplit
from ingest.retry import retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources import SOURCES
from ingest.synthetic import write_chestxray14, write_covid_radiography
from ingest.tables import read_rows
from shards import console
from shards.manifest import Manifest
from shards.stats import count_table, print_left_out, print_table
from shards.urls import url_paths
from shards.verify import find_datasets, headless

Action = Callable[[], None]  # what a parsed command line asks for


@dataclass(frozen=True)
class SyntheticConfig:
    """Draw two synthetic data sets in their publishers' raw layouts, for demos and tests: OUT gets
    chestxray14/ and covid-radiography/, which the commands of these names then ingest."""

    out: Path
    """Folder for the two raw data sets."""
    images: int = 300
    """Images of ChestX-ray14."""
    per_class: int = 80
    """Images per class of the COVID-19 Radiography Database."""
    covid: int | None = None
    """Another number of images for its class COVID-19."""
    size: int = 512
    """Side of the images in pixels."""
    seed: int = 0
    """Another seed draws other patients."""


def write_synthetic(config: SyntheticConfig) -> None:
    """Write both raw sets."""
    classes = ("COVID-19", "NORMAL", "Viral Pneumonia")
    per_class = dict.fromkeys(classes, config.per_class)
    if config.covid is not None:
        per_class["COVID-19"] = config.covid
    total = config.images + sum(per_class.values())
    with console.progress("draw", total) as advance:
        write_chestxray14(
            config.out / "chestxray14",
            images=config.images,
            seed=config.seed,
            size=config.size,
            progress=advance,
        )
        write_covid_radiography(
            config.out / "covid-radiography",
            per_class=per_class,
            seed=config.seed,
            size=config.size,
            progress=advance,
        )


def print_summary(manifest: Manifest, folder: Path) -> None:
    """Images per class and split, and what was left out, on standard output."""
    print_table(count_table(manifest), manifest, folder)
    print_left_out(manifest)


def _ingest(
    config_type: type, build: Callable[[Any], Source], arguments: list[str]
) -> Callable[..., Action]:
    """A subcommand: the options of the data set, of the selection, then those of every ingest."""

    def command(source: Any, selection: Any, run: Any) -> Action:
        def act() -> None:
            console.show_progress(run.progress)
            built = select(build(source), selection)
            if run.dry_run:
                print_estimate(estimate(built, run))
                return
            manifest = retry(built, run) if run.retry else ingest(built, run)
            # A URL may hold a signature.
            if not (run.retry or built.private or any("://" in word for word in arguments)):
                remember(run.out / built.name, arguments)
            print_summary(manifest, run.out / built.name)

        return act

    command.__annotations__ = {
        "source": Annotated[config_type, tyro.conf.arg(name="")],
        "selection": Annotated[SelectionConfig, tyro.conf.arg(name="")],
        "run": Annotated[IngestConfig, tyro.conf.arg(name="")],
    }
    command.__doc__ = inspect.getdoc(config_type)
    return command


def _plain(config_type: type, act: Callable[[Any], None]) -> Callable[..., Action]:
    """A subcommand with one config."""

    def command(config: Any) -> Action:
        def run() -> None:
            refuse_urls(config, "this command")
            act(config)

        return run

    command.__annotations__ = {"config": Annotated[config_type, tyro.conf.arg(name="")]}
    command.__doc__ = inspect.getdoc(config_type)
    return command


def _resplit(config: ResplitConfig) -> None:
    for folder, manifest in resplit(config):
        print_summary(manifest, folder)


def _merge(config: MergeConfig) -> None:
    print_summary(merge(config), config.out / config.name)


def _retry(config: RetryConfig) -> None:
    if not config.folders:
        raise console.UserError("no data set named; give the folders of finished data sets")
    folders = [folder for given in config.folders for folder in find_datasets(given.resolve())]
    lost = [line for given in config.folders for line in headless(given.resolve())]
    for line in lost:
        console.warn(f"{line}; ingest or resplit again")
    failed = [*lost]
    for folder in folders:
        try:
            if len(folders) > 1 and not read_rows(folder / QUARANTINE):
                # It may be a merged set, which no command made.
                console.stderr.print(f"{folder}: nothing in quarantine", soft_wrap=True)
                continue
            _retry_one(folder)
        except (console.UserError, console.RunFailed) as error:
            if len(folders) == 1:
                raise
            console.warn(f"{folder} could not be retried: {error}")
            failed.append(str(folder))
    if failed:
        raise console.RunFailed(
            f"{len(failed)} of {len(folders) + len(lost)} data sets could not be retried: "
            f"{', '.join(failed)}; the warnings above say why"
        )


def _retry_one(folder: Path) -> None:
    place, arguments = recall(folder, SOURCES)
    console.stderr.print(f"again: {console.one_line(' '.join(arguments))}", soft_wrap=True)
    if not place.is_dir():
        raise console.UserError(f"no folder {place}, where {folder} was made; make it")
    with chdir(place):  # its paths may be relative
        _parse([*arguments, "--out", str(folder.parent), "--retry"])()


def _parse(arguments: list[str]) -> Action:
    commands = {name: _ingest(*parts, arguments) for name, parts in SOURCES.items()} | {
        "synthetic": _plain(SyntheticConfig, write_synthetic),
        "resplit": _plain(ResplitConfig, _resplit),
        "merge": _plain(MergeConfig, _merge),
        "retry": _plain(RetryConfig, _retry),
    }
    console.check_command(arguments, commands)
    action: Action = console.parse(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands,
            args=arguments,
            prog="python -m ingest",
            description="Raw data sets to shards. Paths of sources may be URLs: s3://, https://.",
            registry=url_paths(),
        )
    )
    return action


def main() -> None:
    _parse(sys.argv[1:])()


if __name__ == "__main__":
    console.run(main)
