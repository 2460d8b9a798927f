"""A finished data set split anew, from its records alone: no image is decoded.

Run: python -m ingest resplit DIR... [--out OUT] --seed 1
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from ingest.assemble import Head, assemble
from ingest.choice import Excluded, Found, Kept, Policy, at_most, choose, lasting
from ingest.command import hand_on
from ingest.finished import Finished
from ingest.lists import apply_split_lists, split_lists
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.record import Record
from ingest.redact import refuse_redacted
from ingest.split import TEST, TRAIN_VAL, SplitConfig, check_counts, check_fractions
from ingest.spool import FOLDER_NAME as SPOOL
from ingest.spool import differences, lock, remove_spool
from ingest.tables import EXCLUDED, excluded_row, read_rows
from shards.console import RunFailed, UserError, progress, stderr
from shards.manifest import FILE_NAME as MANIFEST
from shards.manifest import Manifest, load_manifest, manifest_hash
from shards.verify import find_all

HISTORY = "resplit_of"
# The settings that are a resplit's own; the others are those of the ingest, for good.
CHANGED = ("seed", "shard_mb", "split", "lists", "keep_test", HISTORY)


@dataclass(frozen=True)
class ResplitConfig:
    """Split finished data sets anew: another seed, cap, share or list. No image is decoded; images
    that the first ingest left out stay out."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of data sets, or folders that hold several."""
    out: Path | None = None
    """Folder for the new shards. Default: in place, at once when all is written."""
    seed: int | None = None
    """Decides splits and the order of samples. Default: as before."""
    fractions: tuple[float, float, float] | None = None
    """Shares of train, val and test. Default: as before."""
    test_per_class: int | None = None
    """Test images of each class; the shares of train and val divide the rest."""
    cap_per_class: int | None = None
    """Use no more than this many images of each class; with --keep-test, beside the test set."""
    keep_test: bool = False
    """Leave the test set as it is and divide the rest into train and val."""
    train_list: Path | None = None
    """Text file of the files for training, one a line as in lists/train.txt; needs --test-list."""
    val_list: Path | None = None
    """The same for validation. Without it, a share of the training patients is set apart."""
    test_list: Path | None = None
    """The same for testing. What is in no list is left out."""
    shard_mb: int | None = None
    """Size of a shard, about, in MB. Default: as before."""
    progress: bool = True
    """Show progress bars."""

    def lists(self) -> dict[str, Path]:
        """Split -> list. UserError for options that contradict each other or change nothing."""
        lists = split_lists(self.train_list, self.val_list, self.test_list)
        if lists and self.keep_test:
            raise UserError("--keep-test and --test-list exclude each other")
        if self.test_per_class is not None and (lists or self.keep_test):
            given = "--keep-test says" if self.keep_test else "lists say"
            raise UserError(
                f"--test-per-class {self.test_per_class} changes nothing: {given} which images "
                "test; drop one"
            )
        if self.fractions and lists and TRAIN_VAL not in lists:
            raise UserError("--fractions changes nothing: the lists divide all images; drop one")
        return lists


def resplit(config: ResplitConfig) -> list[tuple[Path, Manifest]]:
    """Split every data set anew; returns their folders and manifests."""
    for folder in config.folders:
        _recover(folder.resolve())
    found = [path for folder in config.folders for path in find_all(folder)]
    if not found:
        raise UserError("no data set named; give the folders of finished data sets")
    return [_resplit(folder.resolve(), config) for folder in found]


def _resplit(folder: Path, config: ResplitConfig) -> tuple[Path, Manifest]:
    old = load_manifest(folder)
    refuse_redacted(old, kept_split=TEST if config.keep_test else None)
    split = new_split(old, config)
    lists = config.lists()
    settings = _settings(folder, old, split, lists, config)
    target = config.out.resolve() / old.dataset if config.out else folder
    if _is_done(target, old if target == folder else None, settings):
        if target != folder:
            remove_spool(target)  # of a run that was cut short behind its manifest
        stderr.print(f"{target} is split this way already; nothing to do")
        return target, load_manifest(target)
    in_place = target == folder
    work = _work(folder) if in_place else target
    with _held(folder if in_place else work):
        if in_place and load_manifest(folder) != old:
            raise UserError(f"{folder} was changed by another run meanwhile; start this one again")
        if not in_place and _is_done(target, None, settings):
            return target, load_manifest(target)  # by another run, since this one looked
        (work / SPOOL).mkdir(parents=True, exist_ok=True)
        try:
            manifest = _write(folder, work, old, settings, split, lists, config)
        except UserError:
            if in_place:
                shutil.rmtree(work.parent)
            raise
        shutil.rmtree(work / SPOOL)
        hand_on(folder, target)
        if in_place:
            _swap(folder)
    return target, manifest


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """No other ingest, retry or resplit writes to the data set in the meantime."""
    spool = folder / SPOOL
    spool.mkdir(parents=True, exist_ok=True)
    with lock(spool) as held:
        try:
            yield
        except BaseException:  # a run that fails leaves a finished set as it was
            if (folder / MANIFEST).exists() and [*spool.glob("*")] == [Path(held.name)]:
                shutil.rmtree(spool)
            raise


def new_split(old: Manifest, config: ResplitConfig) -> SplitConfig:
    """The data set's split with what the command changes. UserError for numbers out of range."""
    known = old.settings["split"]
    fractions = config.fractions or tuple(known["fractions"])
    per_class = known["test_per_class"] if config.fractions is None else None
    cap, was = config.cap_per_class, known["cap_per_class"]
    check_fractions(fractions)
    check_counts(config.test_per_class, cap, config.shard_mb)
    if cap and was and cap > was:
        raise UserError(
            f"--cap-per-class {cap}, but {old.dataset} was capped at {was} and holds no more; "
            "ingest it again with the larger cap"
        )
    return SplitConfig(fractions, config.test_per_class or per_class, cap or was)


def _settings(
    folder: Path,
    old: Manifest,
    split: SplitConfig,
    lists: Mapping[str, Path],
    config: ResplitConfig,
) -> dict[str, Any]:
    given = {name: hashlib.sha256(_bytes(path)).hexdigest() for name, path in lists.items()}
    changed = {
        "seed": old.settings["seed"] if config.seed is None else config.seed,
        "shard_mb": config.shard_mb or old.settings["shard_mb"],
        "split": asdict(split) | {"fractions": list(split.fractions)},
        "lists": given,
        "keep_test": config.keep_test,
        HISTORY: manifest_hash(folder),
    }
    return {**old.settings, **changed}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error


def _is_done(target: Path, same: Manifest | None, settings: Mapping[str, Any]) -> bool:
    """Whether the target holds this split. UserError when it holds another data set."""
    if same is not None:  # in place: the history says what it was made from, not how it is split
        return {**same.settings, HISTORY: ""} == {**settings, HISTORY: ""}
    if not (target / MANIFEST).exists():
        return False
    there = load_manifest(target).settings
    if there != settings:
        raise UserError(
            f"{target} is finished, with other settings: {differences(there, settings)}; name "
            "another --out or remove it"
        )
    return True


def _write(
    folder: Path,
    work: Path,
    old: Manifest,
    settings: Mapping[str, Any],
    split: SplitConfig,
    lists: Mapping[str, Path],
    config: ResplitConfig,
) -> Manifest:
    finished = Finished([folder])
    with progress("verify", finished.samples, shown=config.progress) as advance:
        (samples,) = finished.load(advance)
    records = _records(samples, lists, keep_test=config.keep_test)
    usable = [Found(r, k.entry, k.source) for r, k in zip(records, samples) if not r.excluded]
    left_out = [Excluded(r, r.excluded) for r in records if r.excluded]
    policy = Policy(settings.get("on_duplicate", "drop"), settings.get("near_duplicate", "report"))
    # A cap of before holds as it is; applied again it would take images of a kept test set.
    split = replace(split, cap_per_class=config.cap_per_class)
    choice = choose(usable, split, settings["seed"], policy, keep_test=config.keep_test)
    if not choice.kept:
        raise RunFailed(f"no image of {old.dataset} is left; the lists name none of its files")
    head = Head(
        old.dataset,
        old.vocabulary,
        old.shorter_side,
        old.synthetic,
        settings,
        [*read_rows(folder / EXCLUDED), *(excluded_row(e) for e in left_out)],
        Counter(old.excluded) + Counter(e.reason for e in left_out),
        _notes(old, len(left_out) + len(choice.excluded)),
        old.depth,
    )
    if (folder / QUARANTINE).is_file():
        shutil.copyfile(folder / QUARANTINE, work / QUARANTINE)
    return assemble(work, head, choice, finished, work / SPOOL, shown=config.progress)


def _notes(old: Manifest, left_out: int) -> list[str]:
    """What stays true of the old notes: covered images may be among those left out now."""
    said = [*lasting(old.notes)]
    everywhere = old.settings.get("redact", {}).get("split", "all") == "all"
    return at_most(said) if left_out and everywhere else said


def _records(
    samples: Sequence[Kept], lists: Mapping[str, Path], *, keep_test: bool
) -> list[Record]:
    if lists:
        return apply_split_lists([k.record for k in samples], lists)
    if keep_test:
        return [replace(k.record, split=TEST if k.split == TEST else TRAIN_VAL) for k in samples]
    return [k.record for k in samples]


def _work(folder: Path) -> Path:
    # One level deeper than a data set beside this one, where nothing looks for data sets.
    return folder.parent / f".resplit-{folder.name}" / folder.name


def _swap(folder: Path) -> None:
    """Put the new data set in the old one's place: two renames, which _recover completes."""
    work = _work(folder)
    folder.rename(work.parent / "old")
    work.rename(folder)
    shutil.rmtree(work.parent)


def refuse_cut(folder: Path) -> None:
    """UserError when a kill cut the swap of this data set in two, which _recover completes."""
    place = _work(folder).parent
    if (place / "old").exists() and not (folder / MANIFEST).exists():
        raise UserError(
            f"a resplit of {folder} was cut short, and the finished set lies in {place}; the same "
            "resplit again puts it back (or remove that folder to ingest anew)"
        )


def _recover(folder: Path) -> None:
    """Complete the swaps that a kill cut in two, of this data set or of those in this folder."""
    for old in (*folder.glob(".resplit-*/old"), *_work(folder).parent.glob("old")):
        target = old.parent.parent / old.parent.name.removeprefix(".resplit-")
        with _held(old):
            if not target.exists():
                _work(target).rename(target)
            if not (target / MANIFEST).exists():
                raise UserError(
                    f"{target} is not finished, and {old.parent} has the finished set that a "
                    "resplit was to put there; remove the one that is not wanted"
                )
            shutil.rmtree(old.parent)
