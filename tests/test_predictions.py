"""Scores and labels are read strictly, and brought together by key without losing count."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_archives import WRITERS
from test_score import config, pictures
from tiny_model import LABELS

from serve.metrics import measure
from serve.predictions import PredictionTable, ScoredBy, join, read_predictions
from serve.score import score
from serve.score_folder import ScoreFolder
from serve.truth import LabelTable, read_label_table
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest
from shards.reader import read_split


def scores(keys, labels=("a", "b"), values=None, errors=None, **known) -> PredictionTable:
    if values is None:
        values = np.full((len(keys), len(labels)), 0.4)  # they do not add up to 1
    errors = tuple(errors or [None] * len(keys))
    return PredictionTable(tuple(keys), labels, values, errors, **known)


def truth(keys, names=("a", "b"), labels=None, **known) -> LabelTable:
    if labels is None:
        labels = np.zeros((len(keys), len(names)), np.int8)
    return LabelTable(tuple(keys), names, labels, None, {}, False, **known)


def write(path, text: str):
    path.write_text(text)
    return path


def test_a_folder_of_scores_reads_back(tmp_path):
    members = pictures(5) | {"99999.png": b"broken"}
    score(config(tmp_path, WRITERS["a.tar"](tmp_path / "a.tar", members)))
    found = read_predictions(tmp_path / "out")
    rows = ScoreFolder(tmp_path / "out").read().to_pylist()
    assert found.keys == tuple(row["key"] for row in rows)
    assert found.labels == LABELS
    assert (found.exclusive, found.synthetic, found.damaged) == (True, True, ())
    assert found.probabilities.dtype == np.float64
    assert [list(p) for p in found.probabilities[:5]] == [
        [row[f"prob_{name}"] for name in LABELS] for row in rows[:5]
    ]
    assert np.isnan(found.probabilities[5]).all()
    assert found.errors == (None,) * 5 + ("not an image",)
    digest = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert found.scored_by == ScoredBy("m.onnx", digest, "1" * 64, "fp32")
    labels = truth(found.keys, LABELS, np.eye(6, 3, dtype=np.int8))
    assert measure(join(found, labels)).scored_by == found.scored_by


def test_the_row_for_the_rest_of_an_archive_is_no_image(tmp_path):
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(3))
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(RunFailed):
        score(config(tmp_path, archive))
    found = read_predictions(tmp_path / "out")
    assert "" not in found.keys
    assert len(found.damaged) == 1


def test_an_unfinished_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no scores\.json"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("prefix", ["", "prob_"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_from_tables(tmp_path, prefix, suffix):
    columns = {
        "key": ["x", "y", "z"],
        "view": ["PA", "AP", "PA"],
        f"{prefix}No Finding": [0.25, 1.0, None],
        f"{prefix}Hernia": [0.5, 0.0, None],
    }
    path = tmp_path / f"scores{suffix}"
    if suffix == ".csv":
        lines = [
            ",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values())
        ]
        write(path, "\n".join([",".join(columns), *lines]) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    found = read_predictions(path)
    assert found.keys == ("x", "y", "z")
    assert found.labels == ("No Finding", "Hernia")
    np.testing.assert_array_equal(found.probabilities, [[0.25, 0.5], [1, 0], [np.nan, np.nan]])
    assert found.errors == (None, None, "no score")
    assert found.exclusive is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("name,a\nx,1\n", "no column 'key'; it has: name, a"),
        ("key\nx\n", "no column for a label"),
        ("key,a\nx,1.5\n", "line 2, label 'a': a probability is from 0 to 1, found 1.5"),
        ("key,a\nx,0.5\ny,high\n", "line 3, column 'a': expected a number, found 'high'"),
        ("key,a\nx,0.5,3\n", "line 2 has 3 fields, the header 2"),
        ("key,a\n,0.5\n", "line 2 has no key"),
        ("key,a,a\nx,0,0\n", "the column 'a' twice"),
        ("key,a,view,View\nx,0,PA,PA\n", "'view' and 'View', which differ only in case"),
    ],
)
def test_tables_that_are_no_scores(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_predictions(write(tmp_path / "scores.csv", text))


def test_files_of_other_kinds(tmp_path):
    for name, message in [("none.csv", "no file"), ("x.xlsx", "ends in"), ("x.parquet", "Parquet")]:
        if name.startswith("x"):
            write(tmp_path / name, "something")
        with pytest.raises(UserError, match=message):
            read_predictions(tmp_path / name)


def test_labels_from_a_table(tmp_path):
    text = "key,patient,view,split,a,b\nx,1,PA,test,1,0\ny,1,,test,-1,\nz,2,AP,train,0,1.0\n"
    found = read_label_table(write(tmp_path / "labels.csv", text), split="test")
    assert found.keys == ("x", "y")
    assert found.names == ("a", "b")
    assert found.labels.dtype == np.int8
    assert found.labels.tolist() == [[1, 0], [-1, -1]]
    assert found.patients == ("1", "1")
    assert found.meta == {"view": ("PA", None)}
    assert not found.exclusive
    with pytest.raises(UserError, match=r"no split 'val' in .*; it has: test, train"):
        read_label_table(tmp_path / "labels.csv", split="val")
    other = write(tmp_path / "other.csv", text.replace("test", "Eval").replace("train", "Training"))
    assert read_label_table(other, split="test").keys == ("x", "y")
    assert read_label_table(other, split="TRAIN").keys == ("z",)
    with pytest.raises(UserError, match="a label is 1, 0, or -1 or empty"):
        read_label_table(write(tmp_path / "bad.csv", "key,a\nx,2\n"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_that_are_no_labels_are_known_in_any_case(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    columns = {
        "KEY": ["x", "y"],
        "A": ["1", "0"],
        "Patient": ["7", "8"],
        "View": ["PA", "AP"],
        "Split": ["test", "test"],
    }
    if suffix == ".csv":
        write(path, "KEY,A,Patient,View,Split\nx,1,7,PA,test\ny,0,8,AP,test\n")
    else:
        pq.write_table(pa.table(columns), path)
    found = read_label_table(path, split="test")
    assert (found.keys, found.names) == (("x", "y"), ("A",))
    assert found.patients == ("7", "8")
    assert found.meta == {"view": ("PA", "AP")}
    scored = read_predictions(write(tmp_path / "s.csv", "Key,A,Error\nx,0.5,\ny,,gone\n"))
    assert scored.errors == (None, "gone")
    named = read_label_table(write(tmp_path / "n.csv", "key,Label\nx,Mass\ny,Normal\n"))
    assert (named.names, named.exclusive) == (("Mass", "Normal"), True)


def test_what_pandas_and_spaces_leave_in_a_table_is_no_label_and_no_patient(tmp_path):
    for index in ("", "Unnamed: 0"):
        text = f"{index},key, a ,b\n0,x,1,0\n2,y,0,1\n"
        found = read_label_table(write(tmp_path / "labels.csv", text))
        assert (found.keys, found.names) == (("x", "y"), ("a", "b"))
    nan = pa.array([7.0, float("nan"), None], from_pandas=False)
    columns = {"key": ["x", "y", "z"], "a": [0.5] * 3, "__index_level_0__": [3, 7, 9]}
    pq.write_table(pa.table(columns | {"patient": nan}), tmp_path / "t.parquet")
    assert read_predictions(tmp_path / "t.parquet").labels == ("a",)
    pq.write_table(pa.table(columns | {"a": [0, 1, 1], "patient": nan}), tmp_path / "t.parquet")
    found = read_label_table(tmp_path / "t.parquet")
    assert (found.names, found.patients) == (("a",), ("7", None, None))


def test_one_yes_in_every_row_is_exclusive(tmp_path):
    assert read_label_table(write(tmp_path / "l.csv", "key,a,b\nx,1,0\ny,0,1\n")).exclusive
    assert not read_label_table(write(tmp_path / "m.csv", "key,a\nx,1\ny,1\n")).exclusive


@pytest.mark.parametrize("split", ["test", None])
def test_labels_from_shards(tiny_shards, split):
    folder = tiny_shards / "covid-radiography"
    manifest = load_manifest(folder)
    found = read_label_table(folder, split)
    splits = [split] if split else list(manifest.splits)
    samples = [sample for name in splits for sample in read_split(folder, manifest, name)]
    assert found.keys == tuple(sample.key for sample in samples)
    assert found.names == manifest.labels
    assert (found.labels == np.stack([sample.labels for sample in samples])).all()
    assert found.meta["source"] == tuple(sample.meta.source for sample in samples)
    assert (found.exclusive, set(found.synthetic)) == (True, {True})


def test_scored_shards_join_their_own_labels(tiny_shards, tmp_path):
    folder = tiny_shards / "covid-radiography"
    score(config(tmp_path, folder / "test"))
    found = join(read_predictions(tmp_path / "out"), read_label_table(folder, "test"))
    assert found.unmatched_predictions == found.unmatched_labels == ()
    assert len(found.keys) == load_manifest(folder).splits["test"].samples
    assert found.exclusive
    assert found.synthetic


keys = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1)


@given(keys, keys, st.randoms())
def test_join_is_by_key(left, right, rng):
    values = {key: rng.random() for key in left}
    known = {key: rng.choice([-1, 0, 1]) for key in right}
    predictions = scores(left, ("a",), np.array([[values[key]] for key in left]))
    labels = truth(right, ("b", "a"), np.array([[9, known[key]] for key in right], np.int8))
    if not set(left) & set(right):
        with pytest.raises(UserError, match="no key is on both sides"):
            join(predictions, labels)
        return
    found = join(predictions, labels)
    assert found.keys == tuple(key for key in left if key in known)
    assert found.probabilities[:, 0].tolist() == [values[key] for key in found.keys]
    assert found.targets[:, 0].tolist() == [known[key] for key in found.keys]
    assert set(found.unmatched_predictions) == set(left) - set(right)
    assert set(found.unmatched_labels) == set(right) - set(left)
    assert found.labels_without_scores == ("b",)


def test_join_keeps_images_that_could_not_be_scored_as_nan():
    found = join(scores("xy", errors=[None, "broken"]), truth("xy"))
    assert np.isnan(found.probabilities[1]).all()
    assert not np.isnan(found.probabilities[0]).any()


def test_join_refuses_what_cannot_be_matched():
    with pytest.raises(UserError, match="1 keys stand more than once in the predictions: x"):
        join(scores("xx"), truth("xy"))
    with pytest.raises(UserError, match="1 keys stand more than once in the labels: y"):
        join(scores("xy"), truth("yy"))
    with pytest.raises(UserError, match="no label is on both sides: the scores have a, b"):
        join(scores("xy"), truth("xy", names=("c",)))


def test_join_takes_exclusive_and_synthetic_from_whoever_knows():
    assert join(scores("x", exclusive=True), truth("x")).exclusive
    assert not join(scores("x"), truth("x")).exclusive
    assert not join(scores("x", ("a",), exclusive=True), truth("x")).exclusive  # one label alone
    assert join(scores("x"), truth("x", synthetic=(True,))).synthetic
    assert not join(scores("x"), truth("x")).synthetic


def test_a_table_of_scores_is_exclusive_where_its_rows_add_up_or_the_truth_is():
    whole = np.array([[0.2, 0.8], [0.7, 0.3]])
    for values, known, expected in (
        (whole, truth("xy"), True),
        (whole / 2, truth("xy"), False),
        (whole / 2, replace(truth("xy"), exclusive=True), True),
        (whole / 2, replace(truth("xy", ("a", "c")), exclusive=True), False),
    ):
        assert join(scores("xy", values=values), known).exclusive is expected
        assert join(scores("xy", values=values), known, not expected).exclusive is not expected


def test_an_exclusive_network_keeps_all_its_classes():
    values = np.array([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]])
    rows = np.array([[1, 0, 0], [0, 1, 0], [-1, -1, -1], [0, 0, 1]], np.int8)
    other = replace(truth("wxyz", ("a", "c", "d"), rows), exclusive=True)
    found = join(scores("wxyz", ("a", "b", "c"), values, exclusive=True), other)
    assert (found.exclusive, found.labels) == (True, ("a", "b", "c"))
    assert found.targets.tolist() == [[1, 0, 0], [0, 0, 1], [-1, -1, -1], [0, -1, 0]]
    assert found.outside == (None, None, None, "d")
    assert (found.labels_without_truth, found.labels_without_scores) == ((), ("d",))
    found = join(scores("wxyz", ("a", "b", "c"), values, exclusive=False), other)
    assert (found.exclusive, found.labels) == (False, ("a", "c"))
    assert found.targets.tolist() == [[1, 0], [0, 1], [-1, -1], [0, 0]]
    assert found.labels_without_truth == ("b",)


def test_labels_that_exclude_each_other_are_not_two_of_an_image():
    both = replace(truth("xy", labels=np.array([[1, 0], [1, 1]], np.int8)), exclusive=True)
    with pytest.raises(UserError, match="image 'y' has several labels, but the labels exclude"):
        join(scores("xy"), both)
    assert join(scores("xy"), both, False).targets.tolist() == [[1, 0], [1, 1]]


def test_one_probability_beside_named_classes_keeps_the_negatives(tmp_path):
    """`COVID` against `COVID` or `Normal` in a column `label`: no class is called by its rank."""
    table = write(tmp_path / "labels.csv", "key,label\nx,COVID\ny,Normal\n")
    found = join(scores("xy", ("COVID",), np.array([[0.9], [0.8]])), read_label_table(table))
    assert not found.exclusive
    assert found.targets.tolist() == [[1], [0]]


def test_a_single_named_class_excludes_the_scores_others(tmp_path):
    table = write(tmp_path / "labels.csv", "key,label\nx,a\ny,a\n")
    values = np.array([[0.2, 0.8], [0.7, 0.3]])
    found = join(scores("xy", values=values), read_label_table(table))
    assert (found.exclusive, found.targets.tolist()) == (True, [[1, 0], [1, 0]])
