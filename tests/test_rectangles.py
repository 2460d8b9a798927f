"""shards.rectangles: the table of rectangles as people's programs write it; every flaw told."""

from pathlib import Path

import pytest

from shards.console import UserError
from shards.rectangles import Rectangle, read_rectangles


def table(folder: Path, data: bytes) -> Path:
    path = folder / "words.csv"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        b'file,x,y,w,h\n"a\nb.png",1,2,3,4\n"a\nb.png",5,6,7,8.5\n',
        b'\xef\xbb\xbfh,note,file,x,y,w\r\n4,n,"a\nb.png",1,2,3\r\n8.5,n,"a\nb.png",5,6,7\r\n',
    ],
)
def test_names_may_hold_line_breaks_and_columns_any_order(tmp_path: Path, data: bytes):
    found = read_rectangles(table(tmp_path, data))
    assert found == {"a\nb.png": (Rectangle(1, 2, 3, 4), Rectangle(5, 6, 7, 8.5))}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no column 'file', 'x', 'y', 'w', 'h' in its first line; expected: file,x,y"),
        (b"file;x;y;w;h\n", "in its first line; separate the columns by commas; expected"),
        (b"file,x,y,w,h\n", "has no rectangle"),
        ("file,x,y,w,h\n".encode("utf-16"), "is UTF-16"),
        (b"file,x,y,w,h\nDoe John.png,1,1,0,4\n", "line 2: x,y,w,h are 1,1,0,4; expected"),
        (b"file,x,y,w,h\nDoe John.png,1,1\n", "line 2 has only 3 fields, the header 5"),
        (b"file,x,y,w,h\nDoe John.png,1,1,inf,4\n", "line 2: "),
        (b"file,x,y,w,h\nDoe,John.png,1,1,4\n", "line 2: one of x,y,w,h is no number"),
        (b"file,x,y,w,h\nJohn,Doe,.png,1,1,4,4\n", "line 2 has 7 fields, the header 5"),
        (b"file,x,y,w,h\nnan,1,1,4,\n", "line 2: one of x,y,w,h is no number"),
        (b"Doe John.png,1,1,4,4\n", "no column 'file'"),
        (b"file,x,y,w,h\na,1,1,4," + b"1" * 200_000, "line 2 is not CSV"),
    ],
)
def test_flaws_are_told_without_names(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(UserError, match=message) as caught:
        read_rectangles(table(tmp_path, data))
    assert "Doe" not in str(caught.value)


def test_no_file(tmp_path: Path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match=r"cannot read the table .*; name a CSV file"):
            read_rectangles(path)
