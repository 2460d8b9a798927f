"""Images that cannot be used: the table of them, and how many a run may have."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.spool import Entry
from shards.console import RunFailed

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
    rows = [
        {"source": source, "member": _text(e.location), "reason": e.problem, "sha256": e.sha256}
        for e in sorted(bad, key=lambda e: e.location)
    ]
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), path)


def _text(location: str) -> str:
    return location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
