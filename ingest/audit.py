"""Duplicates and near duplicates: which pairs there are, and which of their images go.

Two images are duplicates when their decoded pixels are the same, and near duplicates when their
perceptual hashes are (ingest/near.py).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ingest.near import near_pairs
from shards.console import RunFailed

SAME_BYTES = "duplicate: same bytes"
SAME_PIXELS = "duplicate: same pixels"
CONFLICT = "duplicate with other labels"
NEAR = "near duplicate"
NEAR_CONFLICT = "near duplicate with other labels"

OnDuplicate = Literal["drop", "fail", "keep"]
OnNear = Literal["drop", "report", "keep"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image as the audit sees it: the hashes of the source's bytes and of the pixels, and the
    perceptual one (empty: not comparable)."""

    key: str
    labels: tuple[str, ...]
    sha256: str
    pixel_sha256: str
    near_hash: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why an image is left out, and the key of the image it repeats."""

    reason: str
    duplicate_of: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two keys in order, why they are a pair, and the bits in which their hashes differ."""

    first: str
    second: str
    reason: str
    distance: int = 0


@dataclass(frozen=True)
class Audit:
    """dropped: key -> why; pairs: all that were found, those that stay too."""

    dropped: Mapping[str, Dropped]
    pairs: tuple[Pair, ...]


def audit(candidates: Sequence[Candidate], on_duplicate: OnDuplicate, on_near: OnNear) -> Audit:
    """Look for both kinds. RunFailed when there are duplicates and they shall fail the run."""
    repeats = find_duplicates(candidates)
    pairs = [_pair(key, repeat) for key, repeat in repeats.items()]
    if repeats and on_duplicate == "fail":
        one = min(pairs, key=lambda p: p.second)
        raise RunFailed(
            f"{len(repeats)} duplicates, such as {one.second} of {one.first}; --on-duplicate drop "
            "leaves one of each, keep keeps all"
        )
    dropped = repeats if on_duplicate == "drop" else {}
    if on_near != "keep":
        single = [c for c in _one_of_each(candidates) if c.key not in dropped]
        near = find_near(single)
        pairs += near
        dropped = dropped | (drop_near(single, near) if on_near == "drop" else {})
    unique = {(p.first, p.second): p for p in pairs}
    return Audit(dropped, tuple(unique[names] for names in sorted(unique)))


def find_duplicates(candidates: Iterable[Candidate]) -> dict[str, Dropped]:
    """key -> why it goes. The first in key order stays, unless the labels of the group differ:
    then nobody knows which are right, and all go."""
    dropped: dict[str, Dropped] = {}
    for group in _groups(candidates):
        if len(group) > 1:
            dropped |= _judge(group)
    return dropped


def find_near(candidates: Sequence[Candidate]) -> list[Pair]:
    """The pairs of near duplicates; of several equal hashes each is paired with the first."""
    comparable = sorted((c for c in candidates if c.near_hash), key=lambda c: c.key)
    pairs = near_pairs([c.near_hash for c in comparable])
    return [
        Pair(
            comparable[i].key,
            comparable[j].key,
            NEAR_CONFLICT if _differ([comparable[i], comparable[j]]) else NEAR,
            bits,
        )
        for i, j, bits in pairs
    ]


def drop_near(candidates: Sequence[Candidate], pairs: Sequence[Pair]) -> dict[str, Dropped]:
    """key -> why it goes. What hangs together through pairs is one group, judged as duplicates
    are: its first stays, unless the labels differ."""
    by_key = {c.key: c for c in candidates}
    dropped: dict[str, Dropped] = {}
    for keys in connected((p.first, p.second) for p in pairs):
        first, *others = keys
        reason = NEAR_CONFLICT if _differ([by_key[key] for key in keys]) else NEAR
        dropped |= {key: Dropped(reason, first) for key in others}
        if reason == NEAR_CONFLICT:
            dropped[first] = Dropped(reason, others[0])
    return dropped


def connected(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The groups of names that hang together through the pairs, each sorted, in order."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(parent):
        groups[root(name)].append(name)
    return sorted(groups.values())


def _groups(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Images of the same pixels, each group in key order; same bytes have the same pixels."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.pixel_sha256].append(candidate)
    return [sorted(group, key=lambda c: c.key) for group in groups.values()]


def _one_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [group[0] for group in _groups(candidates)]


def _judge(group: list[Candidate]) -> dict[str, Dropped]:
    first, *others = group
    if _differ(group):
        conflicts = {c.key: Dropped(CONFLICT, first.key) for c in others}
        return conflicts | {first.key: Dropped(CONFLICT, others[0].key)}
    return {
        c.key: Dropped(SAME_BYTES if c.sha256 == first.sha256 else SAME_PIXELS, first.key)
        for c in others
    }


def _differ(group: Iterable[Candidate]) -> bool:
    return len({frozenset(c.labels) for c in group}) > 1


def _pair(key: str, repeat: Dropped) -> Pair:
    first, second = sorted((key, repeat.duplicate_of))
    return Pair(first, second, repeat.reason)
