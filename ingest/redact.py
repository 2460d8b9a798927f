"""Words burnt into images, covered by black rectangles in one split (Bassi & Attux cover them in
their test images, by hand): a CSV `file,x,y,w,h` in pixels of the original image, upright.

Images are encoded before their split is known, so those to be covered are read and encoded once
more, from the source's own pixels: the rectangles are drawn before the size is reduced.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ingest.choice import Choice, Found, Kept
from ingest.encode import EncodeConfig, Encoded, Rejected, encode_image
from ingest.engines import Job, LocalEngine
from ingest.lists import Named
from ingest.record import Record, Source
from ingest.spool import Entry, Spool
from shards.codec import BadImage, decode_source, encode
from shards.console import RunFailed, UserError, warn
from shards.manifest import Manifest
from shards.rectangles import Rectangle, Rectangles, read_rectangles

RedactSplit = Literal["train", "val", "test", "all"]


def by_file(
    rectangles: Rectangles, records: Sequence[Record], path: Path, named: Named
) -> Rectangles:
    """The rectangles by the files of the records. UserError when the data set has no such file:
    its words would stay to be read."""
    files = {r.key: r.file for r in records} | {r.file: r.file for r in records}
    found: dict[str, tuple[Rectangle, ...]] = defaultdict(tuple)
    unknown = 0
    for name, several in rectangles.items():
        file = next((files[n] for n in named(name) if n in files), None)
        if file is None:
            unknown += 1
        else:
            found[file] += several
    if unknown:
        raise UserError(
            f"{path} names {unknown} files that the data set lacks; its files are named as "
            f"{records[0].file}"
        )
    return dict(found)


def settings(path: Path | None, split: RedactSplit) -> dict[str, Any]:
    """What goes into the manifest's settings: nothing without a table."""
    if path is None:
        return {}
    read_rectangles(path)  # UserError when it is no table
    return {"redact": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "split": split}}


def refuse_redacted(manifest: Manifest, *, kept_split: str | None = None) -> None:
    """UserError when images of another split than `kept_split` would change their split though
    words are covered in one split only."""
    split = manifest.settings.get("redact", {}).get("split", "all")
    if split not in ("all", kept_split):
        raise UserError(
            f"words are covered in the {split} images of {manifest.dataset} alone, so its images "
            "cannot change splits; ingest it again, or with --redact-split all"
        )


def cover(
    source: Source,
    choice: Choice,
    rectangles: Rectangles,
    split: RedactSplit,
    spool: Spool,
    config: EncodeConfig,
    workers: int,
) -> Choice:
    """The choice with covered images in place of those of the split that the table names, or that
    have the same pixels as one that it names: of copies, another one may stay. They keep the hashes
    of the source's images, which tell copies."""
    boxes = by_pixels(choice.found, rectangles)
    wanted = {
        k.record.location: k
        for k in choice.kept
        if k.entry.pixel_sha256 in boxes and split in (k.split, "all")
    }
    _warn_of_near(choice, boxes, {k.record.key for k in wanted.values()}, split)
    if not wanted:
        return choice
    by_bytes = {k.entry.sha256: boxes[k.entry.pixel_sha256] for k in wanted.values()}
    for kept in wanted.values():
        _check_inside(kept, by_bytes[kept.entry.sha256])
    covered: dict[str, Entry] = {}
    with LocalEngine(
        workers, partial(encode_covered, config=config, rectangles=by_bytes)
    ) as engine:
        for job, outcome in engine.map(_jobs(source, wanted)):
            kept = wanted[job.location]
            covered[kept.record.key] = _store(spool, job, outcome, kept, by_bytes)
    if len(covered) < len(wanted):
        raise RunFailed(
            f"{len(wanted) - len(covered)} images to be covered are gone from the source"
        )
    return replace(
        choice,
        kept=[
            replace(k, entry=covered[k.record.key]) if k.record.key in covered else k
            for k in choice.kept
        ],
    )


def by_pixels(found: Sequence[Found], rectangles: Rectangles) -> Rectangles:
    """SHA-256 of size and pixels -> all rectangles of the listed images that have them."""
    boxes: dict[str, tuple[Rectangle, ...]] = defaultdict(tuple)
    for one in found:
        if one.record.file in rectangles:
            several = (*boxes[one.entry.pixel_sha256], *rectangles[one.record.file])
            boxes[one.entry.pixel_sha256] = tuple(dict.fromkeys(several))
    return dict(boxes)


def _warn_of_near(
    choice: Choice, boxes: Rectangles, covered: Collection[str], split: RedactSplit
) -> None:
    """A near copy has other pixels or another size, for which the rectangles may be wrong."""
    listed = {f.record.key for f in choice.found if f.entry.pixel_sha256 in boxes}
    kept = {k.record.key: k for k in choice.kept if split in (k.split, "all")}
    bare = {
        kept[e.duplicate_of].record.file: e.record.file
        for e in choice.excluded
        if e.record.key in listed and e.duplicate_of in kept.keys() - covered
    }
    if bare:
        stays, went = next(iter(bare.items()))
        warn(
            f"{len(bare)} images stay uncovered, such as {stays}, for which {went} of the --redact "
            "table was dropped as a near duplicate; give rectangles for those too"
        )


def encode_covered(data: bytes, config: EncodeConfig, rectangles: Rectangles) -> Encoded | Rejected:
    """One source file's bytes -> what the shard stores of it, covered. rectangles: by SHA-256."""
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 not in rectangles:
        return Rejected("another file than before", sha256)
    try:
        grey = decode_source(data, config.max_pixels, config.depth)
        return encode_image(encode(blacken(grey, rectangles[sha256]), "png"), config)
    except BadImage as error:
        return Rejected(str(error), sha256)


def blacken(grey: np.ndarray, rectangles: Sequence[Rectangle]) -> np.ndarray:
    """A copy of (H, W) uint8 with every pixel that a rectangle touches at 0."""
    black = np.array(grey)
    for box in rectangles:
        left, top = int(box.x), int(box.y)
        right, bottom = int(np.ceil(box.x + box.w)), int(np.ceil(box.y + box.h))
        black[top:bottom, left:right] = 0
    return black


def _jobs(source: Source, wanted: Mapping[str, Kept]) -> Iterator[Job]:
    left = set(wanted)
    for image in source.images():
        if image.location in left:
            left.remove(image.location)
            try:
                data = image.read()
            except BadImage as error:
                file = wanted[image.location].record.file
                raise RunFailed(f"{file} cannot be covered: {error}; ingest it again") from None
            yield Job(image.location, image.stamp, data)
            if not left:
                return


def _store(
    spool: Spool, job: Job, outcome: Encoded | Rejected, kept: Kept, rectangles: Rectangles
) -> Entry:
    """Put the covered image into the spool; its entry tells the source's image as before."""
    if isinstance(outcome, Rejected):
        raise RunFailed(f"{kept.record.file} cannot be covered: {outcome.reason}; ingest it again")
    boxes = repr(rectangles[kept.entry.sha256]).encode()
    name = f"covered {hashlib.sha256(boxes).hexdigest()} {job.location}"
    spool.add(name, job.stamp, outcome)
    stored = spool.entries[name]
    return replace(
        kept.entry,
        location=name,
        chunk=stored.chunk,
        offset=stored.offset,
        size=stored.size,
        extension=stored.extension,
    )


def _check_inside(kept: Kept, rectangles: Sequence[Rectangle]) -> None:
    width, height = kept.entry.width, kept.entry.height
    for box in rectangles:
        if box.x >= width or box.y >= height:
            raise UserError(
                f"a rectangle of {kept.record.file} begins at {box.x:g}, {box.y:g}, outside its "
                f"{width} x {height} pixels; coordinates are those of the original image"
            )
