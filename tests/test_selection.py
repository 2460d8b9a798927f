"""ingest.selection, ingest.lists: one set of options for every source, nothing left out unsaid."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_runs import config, covid, nih

from ingest.given_split import GIVEN_SPLIT, keep_patients_apart, val_from_train
from ingest.record import Missing, Record, Source, SourceImage
from ingest.run import ingest
from ingest.selection import SelectionConfig, new_split, select
from ingest.sources import SOURCES
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.split import SplitConfig, assign_splits, shared_patients
from shards.console import UserError
from shards.labels import Vocabulary
from shards.manifest import load_manifest


class Rows(Source):
    """A data set of nothing but records; its own split has patients kept apart, as sources do."""

    name, synthetic = "rows", True
    vocabulary = Vocabulary(("a", "b"), exclusive=True)

    def __init__(self, rows: Sequence[Record], split: SplitConfig | None = None) -> None:
        self.rows = rows
        given_ = any(r.split for r in rows)
        self.split = split or (GIVEN_SPLIT if given_ else SplitConfig())

    def records(self) -> list[Record]:
        return val_from_train(keep_patients_apart(self.rows))

    def inventory(self) -> list[tuple[str, int]]:
        return []

    def surely_missing(self, records: Sequence[Record]) -> Missing | None:
        return None

    def images(self) -> Iterator[SourceImage]:
        return iter(())

    def paths(self) -> tuple[Path, ...]:
        return ()


def row(number: int, **fields) -> Record:
    name = f"{number}.png"
    return Record(name, f"k{number}", ("ab"[number % 2],), **fields)


def reasons(source: Source) -> dict[str | None, int]:
    return dict(Counter(r.excluded for r in source.records()))


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


VIEWS = [row(n, view=v) for n, v in enumerate(["PA", "AP", "L", "AP Supine", None, "l", "PA"])]


def test_views_are_left_out_and_counted():
    source = select(Rows(VIEWS), SelectionConfig(exclude_view=("L", "ap", "unknown")))
    assert reasons(source) == {
        None: 3,
        "view AP, as asked for": 1,
        "view L, as asked for": 1,
        "view l, as asked for": 1,
        "view unknown, as asked for": 1,
    }
    with pytest.raises(
        UserError, match=r"--exclude-view PAP: no image has it; there are: PA \(2\)"
    ):
        select(Rows(VIEWS), SelectionConfig(exclude_view=("PA", "PAP"))).records()


def test_a_reason_of_the_source_comes_first():
    rows = [row(0, view="L", excluded="lateral view"), row(1, view="L"), row(2, view="PA")]
    source = select(Rows(rows), SelectionConfig(exclude_view=("L",)))
    assert reasons(source) == {"lateral view": 1, "view L, as asked for": 1, None: 1}


def test_modalities_and_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row(n, modality=m) for n, m in enumerate(["CR", "DX", None, "CT"])]
    listed = write(tmp_path / "no.txt", ["./1.png", "", "k2", "typo.png", "other typo.png"])
    chosen = SelectionConfig(exclude=listed, exclude_modality=("CT",))
    assert reasons(select(Rows(rows), chosen)) == {
        None: 1,
        "in the exclusion list": 2,
        "modality CT, as asked for": 1,
    }
    err = capsys.readouterr().err
    assert "2 names in" in err
    assert "line 4" in err
    assert "typo" not in err
    write(listed, ["typo.png"])
    with pytest.raises(UserError, match=r"none of the 1 names in .* named as 0\.png"):
        select(Rows(rows), SelectionConfig(exclude=listed)).records()
    with pytest.raises(UserError, match="cannot read the list"):
        select(Rows(rows), SelectionConfig(exclude=tmp_path / "none.txt")).records()


def test_lists_replace_any_split(tmp_path: Path):
    train = write(tmp_path / "train.txt", ["0.png 0 1 0", "3.png"])
    test = write(tmp_path / "test.txt", ["k1"])
    both = SelectionConfig(train_list=train, test_list=test)
    for rows in ([row(n) for n in range(4)], [row(n, split="test") for n in range(4)]):
        records = select(Rows(rows), both).records()
        assert [r.split for r in records] == ["train_val", "test", None, "train_val"]
        assert records[2].excluded == "in none of the split lists"
    with_val = SelectionConfig(train_list=train, val_list=test)
    assert [r.split for r in select(Rows(rows), with_val).records()] == [
        "train",
        "val",
        None,
        "train",
    ]
    twice = SelectionConfig(train_list=train, test_list=test, val_list=test)
    with pytest.raises(UserError, match=r"both val \(line 1\) and test \(line 1 of"):
        select(Rows(rows), twice).records()


def test_a_list_that_tears_a_patient_apart_is_mended(tmp_path: Path):
    rows = [row(n, patient="p") for n in range(2)] + [row(2)]
    train = write(tmp_path / "train.txt", ["0.png", "2.png"])
    test = write(tmp_path / "test.txt", ["1.png"])
    source = select(Rows(rows), SelectionConfig(train_list=train, test_list=test))
    assert reasons(source) == {"patient also in test": 1, None: 2}


def test_who_made_way_comes_back_when_the_other_is_left_out():
    rows = [row(0, patient="p", split="train"), row(1, patient="p", split="test", view="L")]
    rows += [row(n, split="train", view="PA") for n in range(2, 5)]
    assert reasons(Rows(rows)) == {"patient also in test": 1, None: 4}
    source = select(Rows(rows), SelectionConfig(exclude_view=("L",)))
    assert reasons(source) == {"view L, as asked for": 1, None: 4}


SPLITS = st.sampled_from([None, "train", "val", "test", "train_val"])
RECORDS = st.lists(
    st.tuples(SPLITS, st.sampled_from([None, "p", "q", "r"]), st.sampled_from(["PA", "L"])),
    min_size=1,
    max_size=25,
)


@given(RECORDS, st.booleans(), st.booleans(), st.integers(0, 3))
def test_every_record_is_there_and_no_patient_twice(rows, random_split, laterals, seed):
    records = [row(n, split=s, patient=p, view=v) for n, (s, p, v) in enumerate(rows)]
    unwanted = ("L",) if laterals and any(r.view == "L" for r in records) else ()
    chosen = SelectionConfig(random_split=random_split, exclude_view=unwanted, cap_per_class=99)
    source = select(Rows(records), chosen)
    found = source.records()
    assert [r.key for r in found] == [r.key for r in records]
    kept = [r for r in found if not r.excluded]
    assert not any(r.view in unwanted for r in kept)
    splits = assign_splits(kept, source.split, seed)
    assert splits.keys() == {r.key for r in kept}
    assert not shared_patients(kept, splits)
    if random_split:
        assert all(r.split is None for r in kept)
        assert len(kept) == sum(r.view not in unwanted for r in records)


@pytest.mark.parametrize(
    ("old", "options", "expected"),
    [
        (SplitConfig(), {}, SplitConfig()),
        (SplitConfig(), {"test_per_class": 60}, SplitConfig((0.8, 0.2, 0.0), 60)),
        (
            SplitConfig(),
            {"test_per_class": 60, "fractions": (0.9, 0.1, 0.0)},
            SplitConfig((0.9, 0.1, 0.0), 60),
        ),
        (SplitConfig((0.8, 0.2, 0.0), 60), {"test_per_class": 5}, SplitConfig((0.8, 0.2, 0.0), 5)),
        (
            SplitConfig((0.8, 0.2, 0.0), 60),
            {"fractions": (0.5, 0.1, 0.4)},
            SplitConfig((0.5, 0.1, 0.4)),
        ),
        (GIVEN_SPLIT, {"random_split": True}, SplitConfig()),
        (
            SplitConfig((0.8, 0.2, 0.0), 60),
            {"random_split": True},
            SplitConfig((0.8, 0.2, 0.0), 60),
        ),
        (SplitConfig(), {"cap_per_class": 7}, SplitConfig(cap_per_class=7)),
    ],
)
def test_splits(old: SplitConfig, options: dict, expected: SplitConfig):
    assert new_split(old, SelectionConfig(**options)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_per_class": 0}, "--test-per-class 0; at least 1"),
        ({"cap_per_class": 0}, "--cap-per-class 0; at least 1"),
        ({"fractions": (0.5, 0.1, 0.1)}, "--fractions 0.5 0.1 0.1; allowed"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, "--fractions nan 0.5 0.5; allowed"),
        ({"train_list": Path("a")}, "belong together"),
        ({"test_list": Path("a")}, "belong together"),
        (
            {"train_list": Path("a"), "test_list": Path("a"), "random_split": True},
            "--random-split and --train-list exclude each other",
        ),
        (
            {"train_list": Path("a"), "test_list": Path("a"), "test_per_class": 3},
            "--test-per-class and --train-list exclude each other",
        ),
        ({"test_per_class": 1}, "--test-per-class 1 changes nothing.*add --random-split"),
        ({"fractions": (0.8, 0.1, 0.1)}, "--fractions changes nothing.*add --random-split"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str):
    rows = [row(n, split=("train", "val", "test")[n % 3]) for n in range(9)]
    with pytest.raises(UserError, match=message):
        select(Rows(rows), SelectionConfig(**options)).records()


def test_official_lists_can_be_set_aside(tiny_raw: Path, tmp_path: Path):
    source = nih(tiny_raw)
    names = [r.file for r in source.records()]
    src = tmp_path / "nih"
    src.mkdir()
    for path in (tiny_raw / "chestxray14").iterdir():
        (src / path.name).symlink_to(path)
    for name, listed in (("train_val_list.txt", names[:30]), ("test_list.txt", names[30:40])):
        (src / name).unlink(missing_ok=True)
        write(src / name, listed)
    official = ChestXray14(ChestXray14Config(src))
    assert Counter(r.split for r in official.records())["test"] == 10
    assert reasons(official)["in none of the split lists"] == 8
    anew = select(official, SelectionConfig(random_split=True))
    assert {(r.split, r.excluded) for r in anew.records()} == {(None, None)}
    lateral = select(official, SelectionConfig(exclude_view=("AP",)))
    assert reasons(lateral)["in none of the split lists"] > 0


def test_what_was_asked_for_is_in_the_manifest(tiny_raw: Path, tmp_path: Path):
    chosen = SelectionConfig(exclude_view=("AP",), fractions=(0.6, 0.2, 0.2))
    source = select(nih(tiny_raw), chosen)
    manifest = ingest(source, config(tmp_path))
    there = sum(r.view == "AP" for r in source.records())
    assert manifest.excluded["view AP, as asked for"] == there > 0
    assert manifest.settings["split"]["fractions"] == [0.6, 0.2, 0.2]
    with pytest.raises(UserError, match="what lists and --exclude make of them"):
        ingest(nih(tiny_raw), config(tmp_path))


def test_saved_lists_give_the_same_split_for_a_set_of_folders(
    tiny_raw: Path, tiny_shards: Path, tmp_path: Path
):
    lists = tiny_shards / "covid-radiography/lists"
    options = {f"{p.stem}_list": p for p in lists.iterdir()}
    again = covid(tiny_raw, test_per_class=None, exclude=None, **options)
    manifest = ingest(again, config(tmp_path))
    assert manifest.splits == load_manifest(tiny_shards / "covid-radiography").splits
    for path in lists.iterdir():
        written = tmp_path / "covid-radiography/lists" / path.name
        assert written.read_bytes() == path.read_bytes()


def test_no_source_has_options_of_the_selection():
    common = set(SelectionConfig.__dataclass_fields__)
    for config_type, _ in SOURCES.values():
        assert not common & set(config_type.__dataclass_fields__)
