"""Looking at finished shards. Run: python -m shards verify | stats | ls | show | sheet DIR"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from shards import console
from shards.listing import find, picture, print_list, print_sample
from shards.manifest import check_shards, load_manifest
from shards.remote import is_remote
from shards.sheet import contact_sheet
from shards.splits import SplitName
from shards.stats import print_stats
from shards.urls import url_paths
from shards.verify import (
    RETRIED,
    count_samples,
    find_datasets,
    headless,
    retried,
    unfinished,
    verify_dataset,
)
from shards.writer import write_atomic

Action = Callable[[], None]  # what a parsed command line asks for
_Folder = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="DIR", help="A data set's folder, or a folder that holds several."),
]
_DataSet = Annotated[
    Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help="A data set's folder.")
]


def verify(folder: _Folder) -> Action:
    """Read every byte and compare it with the manifest: shards, indexes, tables, lists and the
    manifest itself by SHA-256; members, labels and counts; shards without a manifest. As fast as
    SHA-256 or the disk. Names each problem; exit status 1 when there is any."""
    return lambda: _verify(folder)


def _verify(folder: Path) -> None:
    problems = headless(folder)
    try:
        datasets = find_datasets(folder)
    except console.UserError:
        if not problems:
            raise
        datasets = []
    problems += unfinished(folder)
    samples = sum(map(count_samples, datasets))
    half = []
    with console.progress("verify", samples) as advance:
        for dataset in datasets:
            found = verify_dataset(dataset, advance)
            problems += found
            if found and retried(dataset):
                half.append(str(dataset))
    for problem in problems:
        print(problem)
    if problems:
        way = "ingest again"
        if half:
            way = f"{RETRIED} in {', '.join(half)}: once it is done, verify again; else {way}"
        raise console.RunFailed(f"{len(problems)} problems in {folder}; {way}")
    print(f"{samples} samples in {len(datasets)} data sets: all as their manifests say")


def stats(folder: _Folder) -> Action:
    """Images per split and class, bytes, patients and sources of each data set, in a table. Exit
    status 1 when one beside them has lost its manifest."""
    return lambda: _stats(folder)


def _stats(folder: Path) -> None:
    for dataset in find_datasets(folder):
        manifest = load_manifest(dataset)
        check_shards(dataset, manifest, tuple(manifest.splits))
        print_stats(dataset, manifest)
    lost = headless(folder)
    if lost:
        raise console.RunFailed(f"{'; '.join(lost)}; ingest or resplit again")


def list_samples(folder: _DataSet) -> Action:
    """A line for each sample: key, split, labels, separated by tabs."""
    return lambda: print_list(folder, load_manifest(folder))


def show(
    folder: _DataSet,
    key: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KEY")],
    png: Path | None = None,
) -> Action:
    """One sample's labels and metadata.

    Args:
        key: As ls lists it.
        png: Also write its picture to this file.
    """

    def act() -> None:
        _refuse_url(folder)
        manifest, place = find(folder, key)
        print_sample(manifest, place)
        if png is not None:
            _write(png, picture(place))

    return act


def sheet(
    folder: _DataSet, out: Path, per_class: int = 8, split: SplitName | None = None
) -> Action:
    """A contact sheet: some images of each class in a row, as one PNG.

    Args:
        out: The PNG file.
        per_class: Images of each class.
        split: Of this split alone.
    """

    def act() -> None:
        _refuse_url(folder)
        _write(out, contact_sheet(folder, load_manifest(folder), per_class, split))

    return act


def _refuse_url(folder: Path) -> None:
    if is_remote(folder):
        raise console.UserError(f"this command wants a local folder, not {folder}; copy it to one")


def _write(path: Path, data: bytes) -> None:
    if not path.parent.is_dir():
        raise console.UserError(f"no folder {path.parent} for {path.name}; make it first")
    write_atomic(path, data)


def main() -> None:
    commands: dict[str, Callable[..., Action]] = {
        "verify": verify,
        "stats": stats,
        "ls": list_samples,
        "show": show,
        "sheet": sheet,
    }
    console.check_command(sys.argv[1:], commands)
    action: Action = console.parse(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m shards",
            description="Looking at finished shards. verify, stats and ls take a URL too "
            "(s3://bucket/folder) and read it shard by shard.",
            registry=url_paths(),
        )
    )
    action()


if __name__ == "__main__":
    console.run(main)
