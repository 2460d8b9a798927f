"""The options of every ingest, whichever data set it is of."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ingest.audit import OnDuplicate, OnNear
from ingest.encode import EncodeConfig
from ingest.ray_engine import check_ray
from ingest.redact import RedactSplit
from shards.codec import MAX_PIXELS, Encoding
from shards.console import UserError
from shards.depth import Depth
from shards.remote import check_writable, is_remote

_DEFAULT_SHORTER_SIDE = 512
_DEFAULT_MEGAPIXELS = MAX_PIXELS / 1e6
_MOST_MEGAPIXELS = 1000  # 1 GB of grey in each worker


@dataclass(frozen=True)
class IngestConfig:
    """How a data set becomes shards, whichever data set it is."""

    out: Path
    """Folder for the shards, or its URL (s3://bucket/folder); the data set gets its own folder in
    it. What is made for a URL is uploaded when it is whole, the manifest last; give each URL to
    one machine at a time (the same command on two does the work twice, for the same bytes)."""
    format: Encoding = "htj2k"
    """Image encoding: htj2k (lossless, a GPU can decode it), jpeg (quality 95), png, or keep (the
    source's own bytes, checked by decoding, of 8-bit images)."""
    shorter_side: int | None = None
    """Reduce images to this shorter side in pixels, never enlarge; 0 keeps the size.
    Default: 512, and 0 with --format keep."""
    depth: Depth | None = None
    """Bits that count in 16-bit images whose files declare none (PNG without sBIT, TIFF, PGM up to
    65535); images beyond it go to quarantine. Default: the fewest that hold all of them, found in a
    pass of its own."""
    seed: int = 0
    """Decides splits and the order of samples."""
    shard_mb: int = 256
    """Size of a shard, about, in MB."""
    on_duplicate: OnDuplicate = "drop"
    """Images with the same pixels: drop leaves one of each (none where their labels differ) and
    lists the others in excluded.parquet, fail stops, keep leaves them all, in one split."""
    near_duplicate: OnNear = "report"
    """Re-encoded, resized or toned copies, told by a perceptual hash: drop treats them as
    duplicates; report leaves them, in one split, and shows them in audit.html; keep does not
    look."""
    redact: Path | None = None
    """CSV (file,x,y,w,h in pixels of the original image) of rectangles to black out, such as words
    burnt into the image; also in copies of it with the same pixels, one of which may stay."""
    redact_split: RedactSplit = "test"
    """The split whose images are blacked out."""
    allow_missing: bool = False
    """Go on without the images that the metadata list and the source lacks."""
    max_bad: float = 0.01
    """Fail when a larger share of the images cannot be decoded (3 images are always allowed)."""
    max_megapixels: float = _DEFAULT_MEGAPIXELS
    """Images of more pixels go to quarantine before they are decoded (decompression bombs); so do
    those that still have more than 100 megapixels in the shard, whose readers refuse them."""
    dry_run: bool = False
    """Write nothing (but dicom's --key-file): say from the metadata what there would be, how large
    and how long, measured on the first 32 images."""
    retry: bool = False
    """For a finished data set: try its quarantined images again, and add those that decode now as
    shards of their own. The shards there are stay as they are."""
    workers: int = os.cpu_count() or 1
    """Worker processes. They change the speed, never a byte of the result."""
    engine: Literal["local", "ray"] = "local"
    """What decodes and encodes: processes on this machine, or the machines of a Ray cluster (pip
    install '.[ray]'; ray start --head --disable-usage-stats). Never changes a byte of the
    result."""
    ray_address: str | None = None
    """The cluster's head as host:port. Default: RAY_ADDRESS, else the cluster that this machine
    belongs to, else a Ray of our own with --workers processes."""
    work: Path | None = None
    """Local folder for what is made for a URL as --out, removed when all is uploaded: twice the
    output's size. Default: one per URL below ~/.cache/cxrstack."""
    progress: bool = True
    """Show progress bars."""

    def encode_config(self) -> EncodeConfig:
        """UserError when encoding and size contradict each other."""
        side = self.shorter_side
        if self.format == "keep" and side:
            raise UserError(f"--format keep keeps the source's bytes; drop --shorter-side {side}")
        if self.format == "keep" and self.redact:
            raise UserError("--format keep keeps the source's bytes; drop --redact")
        if side is None:
            side = 0 if self.format == "keep" else _DEFAULT_SHORTER_SIDE
        return EncodeConfig(self.format, side or None, int(self.max_megapixels * 1e6), self.depth)

    def limits(self) -> dict[str, float]:
        """What goes into the manifest's settings: nothing where a limit is the default."""
        changed: dict[str, float] = {}
        if self.max_megapixels != _DEFAULT_MEGAPIXELS:
            changed["max_megapixels"] = self.max_megapixels
        if self.depth is not None:
            changed["depth"] = self.depth
        return changed

    def check(self) -> None:
        """UserError for a number out of its range."""
        ranges = {
            "--shorter-side": (self.shorter_side or 0, 0, 65_535),
            "--shard-mb": (self.shard_mb, 1, 65_536),
            "--max-bad": (self.max_bad, 0, 1),
            "--workers": (self.workers, 1, 1024),
        }
        for option, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise UserError(f"{option} {value}; allowed: {low} to {high}")
        if not 0 < self.max_megapixels <= _MOST_MEGAPIXELS:  # which NaN is not
            raise UserError(
                f"--max-megapixels {self.max_megapixels:g}; allowed: above 0, to {_MOST_MEGAPIXELS}"
            )
        if self.dry_run and self.retry:
            raise UserError("--dry-run tells of a whole ingest, not of --retry; drop one")
        if self.ray_address and self.engine != "ray":
            raise UserError(f"--ray-address {self.ray_address} needs --engine ray")
        if self.engine == "ray":
            check_ray(self.ray_address)
        check_writable(self.out)
        if is_remote(self.out):
            if self.retry:
                raise UserError(
                    f"--retry works on a local folder; copy {self.out} to one, retry there, and "
                    "copy it back"
                )
        elif self.work is not None:
            raise UserError(f"--work {self.work} is for a URL as --out; drop it")
        if is_remote(self.work):
            raise UserError(f"--work {self.work}; allowed: a local folder")
