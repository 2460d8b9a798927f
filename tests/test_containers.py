"""Containers as they are met: which are read, which are named, and what in them is no image."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from dicom_maker import make_dicom, picture, to_bytes
from test_archives import WRITERS, contents, only, write_folder, write_zip
from test_score import config, pictures, rows

from ingest.dicom_files import found_files
from serve.entries import ArchiveDamaged
from serve.score import score
from serve.score_inputs import find_archives
from shards.console import RunFailed, UserError
from shards.members import is_system_file
from shards.zips import member_name, open_zip

PICTURES = pictures(4)
DICOM = to_bytes(make_dicom(picture(0), bits=12))
COMPRESS = {
    ".tar.zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    ".tzst": lambda data: (
        b"\x50\x2a\x4d\x18\x01\0\0\0x" + pa.Codec("zstd").compress(data, asbytes=True)
    ),
    ".tar.lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    ".txz": lzma.compress,
    ".tbz2": bz2.compress,
    ".tgz": gzip.compress,
}
SEVENZIP = b"7z\xbc\xaf\x27\x1c\0\4" + bytes(200)


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def v7(tar: bytes) -> bytes:
    """The same with its first header as tars were before there was a magic."""
    header = bytearray(tar[:512])
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar[512:]


def dicom_names(src: Path) -> list[str]:
    return [file.name for file in found_files(src)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_tars_are_read_under_any_name(tmp_path, suffix):
    plain = tar_of(PICTURES)
    packed = COMPRESS[suffix](plain)
    for name in (f"x{suffix}", "download"):
        (tmp_path / name).write_bytes(packed)
        archive = only(tmp_path / name)
        assert [(n, data) for n, _, data in contents(archive)] == list(PICTURES.items())
        assert dicom_names(tmp_path / name) == list(PICTURES)
    write_folder(tmp_path / "in", {f"x{suffix}": packed, "z.png": PICTURES["00000.png"]})
    found = find_archives([tmp_path / "in"])
    assert [archive.kind for archive in found] == ["compressed tar", "folder"]
    nested = only(write_zip(tmp_path / "n.zip", {f"x{suffix}": packed}))
    assert [data for _, _, data in contents(nested)] == list(PICTURES.values())
    (tmp_path / "joined").write_bytes(packed + COMPRESS[suffix](tar_of({"more.png": b"more"})))
    if suffix != ".tar.lzma":  # which knows no joined files
        assert len(contents(only(tmp_path / "joined"))) == 5
    (tmp_path / "cut").write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(ArchiveDamaged):
        contents(only(tmp_path / "cut"))
    with pytest.raises(UserError, match="damaged or cut short"):
        [file.read() for file in found_files(tmp_path / "cut")]


def test_a_tar_of_the_oldest_kind_is_read_under_any_name(tmp_path):
    (tmp_path / "download").write_bytes(v7(tar_of(PICTURES)))
    assert [data for _, _, data in contents(only(tmp_path / "download"))] == list(PICTURES.values())
    assert dicom_names(tmp_path / "download") == list(PICTURES)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("c.7z", SEVENZIP, "a 7z archive, which is not read"),
        ("download", SEVENZIP, "a 7z archive, which is not read"),
        ("c.rar", b"Rar!\x1a\x07\x01\0" + bytes(99), "a rar archive, which is not read"),
        ("c.tar.lz4", b"\x04\x22\x4d\x18" + bytes(99), "an lz4 file, which is not read"),
        ("0.png.gz", gzip.compress(PICTURES["00000.png"]), "not a tar, but a PNG image"),
        ("scan", gzip.compress(DICOM), "not a tar, but a DICOM file"),
        ("0.dcm.xz", lzma.compress(DICOM), "not a tar, but a DICOM file"),
    ],
)
def test_a_container_that_is_not_read_is_named_and_the_run_fails(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RunFailed, match=said):
        score(config(tmp_path, tmp_path / name))
    (row,) = rows(tmp_path / "out")
    assert said in row["error"]
    with pytest.raises(UserError, match=said.split(",")[0]):
        dicom_names(tmp_path / name)


@pytest.mark.parametrize("kind", ["a", "a.tar", "a.tar.gz", "a.zip"])
def test_containers_among_images_are_rows_that_name_the_kind_and_nobody(tmp_path, kind):
    members = {
        "DOE^JANE.7z": SEVENZIP,
        "DOE^JANE.png.gz": gzip.compress(PICTURES["00000.png"]),
        "x.png": PICTURES["00000.png"],
        "._DOE.gz": b"Mac",
    }
    path = WRITERS[kind](tmp_path / kind, members)
    with pytest.raises(RunFailed, match=r"ends: 2 \(a 7z archive, which is not read; unpack it\)"):
        score(config(tmp_path, path))
    found = {row["member"]: row["error"] for row in rows(tmp_path / "out")}
    assert found == {
        "archive-1": "a 7z archive, which is not read; unpack it",
        "archive-2": "a gzip file, which is not read; unpack it",
        "x.png": None,
    }
    assert contents(find_archives([path], keep_names=True)[0])[0][0] == "DOE^JANE.7z"


def test_a_zip_with_backslashes_has_folders_that_are_no_rows(tmp_path):
    names = ("COVID\\", "COVID\\0.png", "COVID\\sub\\1.png", "__MACOSX\\._0.png", "x\\.DS_Store")
    path = write_zip(tmp_path / "c.zip", {n: b"" if n[-1] == "\\" else n.encode() for n in names})
    archive = only(path)
    assert [(n, key) for n, key, _ in contents(archive)] == [
        ("COVID/0.png", "0"),
        ("COVID/sub/1.png", "1"),
    ]
    assert archive.skipped == {"other files": 2}
    assert dicom_names(path)[:2] == ["COVID/0.png", "COVID/sub/1.png"]
    with zipfile.ZipFile(write_zip(tmp_path / "d.zip", {"a/b\\c.png": b"1", "a/full/": b"1"})) as z:
        assert [member_name(info) for info in z.infolist()] == ["a/b\\c.png", "a/full/"]
    assert len(contents(only(tmp_path / "d.zip"))) == 2  # bytes are no folder


@pytest.mark.parametrize(
    "comment",
    [
        b"PK",
        b"PK\x05\x06" + bytes(18),
        b"PK\x05\x06" + bytes(40),
        b"PK\x03\x04PK\x01\x02",
        b"x" * 999,
    ],
)
def test_a_zip_whose_comment_looks_like_a_zip(tmp_path, comment):
    path = write_zip(tmp_path / "c.zip", PICTURES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    assert [data for _, _, data in contents(only(path))] == list(PICTURES.values())
    assert [file.read() for file in found_files(path)] == list(PICTURES.values())
    with path.open("rb") as file, open_zip(file) as archive:
        assert archive.testzip() is None


def test_ingest_does_not_take_a_zip_in_a_zip_that_was_cut_for_it(tmp_path):
    inner = write_zip(tmp_path / "in.zip", {"1.dcm": DICOM}).read_bytes()
    with zipfile.ZipFile(tmp_path / "o.zip", "w") as outer:
        outer.writestr("0.dcm", DICOM)
        outer.writestr("in.zip", inner)
        outer.writestr("2.dcm", DICOM)
    data = (tmp_path / "o.zip").read_bytes()
    (tmp_path / "o.zip").write_bytes(data[: data.index(inner) + len(inner)])
    with pytest.raises(UserError, match="only that of an archive in it"):
        dicom_names(tmp_path / "o.zip")


@pytest.mark.parametrize(
    ("name", "system"),
    [
        *(("a/._x.png", True), ("__MACOSX/x.png", True), (".git/x.png", True), ("DICOMDIR", True)),
        *(("a/.DS_Store", True), ("Thumbs.db", True), ("b/THUMBS.DB", True), ("desktop.ini", True)),
        *(("a/x.png", False), ("../x.png", False), ("//x.png", False), ("DICOMDIR/1", False)),
    ],
)
def test_files_of_systems(name, system):
    assert is_system_file(name) == system


def test_files_of_systems_are_no_inputs(tmp_path):
    members = {"DICOMDIR": DICOM, "__MACOSX/._1.dcm": b"Mac", "Thumbs.db": b"1", "1.dcm": DICOM}
    for kind in ("a", "a.tar", "a.zip"):
        archive = only(WRITERS[kind](tmp_path / kind, members))
        assert [data for _, _, data in contents(archive)] == [DICOM]
        assert archive.skipped == {"other files": 3}
