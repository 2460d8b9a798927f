"""shards.csv_table: tables as publishers, pandas and Excel write them; every flaw in one line."""

import csv
import gzip
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.console import UserError
from shards.csv_table import is_missing, read_records, read_rows, whole_numbers

WIDE = "patientid,sex,age,finding,view,filename,notes\n"


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
        "\n \npatientid,finding\n1,COVID-19,,,\n",
        "patientid,finding\r1,\u200bCOVID-19\u00a0\u200b\r",
        'patientid,"fin\nding",finding\n1,x,COVID-19\n',
        '"patientid", "finding"\n"1", "COVID-19"\n',
        ",patientid,finding,modality\n0,1,COVID-19\n",  # Excel ends rows before empty cells
    ],
)
def test_headers_and_rows_as_programs_write_them(tmp_path: Path, data: str):
    ((line, cells),) = read_rows(table(tmp_path, data), ["patientid", "finding"], ["modality"])
    assert cells == {"patientid": "1", "finding": "COVID-19", "modality": ""}
    assert line == (4 if data.startswith("\n") else 3 if "fin\n" in data else 2)


@pytest.mark.parametrize(
    "row",
    [
        '1,M,60,COVID-19,PA,a.png,"cough, fever\nand, since Monday, chills"',
        '1,"M\n(sic)",60,COVID-19,PA,a.png,"said ""ill""\r\n, twice"',
        '1,M,60,COVID-19,PA,"a\nb.png",5\'10" tall',
    ],
)
def test_fields_of_several_lines_are_read(tmp_path: Path, row: str):
    rows = list(read_rows(table(tmp_path, WIDE + row + "\n2,,,,,b.png,\n"), ["patientid", "notes"]))
    assert [cells["patientid"] for _, cells in rows] == ["1", "2"]
    assert [line for line, _ in rows] == [2, 3 + row.count("\n")]
    assert rows[0][1]["notes"] == next(csv.reader(io.StringIO(row, newline="")))[-1]


def test_windows_1252_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = table(tmp_path, b"notes\r\nok\r\nfever 38\xb0 \x96 \x80\r\n")
    assert [cells["notes"] for _, cells in read_rows(path, ["notes"])] == ["ok", "fever 38° – €"]
    assert capsys.readouterr().err == (
        f"warning: {path} is not UTF-8 (line 3). It is read as Windows-1252.\n"
    )


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "n/a", "#N/A", "NULL", "None", "<NA>", "\\N"])
def test_missing_is_empty_but_where_words_are_asked_for(tmp_path: Path, word: str):
    path = table(tmp_path, f"a,b\n{word},{word}\nx,nanny\n")
    found = [cells for _, cells in read_rows(path, ["a", "b"], verbatim=["b"])]
    assert found == [{"a": "", "b": word}, {"a": "x", "b": "nanny"}]
    assert is_missing("")
    assert is_missing(word.swapcase())


ROWS = [f"{n},M,4{n},COVID-19,PA,f{n}.png,ok" for n in range(1, 9)]


def with_row(number: int, row: str, more: int | None = None) -> str:
    rows = [*ROWS]
    rows[number] = row
    if more is not None:
        rows[more] = rows[more] + '"'
    return WIDE + "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a,c\n1,2\n", r"no column 'b'; it has: a, c; expected: a,b$"),
        ("", "no column 'a', 'b'; it has: nothing"),
        ("a;b\n1;2\n", "it has: a;b; separate the columns by commas"),
        ("a,b\n1\n", "line 2 has only 1 fields, the header 2"),
        ("a,b,A\n1,2,3\n", "more than one column 'a'"),
        ("a,b\n1," + "x" * 200_000, "line 2 is not CSV: field larger"),
        ("a,b,c\n1,2,x\n1,2,x, y\n", "line 3 has 4 fields, the header 3; put quotes"),
        ('a,b,c\n1,2,"x\n3,4,x\n5,6,x\n', "line 2: the quote that opens here is not closed"),
        ('a,b,c\n\n1,2,"x"y\n', "line 3: the quote that opens here is not closed at the end"),
        ('a,b,c\n1,2,"x\n3,4,"y"\n5,6,z\n', "line 2: the quote that opens here is not closed"),
        ('a,b,c\n1,2,"x\n3,4,y"\n5,6,z\n', "line 2: the quote that opens here takes in line 3"),
        ('a,b,c\n1,"2,x\n3,4",y\n5,6,z\n', "line 2: the quote that opens here takes in line 3"),
        ('a,b,c\n"1,2,x\n3",4,y\n5,6,z\n', "line 2: the quote that opens here takes in line 3"),
        ('a,b,c\n1,2,"x\ny","z\n', "line 3: the quote that opens here is not closed"),
        ('a,b,c\n1,2,"' + "x,y\n" * 50_000, "line 2: the quote that opens here is not closed"),
        ('a,b,"c\n1,2,x\n3,4,",y"\n', "line 1: the quote that opens here takes in line 2"),
        (b"a,b\n1,2\r\n1,\x81\n", "line 3 is neither UTF-8 nor Windows-1252"),
        (b"a,b\r1,2\r1,No\0rmal\r", "line 3 holds a zero byte, so it is no text"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as CSV in UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1 holds a zero byte"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "is compressed by gzip; save it as CSV"),
        (b"PAR1" + bytes(20), "is a Parquet file; save it as CSV"),
    ],
)
def test_flaws(tmp_path: Path, data: bytes | str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        list(read_rows(table(tmp_path, data), ["a", "b"]))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (with_row(4, '5,F,50,COVID-19,PA,f5.png,"saturation 90'), 6),
        (with_row(4, '5,F,50,COVID-19,PA,f5.png,"saturation 90', more=7), 6),
        (with_row(4, '5,F,50,COVID-19,PA,f5.png,"saturation 90', more=5), 6),
        (with_row(1, '2,"F,50,COVID-19,PA,f5.png,a, b', more=5), 3),
    ],
)
def test_an_open_quote_takes_no_row(tmp_path: Path, data: str, line: int):
    with pytest.raises(UserError, match=f"line {line}: the quote that opens here") as caught:
        list(read_rows(table(tmp_path, data), ["patientid"]))
    assert "saturation" not in str(caught.value)


def test_a_workbook_shows_none_of_its_bytes(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "metadata.csv", "w") as book:
        book.writestr("xl/sharedStrings.xml", "<sst/>")
    with pytest.raises(UserError, match=r"is a zip archive, as Excel's .xlsx files are") as caught:
        list(read_records(tmp_path / "metadata.csv"))
    assert "sharedStrings" not in str(caught.value)


def test_a_header_is_shown_but_where_it_may_be_a_patient(tmp_path: Path):
    path = table(tmp_path, "Doe^John,COVID\n")
    with pytest.raises(UserError, match="no column 'id' in its first line; expected: id") as caught:
        list(read_rows(path, ["id"], show_header=False))
    assert "Doe" not in str(caught.value)


def test_no_file(tmp_path: Path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match=r"cannot read the table .*; name a CSV file"):
            list(read_rows(path, ["a"]))


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (["1.0", "2", "", "3.00"], ["1", "2", "", "3"]),
        (["1.0", "2", "x"], ["1.0", "2", "x"]),
        (["1.5", "2.0"], ["1.5", "2.0"]),
        (["01", "1"], ["01", "1"]),
        (["", ""], ["", ""]),
    ],
)
def test_whole_numbers(ids: list[str], found: list[str]):
    assert whole_numbers(ids) == found


CELL = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).filter(
    lambda cell: not is_missing(cell)
)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, rows: list[tuple[str, str]]):
    text = io.StringIO()
    csv.writer(text).writerows([("a", "b"), *rows])
    path = table(tmp_path_factory.mktemp("csv"), text.getvalue())
    assert [tuple(cells.values()) for _, cells in read_rows(path, ["a", "b"])] == rows


NOTE = st.text("ab ,\n\"'", min_size=1, max_size=12)


@given(st.lists(NOTE, min_size=2, max_size=6), st.data())
def test_no_row_is_lost_to_a_quote_that_is_added_or_gone(
    tmp_path_factory, notes: list[str], data: st.DataObject
):
    """No fewer rows than were written, or the table is refused."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [("key", "kind", "age", "note"), *((f"k{n}", "x", 1, note) for n, note in enumerate(notes))]
    )
    written = text.getvalue()
    place = data.draw(st.integers(0, len(written)))
    gone = written[place : place + 1] == '"'
    broken = written[:place] + ("" if gone else '"') + written[place + gone :]
    path = table(tmp_path_factory.mktemp("csv"), broken)
    try:
        rows = list(read_rows(path, ["key", "age"]))
    except UserError:
        return
    assert len(rows) >= len(notes)
