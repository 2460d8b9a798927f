"""ingest.csv_rows: headers and encodings as publishers write them; every flaw in one line."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.csv_rows import read_rows, refuse_repeats, years
from shards.console import UserError


def table(folder: Path, data: bytes | str) -> Path:
    path = folder / "metadata.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    "data",
    [
        "Patientid,finding, url,\n1,COVID-19,x,\n",
        "\ufeffpatientid , Finding\r\n 1 , COVID-19 \r\n\r\n,,,\r\n",
        'finding,patientid\n"COVID-19",1',
    ],
)
def test_headers_differ_in_case_and_spaces(tmp_path: Path, data: str):
    ((line, cells),) = read_rows(table(tmp_path, data), ["patientid", "finding"], ["modality"])
    assert (line, cells) == (2, {"patientid": "1", "finding": "COVID-19", "modality": ""})


def test_latin_1(tmp_path: Path):
    ((_, cells),) = read_rows(table(tmp_path, b"notes\nfever 38\xb0\n"), ["notes"])
    assert cells["notes"] == "fever 38°"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a,c\n1,2\n", r"no column 'b'; it has: a, c"),
        ("", "no column 'a', 'b'; it has: nothing"),
        ("a;b\n1;2\n", "it has: a;b; separate the columns by commas"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as CSV in UTF-8"),
        ("a,b\n1\n", "line 2 has only 1 fields"),
        ("a,b,A\n1,2,3\n", "more than one column 'a'"),
        ("a,b\n1," + "x" * 200_000, "line 2 is not CSV: field larger"),
    ],
)
def test_flaws(tmp_path: Path, data: bytes | str, message: str):
    with pytest.raises(UserError, match=message):
        list(read_rows(table(tmp_path, data), ["a", "b"]))


def test_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read the table"):
        list(read_rows(tmp_path / "none.csv", ["a"]))
    with pytest.raises(UserError, match="cannot read the table"):
        list(read_rows(tmp_path, ["a"]))


def test_repeats(tmp_path: Path):
    refuse_repeats(["a", "b"], tmp_path)
    with pytest.raises(UserError, match="names 1 images more than once, such as b"):
        refuse_repeats(["b", "a", "b"], tmp_path)
    with pytest.raises(UserError, match="names no image"):
        refuse_repeats([], tmp_path)


@pytest.mark.parametrize(
    ("text", "age"),
    [("58", 58), ("58.5", 58), ("0", 0), ("50+", None), ("early 40s", None), ("414", None)],
)
def test_years(text: str, age: int | None):
    assert years(text) == age


CELL = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, rows: list[tuple[str, str]]):
    text = io.StringIO()
    csv.writer(text).writerows([("a", "b"), *rows])
    path = table(tmp_path_factory.mktemp("csv"), text.getvalue())
    assert [tuple(cells.values()) for _, cells in read_rows(path, ["a", "b"])] == rows
