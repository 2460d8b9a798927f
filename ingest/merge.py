"""Several finished data sets -> one, with labels mapped, copies dropped across them, split anew.

Run: python -m ingest merge --map FILE --out DIR DATASET_DIR...
"""

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from ingest.assemble import Head, assemble
from ingest.audit import OnDuplicate, OnNear
from ingest.choice import Excluded, Found, Policy, choose, handed_on
from ingest.finished import Finished
from ingest.label_map import LabelMap, check_label_map, label_names, read_label_map
from ingest.near import NAME as NEAR_HASH
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.quarantine import write_quarantine
from ingest.record import Record
from ingest.redact import refuse_redacted
from ingest.split import SplitConfig, check_counts, check_fractions
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.spool import differences, lock, remove_spool
from ingest.tables import excluded_row
from shards.console import RunFailed, UserError, progress, stderr
from shards.labels import Vocabulary
from shards.manifest import FILE_NAME as MANIFEST
from shards.manifest import SYNTHETIC_SOURCES, Manifest, load_manifest, manifest_hash
from shards.sample import make_key
from shards.verify import find_all

UNMAPPED = "a label that the mapping leaves out"
NOT_ONE = "not exactly one label"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True)
class MergeConfig:
    """Merge finished data sets into one: labels by a mapping file, duplicates across the data sets
    dropped, patients apart in the new split. No image is decoded."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of data sets, or folders that hold several."""
    map: Path
    """CSV (dataset,source_label,label) or TOML ([dataset], "source label" = "label"). An empty
    label leaves out the images that have it."""
    out: Path
    """Folder for the merged set, which gets its own folder in it."""
    name: str = "merged"
    """Name of the merged set."""
    exclusive: bool = False
    """Leave out images that have not exactly one label. Always so where every data set has
    exclusive labels."""
    seed: int = 0
    """Decides splits and the order of samples."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test."""
    test_per_class: int | None = None
    """Test images of each class; the shares of train and val divide the rest."""
    cap_per_class: int | None = None
    """Use no more than this many images of each class."""
    on_duplicate: OnDuplicate = "drop"
    """As in an ingest."""
    near_duplicate: OnNear = "report"
    """As in an ingest."""
    shard_mb: int = 256
    """Size of a shard, about, in MB."""
    progress: bool = True
    """Show progress bars."""

    def check(self) -> None:
        """UserError for a name or a number out of its range."""
        if not _NAME.fullmatch(self.name):
            raise UserError(f"--name {self.name!r}; allowed: up to 40 of A-Z a-z 0-9 _ -")
        check_fractions(self.fractions)
        check_counts(self.test_per_class, self.cap_per_class, self.shard_mb)


def merge(config: MergeConfig) -> Manifest:
    """Make `config.out/<name>/`; returns its manifest, at once when it is finished already."""
    config.check()
    labels = read_label_map(config.map)
    folder = config.out / config.name
    # Where a folder of several is named, what a run before made in it is none of them.
    finished = Finished(
        [
            path
            for given in config.folders
            for path in find_all(given)
            if path == given or path.resolve() != folder.resolve()
        ]
    )
    if folder.resolve() in (path.resolve() for path in finished.folders):
        raise UserError(f"{folder} is one of the data sets to merge; name another --out or --name")
    manifests = _by_name(finished)
    for manifest in manifests.values():
        refuse_redacted(manifest)
    check_label_map(labels, manifests, config.map)
    exclusive = config.exclusive or all(m.exclusive for m in manifests.values())
    vocabulary = Vocabulary(label_names(labels, manifests), exclusive)
    settings = _settings(finished, manifests, labels, vocabulary, config)
    if _is_done(folder, settings):
        remove_spool(folder)  # of a run that was cut short behind its manifest
        stderr.print(f"{folder} is finished already; nothing to do")
        return load_manifest(folder)
    (folder / SPOOL).mkdir(parents=True, exist_ok=True)
    with lock(folder / SPOOL):
        if _is_done(folder, settings):  # by another run, since this one looked: its shards stay
            return load_manifest(folder)
        manifest = _write(folder, finished, labels, vocabulary, settings, config)
    shutil.rmtree(folder / SPOOL)
    return manifest


def _by_name(finished: Finished) -> dict[str, Manifest]:
    """UserError when the data sets cannot be told apart or do not go together."""
    manifests = {m.dataset: m for m in finished.manifests}
    if len(manifests) < len(finished.manifests) or not manifests:
        names = ", ".join(sorted(m.dataset for m in finished.manifests))
        raise UserError(f"found the data sets: {names or 'none'}; each name must occur once")
    for what in ("shorter_side", "preprocessing_version"):
        values = {name: getattr(m, what) for name, m in manifests.items()}
        if len(set(values.values())) > 1:
            raise UserError(
                f"the data sets differ in {what}: "
                f"{', '.join(f'{name} {value}' for name, value in values.items())}; ingest them "
                "alike"
            )
    return manifests


def _settings(
    finished: Finished,
    manifests: Mapping[str, Manifest],
    labels: LabelMap,
    vocabulary: Vocabulary,
    config: MergeConfig,
) -> dict[str, Any]:
    split = SplitConfig(config.fractions, config.test_per_class, config.cap_per_class)
    hashes = (manifest_hash(folder) for folder in finished.folders)
    drawn = sorted({name for m in manifests.values() for name in _synthetic_sources(m)})
    return {
        "merged": dict(zip(manifests, hashes)),
        **({SYNTHETIC_SOURCES: drawn} if drawn else {}),
        "map": {name: dict(labels[name]) for name in manifests},
        "exclusive": vocabulary.exclusive,
        "seed": config.seed,
        "shard_mb": config.shard_mb,
        "split": asdict(split) | {"fractions": list(split.fractions)},
        "on_duplicate": config.on_duplicate,
        "near_duplicate": config.near_duplicate,
        "near_hash": NEAR_HASH,
    }


def _synthetic_sources(manifest: Manifest) -> Sequence[str]:
    """The sources of a data set, as its samples name them, whose images are synthetic."""
    if not manifest.synthetic:
        return ()
    settings = manifest.settings
    parts: Sequence[str] = [*settings.get("merged", (manifest.dataset,))]
    return settings.get(SYNTHETIC_SOURCES, parts)


def _is_done(folder: Path, settings: Mapping[str, Any]) -> bool:
    if not (folder / MANIFEST).exists():
        return False
    there = load_manifest(folder).settings
    if there != settings:
        raise UserError(
            f"{folder} is finished, with other settings: {differences(there, settings)}; name "
            "another --out or --name, or remove it"
        )
    return True


def _write(
    folder: Path,
    finished: Finished,
    labels: LabelMap,
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    config: MergeConfig,
) -> Manifest:
    with progress("verify", finished.samples, shown=config.progress) as advance:
        loaded = finished.load(advance)
    found: list[Found] = []
    left_out: list[Excluded] = []
    for manifest, samples in zip(finished.manifests, loaded):
        mapping = labels[manifest.dataset]
        for one in samples:
            record = map_record(one.record, manifest.dataset, mapping, vocabulary)
            if record.excluded:
                left_out.append(Excluded(record, record.excluded))
            else:
                found.append(Found(record, one.entry, one.source))
    split = SplitConfig(config.fractions, config.test_per_class, config.cap_per_class)
    choice = choose(found, split, config.seed, Policy(config.on_duplicate, config.near_duplicate))
    if not choice.kept:
        raise RunFailed(
            f"no image is left for {config.name}: {_reasons(left_out, choice.excluded)}"
        )
    first = finished.manifests[0]
    head = Head(
        config.name,
        vocabulary,
        first.shorter_side,
        any(m.synthetic for m in finished.manifests),
        settings,
        [excluded_row(e) for e in left_out],
        Counter(e.reason for e in left_out),
        [note for m in finished.manifests for note in handed_on(m.dataset, m.notes)],
        _common_depth(finished.manifests),
    )
    write_quarantine(folder / QUARANTINE, config.name, [])
    return assemble(folder, head, choice, finished, folder / SPOOL, shown=config.progress)


def _common_depth(manifests: Sequence[Manifest]) -> int | None:
    """That of those that have one; None where they differ: for a new file none of them holds."""
    depths = {m.depth for m in manifests if m.depth is not None}
    return depths.pop() if len(depths) == 1 else None


def map_record(
    record: Record, dataset: str, mapping: Mapping[str, str], vocabulary: Vocabulary
) -> Record:
    """The record as the merged set has it: labels mapped; key, file and patient told apart by the
    data set. Where labels are not exclusive, those that the data set never gives are unknown."""
    present = tuple(dict.fromkeys(mapping[label] for label in record.labels))
    never = set(vocabulary.names) - set(mapping.values())
    unknown = (never | {mapping[label] for label in record.unknown}) - set(present)
    if vocabulary.exclusive:
        unknown = set()
    excluded = None
    if "" in present:
        excluded = UNMAPPED
    elif vocabulary.exclusive and len(present) != 1:
        excluded = NOT_ONE
    boxes = tuple(replace(box, label=mapping.get(box.label) or box.label) for box in record.boxes)
    return replace(
        record,
        location=f"{dataset}/{record.location}",
        key=make_key(f"{dataset}/{record.key}"),
        labels=present,
        unknown=tuple(name for name in vocabulary.names if name in unknown),
        boxes=boxes,
        excluded=excluded,
    )


def _reasons(*several: Sequence[Excluded]) -> str:
    counts = Counter(e.reason for excluded in several for e in excluded)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
