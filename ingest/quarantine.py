"""Images that cannot be used: the table of them, and how many a run may have."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from ingest.spool import Entry
from ingest.tables import table_bytes
from shards.console import RunFailed
from shards.writer import write_atomic

FILE_NAME = "quarantine.parquet"
ALWAYS_ALLOWED = 3  # images: one bad image in a set of twenty is no reason to stop
_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "member", "reason", "sha256")])


def check_limit(bad: Sequence[Entry], images: int, max_bad: float) -> None:
    """RunFailed, with the commonest reasons, when over `max_bad` of the images are bad."""
    if len(bad) <= max(ALWAYS_ALLOWED, max_bad * images):
        return
    kinds = Counter((entry.problem or "").split(":", 1)[0] for entry in bad)
    reasons = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(4))
    raise RunFailed(
        f"{len(bad)} of {images} images cannot be used: {reasons}; such as {bad[0].location!r}; "
        f"--max-bad allows {max_bad:.2%}: mend the source, or raise --max-bad"
    )


def write_quarantine(path: Path, source: str, bad: Sequence[Entry]) -> None:
    """One row per image: source, member, reason, SHA-256 of its bytes (empty: never read)."""
    write_quarantine_rows(path, [quarantine_row(entry, source) for entry in bad])


def write_quarantine_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """The same from rows."""
    write_atomic(path, quarantine_bytes(rows))


def quarantine_bytes(rows: Sequence[Mapping[str, str]]) -> bytes:
    """The table's file, in the order of the members."""
    return table_bytes(sorted(rows, key=lambda r: r["member"]), _SCHEMA)


def quarantine_row(entry: Entry, source: str) -> dict[str, str]:
    """A row of quarantine.parquet."""
    member, reason = _text(entry.location), entry.problem or ""
    return {"source": source, "member": member, "reason": reason, "sha256": entry.sha256}


def _text(location: str) -> str:
    return location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
