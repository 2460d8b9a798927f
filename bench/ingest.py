"""Raw images -> shards: our ingest beside img2dataset's way. Run: python -m bench ingest"""

import multiprocessing
import multiprocessing.forkserver
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.config import BenchConfig, settle
from bench.images import fresh_folders, ingest_raw, raw_images
from bench.peers import OPENCV_ENCODINGS, img2dataset_shards
from bench.result import Result, interleave

CHESTXRAY14_IMAGES = 112_120


@dataclass(frozen=True)
class IngestBench(BenchConfig):
    """How fast raw images become shards: decode, reduce, encode, write. Peer: OpenCV and
    webdataset's ShardWriter in as many processes, as img2dataset does it."""

    format: Literal["jpeg", "htj2k"] = "jpeg"
    """Encoding of the shards; beside htj2k, which OpenCV cannot write, the peer writes PNG."""


def measure(config: IngestBench) -> Result:
    """Ours checks for duplicates, hashes the pixels and the shards and syncs them to the disk on
    top of what the peer does."""
    config = settle(config)
    context = multiprocessing.get_context("forkserver")
    # One fork server serves both sides: the imports of both are paid for before the clock runs.
    context.set_forkserver_preload(["ingest.encode", "bench.peers"])
    multiprocessing.forkserver.ensure_running()
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as work:
        raw = raw_images(config, Path(work, "raw"))
        folders = fresh_folders(Path(work, "out"))

        def ours() -> int:
            ingest_raw(raw, next(folders), config.format, config)
            return len(raw)

        def peer() -> int:
            return img2dataset_shards(
                raw.paths,
                next(folders),
                config.format,
                config.shorter_side,
                config.workers,
                context,
            )

        rates = interleave("ingest", {"ours": ours, "peer": peer}, config.repeats)
        what = (
            f"{raw} -> shorter side {config.shorter_side}, {config.format}, tar shards; "
            f"--workers {config.workers}; both include the start of their processes"
        )
    extension = OPENCV_ENCODINGS[config.format][0]
    hours = CHESTXRAY14_IMAGES / rates["ours"].median / 3600
    return Result(
        name="ingest",
        what=what,
        peer_name=f"img2dataset's way: OpenCV to {extension}, webdataset ShardWriter",
        ours=rates["ours"],
        peer=rates["peer"],
        images=len(raw),
        synthetic=raw.synthetic,
        quick=config.quick,
        extra={"format": config.format, "whole_chestxray14_hours": round(hours, 3)},
    )
