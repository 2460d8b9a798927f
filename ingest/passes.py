"""A source's images -> the spool: one pass, and one more for 16-bit images that declare no depth.

Their depth is that of all of them together (shards/depth.py), so the first pass only measures them.
Once an image is met that needs 16 bits, the depth is known, and the second pass begins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from ingest.config import IngestConfig
from ingest.encode import EncodeConfig, Rejected, encode_image
from ingest.engines import Encode, Engine, Job, LocalEngine
from ingest.quarantine import check_limit
from ingest.ray_engine import RayEngine
from ingest.record import BadFile, Record, Source, SourceImage
from ingest.remote import read_ahead
from ingest.spool import Entry, Spool
from shards.codec import BadImage
from shards.console import Advance, UserError, first_few, progress, stderr, warn
from shards.depth import DEPTHS, UNSETTLED, depth_holding


def encode_all(
    source: Source,
    records: Sequence[Record],
    spool: Spool,
    config: IngestConfig,
    encoding: EncodeConfig,
    missing: int = 0,
) -> EncodeConfig:
    """Afterwards the spool holds exactly the images that are there. Returns how they are encoded:
    a depth that is UNSETTLED is found, and stays so where no image needs one.
    missing: how many are known not to be there, so that the bar's total is what there is to do."""
    if encoding.depth != UNSETTLED:
        _one_pass(source, records, spool, config, encoding, missing)
        return encoding
    encoding = replace(encoding, depth=spool.depth)  # of a run that was cut short
    while True:
        beyond = _one_pass(source, records, spool, config, encoding, missing, find=True)
        bits = [*beyond, *(entry.bits for entry in spool.entries.values() if entry.bits)]
        depth = depth_holding(max(bits)) if bits else UNSETTLED
        if depth == encoding.depth:
            break
        encoding = replace(encoding, depth=depth)
        images = f"{len(bits)} image{'s' if len(bits) > 1 else ''}"
        said = f"16-bit images without a declared depth: {depth} bits, found over {images}"
        stderr.print(f"{said}; --depth sets another", soft_wrap=True)
    if bits:
        _warn_of_few_levels(sorted(bits), depth)
    return encoding


def _warn_of_few_levels(bits: Sequence[int], depth: int) -> None:
    """Where a few images decide the depth, which the most do not need. bits: sorted."""
    most = depth_holding(bits[len(bits) // 2])
    if most < depth:
        count = sum(one <= most for one in bits)
        warn(
            f"{count} of {len(bits)} 16-bit images use at most {most} of {depth} bits, so at most "
            f"{2 ** (most + 8 - depth)} of 256 grey levels; --depth {most} quarantines the others"
        )


def _one_pass(
    source: Source,
    records: Sequence[Record],
    spool: Spool,
    config: IngestConfig,
    encoding: EncodeConfig,
    missing: int,
    *,
    find: bool = False,
) -> list[int]:
    """The bits that images beyond the depth need; find: they are no bad images, and the first of
    them that needs the largest depth ends the pass."""
    wanted = {r.location for r in records if not r.excluded}
    seen: set[str] = set()
    bad: list[Entry] = []
    beyond: list[int] = []
    with (
        progress("encode", len(wanted) - missing, shown=config.progress) as advance,
        _open_engine(config, partial(encode_image, config=encoding)) as engine,
    ):
        here = config.engine == "local"
        lacking = _lacking(source, wanted, seen, spool, encoding.depth, advance)
        for job, outcome in engine.map(_jobs(lacking, spool, advance, here)):
            advance(1, f"{len(bad)} quarantined")
            if find and isinstance(outcome, Rejected) and outcome.bits:
                beyond.append(outcome.bits)
                if depth_holding(outcome.bits) == DEPTHS[-1]:
                    return beyond
                continue
            spool.add(job.location, job.stamp, outcome)
            if isinstance(outcome, Rejected):
                bad.append(spool.entries[job.location])
                check_limit(bad, len(wanted), config.max_bad)
    spool.retain(seen)
    absent = sorted(wanted - seen)
    if absent and not config.allow_missing:
        raise UserError(_missing_message(absent, len(wanted), source))
    check_limit([e for e in spool.entries.values() if e.problem], len(seen), config.max_bad)
    return beyond


def _open_engine(config: IngestConfig, encode: Encode) -> Engine:
    if config.engine == "ray":
        return RayEngine(config.workers, encode, config.ray_address)
    return LocalEngine(config.workers, encode)


def _jobs(
    lacking: Iterator[SourceImage], spool: Spool, advance: Advance, here: bool
) -> Iterator[Job]:
    """here: workers are on this machine, and read its files."""
    for image, read in read_ahead(lacking):
        if here and image.path:
            yield Job(image.location, image.stamp, image.path)
            continue
        try:
            yield Job(image.location, image.stamp, read())
        except BadImage as error:
            sha256 = error.sha256 if isinstance(error, BadFile) else ""
            spool.add(image.location, image.stamp, Rejected(str(error), sha256))
            advance(1)


def _lacking(
    source: Source,
    wanted: set[str],
    seen: set[str],
    spool: Spool,
    depth: int | None,
    advance: Advance,
) -> Iterator[SourceImage]:
    """The wanted images that the spool lacks; `seen` fills up as the pass goes on."""
    for image in source.images():
        if image.location not in wanted or image.location in seen:
            continue
        seen.add(image.location)
        if spool.has(image.location, image.stamp, depth):
            advance(1)
            continue
        yield image


def _missing_message(missing: Sequence[str], wanted: int, source: Source) -> str:
    files = [name for name, _ in source.inventory()]
    return (
        f"{len(missing)} of {wanted} images are missing, such as {', '.join(missing[:3])}; there "
        f"are {first_few(files)}; complete the download, or add --allow-missing "
        "(what is encoded is kept)"
    )
