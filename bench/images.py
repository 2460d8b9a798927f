"""The images that both sides work on: real ones from a folder, or synthetic radiographs.

They are copied into a work folder under numbers, so that each side reads the same files.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from bench.config import BenchConfig
from ingest.config import IngestConfig
from ingest.encode import EncodeConfig, Encoded, encode_image
from ingest.engines import Job, LocalEngine, content
from ingest.files import archive_images, folder_image, is_image_name
from ingest.radiograph import draw
from ingest.record import Missing, Record, Source, SourceImage
from ingest.run import ingest
from ingest.split import SplitConfig
from ingest.synthetic import CLASSES
from shards.codec import Encoding, decode_grey, encode, read_header
from shards.console import RunFailed, UserError, progress
from shards.labels import COVID
from shards.preprocess import prepare

_ARCHIVES = (".tar.gz", ".tgz")


@dataclass(frozen=True)
class RawImages:
    """paths: encoded images, different from each other, every one of which decodes."""

    paths: tuple[Path, ...]
    synthetic: bool

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        """Number, and the commonest format and size: `150 PNG 1024 x 1024`."""
        headers = (read_header(path.read_bytes()) for path in self.paths)
        kinds = Counter(f"{h.format} {h.width} x {h.height}" for h in headers)
        (kind, _), *others = kinds.most_common()
        return f"{len(self)} {kind}" + (" and other sizes" if others else "")


def raw_images(config: BenchConfig, folder: Path, times: int = 1) -> RawImages:
    """At most `config.number` images in `folder`, and `times - 1` turned or mirrored PNG copies of
    each. UserError when `config.images` has too few."""
    raw = _raw_images(config, folder)
    paths = [_turned(path, number) for path in raw.paths for number in range(times)]
    return replace(raw, paths=tuple(paths))


def _turned(path: Path, number: int) -> Path:
    """Copy `number` (0: the image itself; to 7) of the eight that turns and a mirror give."""
    if number == 0:
        return path
    grey = decode_grey(path.read_bytes())
    image = np.rot90(grey, number % 4)
    image = image[:, ::-1] if number >= 4 else image
    copy = path.with_name(f"{path.stem}-{number}.png")
    # Level 6: libpng's default, as the NIH's files have it, so that they take as long to decode.
    Image.fromarray(np.ascontiguousarray(image)).save(copy, compress_level=6)
    return copy


def _raw_images(config: BenchConfig, folder: Path) -> RawImages:
    folder.mkdir(parents=True)
    if config.images is None:
        return RawImages(tuple(_draw_all(config, folder)), synthetic=True)
    if not config.images.is_dir():
        raise UserError(f"no folder {config.images}; --images names one with images or tar.gz")
    paths = tuple(_copy_sound(config, config.images, folder))
    if len(paths) < 2:
        raise UserError(
            f"{len(paths)} usable images in {config.images}; at least 2 different ones are "
            "needed, as files or in tar.gz archives"
        )
    return RawImages(paths, synthetic=False)


def _draw_all(config: BenchConfig, folder: Path) -> Iterator[Path]:
    findings = list(CLASSES.values())
    with progress("draw", config.number) as advance:
        for number in range(config.number):
            image = draw(number, findings[number % len(findings)], size=config.side)
            path = folder / f"{number:06d}.png"
            path.write_bytes(encode(image, "png"))
            advance(1)
            yield path


def _copy_sound(config: BenchConfig, source: Path, folder: Path) -> Iterator[Path]:
    """Worker processes decode each image first: a peer may crash where ours quarantines."""
    check = partial(encode_image, config=EncodeConfig("keep", None))
    seen: set[str] = set()
    jobs = (Job(i.location, i.stamp, i.read()) for i in _source_images(source))
    with progress("copy", config.number) as advance, LocalEngine(config.workers, check) as engine:
        for job, outcome in engine.map(jobs):
            if isinstance(outcome, Encoded) and outcome.pixel_sha256 not in seen:
                path = folder / f"{len(seen):06d}.{outcome.extension}"
                path.write_bytes(content(job.data))
                seen.add(outcome.pixel_sha256)
                advance(1)
                yield path
            if len(seen) == config.number:
                return


def _source_images(folder: Path) -> Iterator[SourceImage]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name.endswith(_ARCHIVES):
            yield from (i for i in archive_images(path) if is_image_name(i.location))
        elif is_image_name(path.name):
            yield folder_image(path, path.name)


class RawSource(Source):
    """The work folder as a Source for the ingest: everything is training data, class Normal."""

    name = "bench"
    vocabulary = COVID
    split = SplitConfig((1.0, 0.0, 0.0))

    def __init__(self, raw: RawImages) -> None:
        self.raw, self.synthetic = raw, raw.synthetic

    def records(self) -> list[Record]:
        return [Record(path.name, path.stem, ("Normal",)) for path in self.raw.paths]

    def inventory(self) -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_size) for path in self.raw.paths]

    def surely_missing(self, records: Sequence[Record]) -> Missing | None:
        return None

    def images(self) -> Iterator[SourceImage]:
        return (folder_image(path, path.name) for path in self.raw.paths)

    def paths(self) -> tuple[Path, ...]:
        return tuple({path.parent for path in self.raw.paths})


def ingest_raw(
    raw: RawImages,
    out: Path,
    encoding: Encoding,
    config: BenchConfig,
    workers: int | None = None,
    shard_mb: int = 256,
) -> Path:
    """Our ingest of all images into `out`; returns the data set's folder."""
    settings = IngestConfig(
        out,
        format=encoding,
        shorter_side=None if encoding == "keep" else config.shorter_side,
        workers=workers or config.workers,
        shard_mb=shard_mb,
        progress=False,
    )
    manifest = ingest(RawSource(raw), settings)
    found = manifest.splits["train"].samples
    if found != len(raw):
        raise RunFailed(f"the ingest kept {found} of {len(raw)} images")
    return out / RawSource.name


def network_inputs(raw: RawImages, config: BenchConfig, size: int) -> np.ndarray:
    """(N, size, size) uint8: every image, as the preprocessing contract gives it."""
    images = (decode_grey(path.read_bytes()) for path in raw.paths)
    return np.stack([prepare(image, config.shorter_side, size) for image in images])


def fresh_folders(work: Path) -> Iterator[Path]:
    """A new, empty folder for each repetition: an ingest or a scoring resumes in an old one."""
    for number in count():
        folder = work / f"{number:04d}"
        folder.mkdir(parents=True)
        yield folder
