"""Tables of strangers: names that look like nothing, keys that are no text, odd CSV."""

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.predictions import join, read_predictions
from serve.truth import read_label_table
from shards.console import UserError

WORDS = ["none", "None", "null", "NULL", "na", "NA", "nan", "NaN"]


def write(path: Path, columns: dict[str, list]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        lines = [list(columns), *zip(*columns.values())]
        path.write_text("\n".join(",".join(map(str, line)) for line in lines))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_key_may_be_called_none(tmp_path, suffix):
    scores = write(tmp_path / f"s{suffix}", {"key": WORDS, "A": [0.5] * 8})
    labels = write(tmp_path / f"l{suffix}", {"key": WORDS[::-1], "A": [1, 0] * 4})
    found = join(read_predictions(scores), read_label_table(labels))
    assert found.keys == tuple(WORDS)
    assert found.targets[:, 0].tolist() == [0, 1] * 4


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_class_may_be_called_none(tmp_path, suffix):
    columns = {"key": list("abcdef"), "label": ["None", "NA", "null", "Mass", "", "nan"]}
    path = write(tmp_path / f"l{suffix}", columns)
    assert read_label_table(path).names == ("Mass",)
    found = read_label_table(path, classes=("Mass", "None"))  # of the scores
    assert found.names == ("Mass", "None")
    assert found.labels.tolist() == [[0, 1], [-1, -1], [-1, -1], [1, 0], [-1, -1], [-1, -1]]
    columns["label"] = ["1", "0", "NA", "nan", "", "null"]  # what is known of one label
    found = read_label_table(write(tmp_path / f"l{suffix}", columns))
    assert (found.names, found.labels[:, 0].tolist()) == (("label",), [1, 0, -1, -1, -1, -1])


def test_a_class_may_be_called_as_columns_are_that_are_no_label(tmp_path):
    columns = {"key": list("ab"), "label": ["Synthetic", "source"]}
    found = read_label_table(write(tmp_path / "l.csv", columns))
    assert (found.names, found.labels.tolist()) == (("Synthetic", "source"), [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ([7, 8], ("7", "8")),
        ([b"x", b"y"], ("x", "y")),
        (pa.array([b"x1", b"y1"], pa.binary(2)), ("x1", "y1")),
        (pa.array(["x", "y"]).dictionary_encode(), ("x", "y")),
        ([1.0, 2.0], r"row 1 has the key 1\.0 \(float\); allowed: text and whole numbers"),
        ([1.0, None], "has the key 1"),
        ([True, False], "row 1 has the key True"),
        ([b"x", b"\xff"], r"row 1 has the key b'x' \(bytes\)"),
        ([Decimal("1.10"), Decimal("2.00")], "row 1 has the key Decimal"),
        (["x", None], "row 2 has no key"),
        (["x", ""], "row 2 has no key"),
        ([1, None], "row 2 has no key"),
    ],
)
def test_keys_of_parquet_are_text_or_told(tmp_path, keys, found):
    table = {"key": keys, "prob_A": [0.5, 0.1], "image": [b"\xff", b"\xfe"]}
    path = write(tmp_path / "s.parquet", table)
    if isinstance(found, tuple):
        assert read_predictions(path).keys == found
    else:
        with pytest.raises(UserError, match=found):
            read_predictions(path)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffkey,A\nx,0.5\n",
        "\n\r\nkey , A\r\n\r\nx, 0.5\r\n",
        '"key","A"\r"x","0.5"',
        ",key,A\n0,x,0.5\n",
    ],
)
def test_csv_as_programs_write_it(tmp_path, text):
    (tmp_path / "s.csv").write_bytes(text.encode())
    found = read_predictions(tmp_path / "s.csv")
    assert (found.keys, found.labels, found.probabilities.tolist()) == (("x",), ("A",), [[0.5]])


@pytest.mark.parametrize("sign", [";", "\t"])
def test_other_separators_are_told(tmp_path, sign):
    (tmp_path / "s.csv").write_text(f"key{sign}A\nx{sign}0.5\n")
    with pytest.raises(UserError, match=r"no column 'key'.*; separate the columns by commas"):
        read_predictions(tmp_path / "s.csv")


def test_only_a_row_without_key_and_member_and_with_an_error_is_no_image(tmp_path):
    text = "key,member,error,A\nx,x.png,,0.5\n,,cut short,\n"
    (tmp_path / "s.csv").write_text(text)
    assert read_predictions(tmp_path / "s.csv").keys == ("x",)
    for row in (",,,0.5", ",y.png,broken,"):
        (tmp_path / "s.csv").write_text(text + row)
        with pytest.raises(UserError, match="line 4 has no key"):
            read_predictions(tmp_path / "s.csv")
