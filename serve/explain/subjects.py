"""What is to be explained: image files, samples of shards, or chosen rows of a score file, whose
images lie in shards or in the archives that were scored.

Every image comes as its encoded bytes; workers decode it (serve/decode.py). Keys come from file
names as in shards; a DICOM file's name may hold a patient's, so its key is made of its bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.archives import Archive
from serve.judged import calls
from serve.predictions import join, read_predictions
from serve.score_folder import ScoreFolder
from serve.score_inputs import find_archives
from serve.truth import read_label_table
from serve.units import archive_chunks
from serve.vocabularies import truth_of
from shards.console import UserError, warn
from shards.labels import NO, YES, Vocabulary
from shards.manifest import Manifest, check_shards, load_manifest, shard_path
from shards.reader import read_component, read_index
from shards.sample import LABELS_EXTENSION, META_EXTENSION, Box, SampleMeta, make_key

MAX_FILE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Subject:
    """name: for people (a path, or the key); data: the image's bytes; vocabulary, labels: of its
    data set, (L,) int8, None of a file; boxes: in pixels of the (width, height) original."""

    key: str
    name: str
    data: bytes
    vocabulary: Vocabulary | None = None
    labels: np.ndarray | None = None
    boxes: tuple[Box, ...] = ()
    width: int = 0
    height: int = 0

    @property
    def truth(self) -> tuple[str, ...] | None:
        """The labels that hold; None where nobody knows."""
        if self.vocabulary is None or self.labels is None:
            return None
        return self.vocabulary.decode(self.labels)

    def wrong(self, network: Vocabulary, label: str) -> bool | None:
        """Whether it is wrong that the network calls it so; None where that is not known."""
        if self.vocabulary is None or self.labels is None:
            return None
        truth = truth_of(network, self.vocabulary, self.labels[None])[0, network.index(label)]
        return {YES: False, NO: True}.get(int(truth))


@dataclass(frozen=True)
class Where:
    """Which rows of a score file: true: a label that holds; predicted: a label that was called;
    error: the call is wrong."""

    true: str | None = None
    predicted: str | None = None
    error: bool = False


def parse_where(text: str) -> Where:
    """`true=COVID-19,predicted=Normal,error` in any order, any part of it. UserError otherwise."""
    found: dict[str, str] = {}
    for term in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = term.partition("=")
        if name not in ("true", "predicted", "error") or (name == "error") == bool(value):
            raise UserError(
                f"--where {term!r}: not understood; it takes true=LABEL, predicted=LABEL, error, "
                "joined by commas"
            )
        if name in found:
            raise UserError(f"--where names {name} twice; take one of them")
        found[name] = value
    return Where(found.get("true"), found.get("predicted"), "error" in found)


def from_files(paths: Sequence[Path]) -> Iterator[Subject]:
    """The files, in order. UserError before the first one is read when one is missing or too large,
    or when two would have the same key."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" ({len(missing)} of {len(paths)} are missing)" if len(missing) > 1 else ""
        raise UserError(f"no file {missing[0]}{more}; name image files (not folders or archives)")
    taken: dict[str, Path] = {}
    for path in paths:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} has over {MAX_FILE_BYTES} bytes; that is no radiograph")
        key = _key_of_file(path)
        if key in taken:
            raise UserError(
                f"{taken[key]} and {path} would be written to the same file; explain them in two "
                "commands with two --out folders"
            )
        taken[key] = path
    return (Subject(key, str(path), path.read_bytes()) for key, path in taken.items())


def _key_of_file(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return make_key(path.stem)
    with path.open("rb") as file:
        return f"dicom-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def from_archives(paths: Sequence[Path], keys: Sequence[str], scores: Path) -> Iterator[Subject]:
    """The images of these keys of the scores in archives and folders, which are read as serve score
    read them. A warning counts the keys that none of them has and names the first. UserError when a
    path is missing."""
    # A table does not say whether --keep-names was there.
    keep_names = scores.is_dir() and bool(ScoreFolder(scores).request().get("keep_names"))
    archives = find_archives(paths, keep_names=keep_names)
    return _archived(archives, dict.fromkeys(keys), keep_names)


def scored_depth(scores: Path | None) -> int | None:
    """That the images were scored with; None where that is not known."""
    if scores is None or not scores.is_dir():
        return None
    depth: int | None = ScoreFolder(scores).request().get("depth")
    return depth


def _archived(
    archives: Sequence[Archive], wanted: dict[str, None], keep_names: bool
) -> Iterator[Subject]:
    chosen = len(wanted)
    for archive in archives:
        for chunk in archive_chunks(archive, lambda unit: False, None, keep_names=keep_names):
            for one in chunk.inputs:
                if one.key in wanted and isinstance(one.data, bytes):
                    del wanted[one.key]
                    yield Subject(one.key, one.member, one.data)
            if not wanted:
                return
    warn(
        f"{len(wanted)} of the {chosen} chosen images cannot be read from these archives, the "
        f"first of them {next(iter(wanted))}; name the archives that were scored, as they were then"
    )


def from_shards(folder: Path, split: str, keys: Sequence[str] | None = None) -> Iterator[Subject]:
    """A split's samples in its order, or those of these keys. UserError when there is no such
    split, or when the shards do not match their manifest."""
    manifest = open_split(folder, split)
    wanted = None if keys is None else set(keys)
    return _samples(folder, manifest, split, wanted)


def open_split(folder: Path, split: str) -> Manifest:
    """The manifest of a data set that has this split. UserError otherwise."""
    manifest = load_manifest(folder)
    if split not in manifest.splits:
        raise UserError(f"no split {split!r} in {folder}; it has: {', '.join(manifest.splits)}")
    check_shards(folder, manifest, (split,))
    return manifest


def _samples(
    folder: Path, manifest: Manifest, split: str, wanted: set[str] | None
) -> Iterator[Subject]:
    for shard in manifest.of_split(split):
        path = shard_path(folder, shard)
        with path.open("rb") as file:
            for components in read_index(path):
                key = components[0].key
                if wanted is not None and key not in wanted:
                    continue
                parts = {c.extension: read_component(file.fileno(), c, path) for c in components}
                labels = np.frombuffer(parts.pop(LABELS_EXTENSION), np.int8)
                meta = SampleMeta.from_json(parts.pop(META_EXTENSION))
                yield Subject(
                    key=key,
                    name=key,
                    data=next(iter(parts.values())),
                    vocabulary=manifest.vocabulary,
                    labels=labels,
                    boxes=meta.boxes,
                    width=meta.width,
                    height=meta.height,
                )


def choose_scored(scores: Path, where: Where, limit: int | None) -> list[str]:
    """The keys of a score file's rows that were called --where's label, at most `limit`, in the
    order of the file; rows that lack a score are left out, as in evaluate. UserError when
    nothing is left, or when the truth would have to be known."""
    if where.true is not None or where.error:
        raise UserError("--where true=... and error need the truth: name --shards")
    found = read_predictions(scores)
    chosen = np.array([error is None for error in found.errors], bool)
    chosen &= ~np.isnan(found.probabilities).any(axis=1)
    if where.predicted is not None:
        exclusive = found.adds_up if found.exclusive is None else found.exclusive
        called = calls(found.probabilities, exclusive and len(found.labels) > 1)
        chosen &= called[:, _index(found.labels, where.predicted, "predicted")]
    keys = [key for key, take in zip(found.keys, chosen) if take][:limit]
    if not keys:
        raise UserError(f"no row of {scores} is what --where asks for: {where}")
    if len(set(keys)) < len(keys):
        repeated = next(key for key, count in Counter(keys).items() if count > 1)
        raise UserError(f"the key {repeated} stands twice in {scores}; score the archives apart")
    return keys


def choose_keys(
    folder: Path, split: str, scores: Path | None, where: Where, limit: int | None
) -> list[str]:
    """The keys of a split that --where asks for, at most `limit`, in the order of the scores (or of
    the shards, without scores). UserError when a label is unknown or nothing is left."""
    truth = read_label_table(folder, split)
    keys, chosen = truth.keys, np.ones(len(truth.keys), bool)
    if scores is not None:
        joined = join(read_predictions(scores), truth)
        keys, called = joined.keys, calls(joined.probabilities, joined.exclusive)
        chosen = ~np.isnan(joined.probabilities).any(axis=1)
        if where.predicted is not None:
            chosen &= called[:, _index(joined.labels, where.predicted, "predicted")]
        if where.error:
            chosen &= _wrong(called, joined.targets, joined.exclusive)
    elif where.predicted is not None or where.error:
        raise UserError("--where predicted=... and error need --scores (of python -m serve score)")
    if where.true is not None:
        has_it = truth.labels[:, _index(truth.names, where.true, "true")] == YES
        true = {key for key, has in zip(truth.keys, has_it) if has}
        chosen &= np.array([key in true for key in keys], bool)
    found = [key for key, take in zip(keys, chosen) if take][:limit]
    if not found:
        raise UserError(f"no image of split {split!r} is what --where asks for: {where}")
    return found


def _index(names: Sequence[str], label: str, term: str) -> int:
    if label not in names:
        raise UserError(f"--where {term}={label}: no such label; there are: {', '.join(names)}")
    return list(names).index(label)


def _wrong(called: np.ndarray, targets: np.ndarray, exclusive: bool) -> np.ndarray:
    """(N,) bool: a called label is known not to hold, or one that holds was not called (where they
    exclude each other the second follows from the first)."""
    wrong = (called & (targets == NO)).any(axis=1)
    return wrong if exclusive else wrong | (~called & (targets == YES)).any(axis=1)


def boxed_keys(folder: Path, split: str, labels: Sequence[str]) -> list[str]:
    """The samples with a box of one of the labels, in order; reads no image."""
    manifest = open_split(folder, split)
    found = []
    for shard in manifest.of_split(split):
        path = shard_path(folder, shard)
        with path.open("rb") as file:
            for components in read_index(path):
                meta = next(c for c in components if c.extension == META_EXTENSION)
                boxes = SampleMeta.from_json(read_component(file.fileno(), meta, path)).boxes
                if any(box.label in labels for box in boxes):
                    found.append(components[0].key)
    return found
