"""ingest.files: archives are read as streams, whatever their members are called."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from ingest import files
from ingest.files import archive_images, folder_image, image_files, kind_passed_over
from shards.codec import BadImage
from shards.console import UserError


def pack(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def contents(path: Path) -> dict[str, bytes]:
    return {image.location: image.read() for image in archive_images(path)}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "images_001.tar.gz"
    path.write_bytes(gzip.compress(pack([("images/a.png", b"A" * 3000), ("b.png", b"B")])))
    return path


def test_members_by_base_name(archive: Path):
    assert contents(archive) == {"a.png": b"A" * 3000, "b.png": b"B"}


def test_members_may_be_passed_over(archive: Path):
    assert [image.read() for image in archive_images(archive) if image.location == "b.png"] == [
        b"B"
    ]


def test_gzip_in_several_parts(tmp_path: Path):
    data = pack([("a.png", b"A" * 30_000), ("b.png", b"B" * 30_000)])
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(data[:20_000]) + gzip.compress(data[20_000:]))
    assert contents(path).keys() == {"a.png", "b.png"}


def test_hostile_names_write_nothing(tmp_path: Path):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "x.tar.gz"
    path.write_bytes(gzip.compress(pack([("../../evil.png", b"1"), ("/etc/evil.png", b"2")])))
    before = sorted(tmp_path.rglob("*"))
    assert contents(path) == {"evil.png": b"2"}
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_devices_are_passed_over(tmp_path: Path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("d.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(buffer.getvalue()))
    assert contents(path) == {}


def test_large_members_are_bad_images(archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    images = archive_images(archive)
    with pytest.raises(BadImage, match="over the limit of 100"):
        next(images).read()
    assert next(images).read() == b"B"


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_cut_archive_is_named(tmp_path: Path, keep: float):
    data = gzip.compress(pack([(f"{i}.png", os.urandom(5000)) for i in range(20)]))
    path = tmp_path / "images_002.tar.gz"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=r"images_002\.tar\.gz is damaged or cut short"):
        contents(path)


def test_a_flipped_bit_is_found(tmp_path: Path):
    data = bytearray(gzip.compress(pack([(f"{i}.png", os.urandom(5000)) for i in range(20)])))
    data[len(data) // 2] ^= 4
    path = tmp_path / "x.tar.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        contents(path)


def test_no_archive_at_all(tmp_path: Path):
    path = tmp_path / "images_001.tar.gz"
    path.write_bytes(b"<html>Not found</html>")
    with pytest.raises(UserError, match="download it again"):
        contents(path)


def test_folders_hold_images_only(tmp_path: Path):
    for name in ("b.png", "a.JPG", "._a.png", ".DS_Store", "notes.txt", "x.metadata.xlsx"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.JPG", "b.png"]
    assert folder_image(tmp_path / "b.png", "b.png").read() == b"1"


def test_what_else_a_folder_holds_has_a_kind(tmp_path: Path):
    names = ("a.JFIF", "b.jpe", "c.DCM", "d", ".hidden", "._e.png", "f.tar.gz")
    for name in names:
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "g.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "h.png").symlink_to(tmp_path / "a.JFIF")
    (tmp_path / "folder.dcm").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    kinds = {path.name: kind_passed_over(path) for path in tmp_path.iterdir()}
    assert {name: kind for name, kind in kinds.items() if kind} == {
        "c.DCM": ".dcm",
        "d": "without suffix",
        "f.tar.gz": ".gz",
        "g.png": "links that lead nowhere",
        "pipe.png": "devices",
    }
    assert [path.name for path in image_files(tmp_path)] == ["a.JFIF", "b.jpe", "h.png"]


def test_a_changed_file_has_another_stamp(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = folder_image(path, "a.png").stamp
    path.write_bytes(b"22")
    assert folder_image(path, "a.png").stamp != before


def test_an_unreadable_file_is_a_bad_image(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    image = folder_image(path, "a.png")
    path.unlink()
    with pytest.raises(BadImage, match="cannot be read"):
        image.read()
