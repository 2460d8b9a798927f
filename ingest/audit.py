"""Exact duplicates: images with the same decoded pixels, of which one may stay."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

SAME_BYTES = "duplicate: same bytes"
SAME_PIXELS = "duplicate: same pixels"
CONFLICT = "duplicate with other labels"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image as the audit sees it; the hashes are of the source's bytes and of the pixels."""

    key: str
    labels: tuple[str, ...]
    sha256: str
    pixel_sha256: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why an image is left out, and the key of the image it repeats."""

    reason: str
    duplicate_of: str


def find_duplicates(candidates: Iterable[Candidate]) -> dict[str, Dropped]:
    """key -> why it goes. The first in key order stays, unless the labels of the group differ:
    then nobody knows which are right, and all go."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.pixel_sha256].append(candidate)  # same bytes have the same pixels
    dropped: dict[str, Dropped] = {}
    for group in groups.values():
        if len(group) > 1:
            dropped |= _judge(sorted(group, key=lambda c: c.key))
    return dropped


def _judge(group: list[Candidate]) -> dict[str, Dropped]:
    first, *others = group
    if len({frozenset(c.labels) for c in group}) > 1:
        conflicts = {c.key: Dropped(CONFLICT, first.key) for c in others}
        return conflicts | {first.key: Dropped(CONFLICT, others[0].key)}
    return {
        c.key: Dropped(SAME_BYTES if c.sha256 == first.sha256 else SAME_PIXELS, first.key)
        for c in others
    }
