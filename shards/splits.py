"""The names of splits, as data sets and people write them -> train, val, test or train_val.

One rule for folders, columns, tables and options: case, spaces and signs do not count, nor does a
`set`, `data` or `images` behind the word.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from shards.console import UserError

SPLITS = TRAIN, VAL, TEST, TRAIN_VAL = ("train", "val", "test", "train_val")
_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "va"), VAL),
    **dict.fromkeys(("dev", "devel", "development", "tune", "tuning"), VAL),
    **dict.fromkeys(("test", "testing", "tst", "ts", "te", "holdout", "heldout"), TEST),
    **dict.fromkeys(("trainval", "trainvalid", "trainvalidation", "trainingvalidation"), TRAIN_VAL),
}
# Beside a test set they are for validation (TensorFlow's train, eval, test); without one they are
# the test set (train, dev, eval of the challenges).
_EITHER = ("eval", "evaluation")
_BEHIND = re.compile(r"(?<=.)(?:set|data|dataset|split|images|imgs)$")


def splits_of(names: Collection[str], where: object) -> dict[str, str]:
    """Name -> train, val, test or train_val, for those of the names that mean one beside each
    other. UserError, which begins with `where`, when two different words mean the same split."""
    words = {name: _word(name) for name in names}
    found = {name: _WORDS[word] for name, word in words.items() if word in _WORDS}
    of_either = VAL if TEST in found.values() else TEST
    found |= {name: of_either for name, word in words.items() if word in _EITHER}
    first: dict[str, str] = {}
    for name, split in found.items():
        other = first.setdefault(split, name)
        if words[other] != words[name]:
            raise UserError(
                f"{where}: {other!r} and {name!r} both mean the split {split}; rename one"
            )
    return found


def named(asked: str, names: Collection[str], where: object) -> set[str]:
    """Which of the names of splits somebody asks for: those of the same word, else those that mean
    the same; a word that means no split asks for itself alone."""
    if canonical(asked) not in SPLITS:
        return {asked} & set(names)
    same = {name for name in names if _word(name) == _word(asked)}
    meant = () if same else splits_of(names, where).items()
    return same or {name for name, split in meant if split == canonical(asked)}


def read_as(splits: Mapping[str, str]) -> tuple[str, ...]:
    """A note of the names that are written otherwise than the splits they mean: none for none."""
    in_order = sorted(splits.items(), key=lambda item: SPLITS.index(item[1]))
    others = [f"{name!r} as {split}" for name, split in in_order if name != split]
    return (f"names of splits: {', '.join(others)}",) if others else ()


def canonical(name: str) -> str:
    """train, val, test or train_val where the name means one of them whatever stands beside it,
    else the name itself."""
    return _WORDS.get(_word(name), name)


def _word(name: str) -> str:
    letters = re.sub(r"[\W_]", "", name).casefold()
    return letters if letters in _WORDS else _BEHIND.sub("", letters)


# An option that names a split of shards.
SplitName = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="SPLIT",
        instance_from_str=lambda words: canonical(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
