"""shards.splits: the names that people give to train, val and test, wherever they write them."""

from dataclasses import dataclass

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from shards.console import UserError
from shards.splits import SPLITS, SplitName, canonical, named, read_as, splits_of

# Written out once more: what each word means by itself.
WORDS = {
    "train": ["train", "training", "tr", "trn"],
    "val": ["val", "valid", "validation", "validate", "dev", "devel", "development", "tuning"],
    "test": ["test", "testing", "ts", "holdout", "hold-out", "held_out"],
    "train_val": ["train_val", "trainval", "train+val", "train-valid", "training validation"],
}
BEHIND = ["", "set", "_set", " set", "-data", "_images", " split", "dataset"]
SPELT = st.sampled_from([(word, split) for split, words in WORDS.items() for word in words])
CASES = st.sampled_from([str.lower, str.upper, str.title, str.capitalize, str.swapcase])


@given(SPELT, st.sampled_from(BEHIND), CASES, st.sampled_from(["", " ", "_"]))
def test_case_signs_and_what_stands_behind_do_not_count(spelt, behind, case, around):
    word, split = spelt
    name = around + case(word + behind) + around
    assert splits_of([name], "here") == {name: split}
    assert canonical(name) == split


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=12))
def test_no_text_breaks_it_and_what_means_nothing_stays(name):
    found = splits_of([name], "here")
    assert found == {} or found[name] in SPLITS
    assert canonical(name) in (name, *SPLITS)


@pytest.mark.parametrize(
    "name",
    ["", "-", "normal", "covid", "fold1", "train1", "test 2", "stage_2_train", "set", "data"],
)
def test_other_names_mean_none(name):
    assert splits_of([name, "test"], "here") == {"test": "test"}
    assert canonical(name) == name


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train eval", "train test"),
        ("train dev eval", "train val test"),
        ("training validation evaluation", "train val test"),
        ("train eval test", "train val test"),
        ("Train Eval_Set Testing", "train val test"),
        ("dev eval", "val test"),
        ("Train train TRAIN", "train train train"),
    ],
)
def test_eval_is_for_validation_beside_a_test_set_and_the_test_set_without_one(names, splits):
    expected = dict(zip(names.split(), splits.split()))
    assert splits_of(names.split(), "here") == expected
    assert splits_of(names.split()[::-1], "here") == expected


@pytest.mark.parametrize("names", ["val dev", "train training", "test holdout", "val eval test"])
def test_two_words_for_one_split_are_refused(names):
    with pytest.raises(UserError, match=r"^here: '.*' and '.*' both mean the split .*; rename one"):
        splits_of(names.split(), "here")


@pytest.mark.parametrize(
    ("asked", "names", "found"),
    [
        ("test", "train Testing", {"Testing"}),
        ("Test", "test TEST train", {"test", "TEST"}),
        ("testing", "train eval", {"eval"}),
        ("val", "train eval test", {"eval"}),
        ("dev", "dev val test", {"dev"}),  # each by its own word
        ("eval", "eval val test", {"eval"}),
        ("eval", "val test", set()),
        ("site-1", "site1 site-1", {"site-1"}),
        ("val", "train test", set()),
    ],
)
def test_what_is_asked_for_is_found_by_its_word_then_by_its_meaning(asked, names, found):
    assert named(asked, names.split(), "here") == found


def test_a_meaning_that_is_not_clear_is_refused():
    with pytest.raises(UserError, match="'dev' and 'val' both mean the split val"):
        named("validation", ["dev", "val"], "here")


def test_what_was_read_is_noted_where_it_is_written_otherwise():
    assert read_as({"train": "train", "test": "test"}) == ()
    assert read_as({"Train": "train", "eval": "test", "val": "val"}) == (
        "names of splits: 'Train' as train, 'eval' as test",
    )


@dataclass(frozen=True)
class Options:
    split: SplitName = "test"
    other: SplitName | None = None


def test_an_option_takes_every_spelling():
    assert tyro.cli(Options, args=[]) == Options("test", None)
    words = ["--split", "Training Set", "--other", "Valid"]
    assert tyro.cli(Options, args=words) == Options("train", "val")
    assert tyro.cli(Options, args=["--split", "site-1"]) == Options("site-1")
