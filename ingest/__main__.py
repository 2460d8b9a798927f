"""Raw data sets -> shards. Run: python -m ingest <source> --src PATH --out DIR"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ingest.record import Source
from ingest.run import IngestConfig, ingest
from ingest.sources import SOURCES
from ingest.synthetic import write_chestxray14, write_covid_radiography
from shards import console
from shards.manifest import Manifest
from shards.stats import count_table, print_left_out, stdout


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
    stdout.print(count_table(manifest, folder))
    print_left_out(manifest)


def _command(config_type: type, build: Callable[[Any], Source]) -> Callable[..., None]:
    """A subcommand: the options of the data set, then those of every ingest."""

    def command(source: Any, run: Any) -> None:
        built = build(source)
        print_summary(ingest(built, run), run.out / built.name)

    command.__annotations__ = {
        "source": Annotated[config_type, tyro.conf.arg(name="")],
        "run": Annotated[IngestConfig, tyro.conf.arg(name="")],
    }
    command.__doc__ = inspect.getdoc(config_type)
    return command


def main() -> None:
    commands: dict[str, Callable[..., None]] = {
        name: _command(config_type, build) for name, (config_type, build) in SOURCES.items()
    }

    def synthetic(config: Annotated[SyntheticConfig, tyro.conf.arg(name="")]) -> None:
        write_synthetic(config)

    synthetic.__doc__ = inspect.getdoc(SyntheticConfig)
    commands["synthetic"] = synthetic
    tyro.extras.subcommand_cli_from_dict(
        commands, prog="python -m ingest", description="Raw data sets to shards."
    )


if __name__ == "__main__":
    console.run(main)
