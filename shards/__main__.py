"""Looking at finished shards. Run: python -m shards verify DIR | stats DIR"""

from pathlib import Path
from typing import Annotated

import tyro

from shards import console
from shards.manifest import check_shards, load_manifest
from shards.stats import print_stats
from shards.verify import find_datasets, unfinished, verify_dataset

_Folder = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="DIR", help="A data set's folder, or a folder that holds several."),
]


def verify(folder: _Folder) -> None:
    """Read every byte of the shards and compare them with their manifest: sizes, SHA-256, index,
    members of every sample, labels, counts. Names each problem; exit status 1 when there is any."""
    datasets = find_datasets(folder)
    problems = unfinished(folder)
    samples = sum(shard.samples for d in datasets for shard in load_manifest(d).shards)
    with console.progress("verify", samples) as advance:
        for dataset in datasets:
            problems += verify_dataset(dataset, advance)
    for problem in problems:
        print(problem)
    if problems:
        raise console.RunFailed(f"{len(problems)} problems in {folder}; ingest again")
    print(f"{samples} samples in {len(datasets)} data sets: all as their manifests say")


def stats(folder: _Folder) -> None:
    """Images per split and class, bytes, patients and sources of each data set, in a table."""
    for dataset in find_datasets(folder):
        manifest = load_manifest(dataset)
        check_shards(dataset, manifest, tuple(manifest.splits))
        print_stats(dataset, manifest)


def main() -> None:
    tyro.extras.subcommand_cli_from_dict(
        {"verify": verify, "stats": stats},
        prog="python -m shards",
        description="Looking at finished shards.",
    )


if __name__ == "__main__":
    console.run(main)
