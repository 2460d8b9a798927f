"""Raw images -> shards: our ingest beside img2dataset's way. Run: python -m bench ingest"""

import csv
import gc
import multiprocessing
import multiprocessing.forkserver
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path

from bench.config import BenchConfig, settle
from bench.images import RawImages, fresh_folders, ingest_raw, raw_images
from bench.memory import peak_mb
from bench.peers import ENCODERS, img2dataset_shards
from bench.result import Rates, Result, Side, interleave
from ingest.engines import PRELOADED
from shards.codec import Encoding

CHESTXRAY14_IMAGES = 112_120
_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


@dataclass(frozen=True)
class IngestBench(BenchConfig):
    """How fast raw images become shards: decode, reduce, encode, write. Peers: OpenCV or Pillow,
    and webdataset's ShardWriter, in as many processes, as img2dataset does it; and cp."""

    times: int = 4
    """Each image goes in so many times: as it is, turned and mirrored (at most 8)."""


def measure(config: IngestBench) -> Result:
    """Ours checks for duplicates, hashes the pixels and the shards and syncs them to the disk on
    top of what the peers do."""
    config = settle(config)
    context = multiprocessing.get_context("forkserver")
    # One fork server serves both sides: the imports of both are paid for before the clock runs.
    context.set_forkserver_preload([*PRELOADED, "bench.peers"])
    multiprocessing.forkserver.ensure_running()
    with _frozen(), tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"), config.times)
        out = Path(work, "out")
        sides = dict(_sides(raw, config, fresh_folders(out), context))
        # What the sides write is 2 GB a turn: on memory that was never used before each is slower.
        clear = partial(shutil.rmtree, out, ignore_errors=True)
        rates = interleave("ingest", sides, config.repeats, clear=clear)
        memory = [
            _peak_mb(raw, Path(work, f"x{times}"), times)
            for times in ((1, 2, 4) if not config.quick else (1,))
        ]
        what = (
            f"{raw} -> shorter side {config.shorter_side}, JPEG, tar shards; --workers "
            f"{config.workers}; all sides include the start of their processes"
        )
        if config.times > 1:
            what += f"; {config.times - 1} of {config.times} images are turned or mirrored copies"
    ours, peer = rates.pop("ours"), rates.pop("OpenCV to JPEG")
    return Result(
        name="ingest",
        what=what,
        peer_name="img2dataset's way: OpenCV to JPEG, webdataset ShardWriter",
        ours=ours,
        peer=peer,
        images=len(raw),
        synthetic=raw.synthetic,
        quick=config.quick,
        others=rates,
        extra=_ratios(ours, rates)
        | {
            "whole_chestxray14_hours": round(CHESTXRAY14_IMAGES / ours.median / 3600, 3),
            "peak_mb_of_1_2_4_times": memory,
        },
    )


@contextmanager
def _frozen() -> Iterator[None]:
    """torch's objects, 4 times as many as an ingest's own, are the bench's: a run of 2 s would
    spend 0.2 s on looking through them for garbage."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _sides(
    raw: RawImages, config: IngestBench, folders: Iterator[Path], context: BaseContext
) -> Iterator[tuple[str, Side]]:
    def ours(encoding: Encoding, workers: int) -> int:
        ingest_raw(raw, next(folders), encoding, config, workers)
        return len(raw)

    def peer(encoder: str) -> int:
        side, workers = config.shorter_side, config.workers
        return img2dataset_shards(raw.paths, next(folders), encoder, side, workers, context)

    def copy() -> int:
        target = next(folders)
        for path in raw.paths:
            shutil.copyfile(path, target / path.name)
        return len(raw)

    yield "ours", partial(ours, "jpeg", config.workers)
    for encoder in ENCODERS:
        yield encoder, partial(peer, encoder)
    yield "ours, 1 worker", partial(ours, "jpeg", 1)
    yield "ours to HTJ2K", partial(ours, "htj2k", config.workers)
    yield "ours, --format keep", partial(ours, "keep", config.workers)
    yield "cp", copy


def _ratios(ours: Rates, rates: dict[str, Rates]) -> dict[str, float]:
    def ratio(one: Rates, other: str) -> float:
        return round(one.median / rates[other].median, 3)

    return {
        "ratio_to_pillow": ratio(ours, "Pillow to JPEG"),
        "ratio_of_workers": ratio(ours, "ours, 1 worker"),
        "ratio_htj2k_to_png": ratio(rates["ours to HTJ2K"], "OpenCV to PNG"),
        "ratio_keep_to_cp": ratio(rates["ours, --format keep"], "cp"),
    }


def _peak_mb(raw: RawImages, folder: Path, times: int) -> float:
    """Of `python -m ingest chestxray14` on an archive that holds the images so many times."""
    _write_archive(raw, folder / "raw", times)
    arguments = ["chestxray14", "--src", str(folder / "raw"), "--out", str(folder / "out")]
    return round(peak_mb("ingest", [*arguments, "--on-duplicate", "keep", "--no-progress"]))


def _write_archive(raw: RawImages, folder: Path, times: int) -> None:
    folder.mkdir(parents=True)
    names = {
        f"{1 + number + copy * len(raw):08d}_000.png": path
        for copy in range(times)
        for number, path in enumerate(raw.paths)
    }
    with tarfile.open(folder / "images_001.tar.gz", "w:gz", compresslevel=1) as tar:
        for name, path in names.items():
            tar.add(path, f"images/{name}")
    with (folder / "Data_Entry_2017_v2020.csv").open("w", newline="") as file:
        file.write(_HEADER + "\n")
        for number, name in enumerate(names):
            csv.writer(file).writerow([name, "No Finding", 0, number, 50, "F", "PA", 8, 8, 1, 1])
