"""Every kind of archive gives the same inputs; what is hostile or damaged is refused, and said."""

import gzip
import io
import os
import random
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import archives, entries
from serve.archives import Archive
from serve.decode import DecodePool, Task
from serve.entries import ArchiveDamaged, BadMember, Piece, is_input
from serve.score_inputs import find_archives
from serve.units import archive_chunks
from shards.console import RunFailed, UserError
from shards.sample import KEY_PATTERN

MEMBERS = {
    "images/00000001_000.png": b"one",
    "images/sub.dir/00000002 (1).png": b"two",
    "images/zz": b"three",
}
SKIPPED = {"images/list.csv": b"a,b", "__MACOSX/images/x.png": b"junk", ".hidden.png": b"junk"}


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


WRITERS = {
    "a.tar": write_tar,
    "a.tar.gz": lambda path, members: write_tar(path, members, "w:gz"),
    "a.tar.bz2": lambda path, members: write_tar(path, members, "w:bz2"),
    "a.tar.xz": lambda path, members: write_tar(path, members, "w:xz"),
    "a.zip": write_zip,
    "a": write_folder,
}


def only(path: Path) -> Archive:
    (archive,) = find_archives([path])
    return archive


def contents(archive: Archive) -> list[tuple[str, str, bytes | str]]:
    found: list[tuple[str, str, bytes | str]] = []
    for entry in archive.entries():
        try:
            found.append((entry.name, entry.key, entry.read()))
        except BadMember as error:
            found.append((entry.name, entry.key, str(error)))
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_inputs(tmp_path, name):
    archive = only(WRITERS[name](tmp_path / name, MEMBERS | SKIPPED))
    found = contents(archive)
    assert [(name, data) for name, _, data in found] == list(MEMBERS.items())
    assert [key for _, key, _ in found][::2] == ["00000001_000", "zz"]
    assert all(KEY_PATTERN.fullmatch(key) for _, key, _ in found)
    assert archive.skipped == {"other files": 3}


def test_a_shard_gives_its_samples_keys(tiny_shards):
    shard = sorted((tiny_shards / "covid-radiography").rglob("*.tar"))[0]
    found = contents(only(shard))
    with tarfile.open(shard) as tar:
        expected = [n.split(".")[0] for n in tar.getnames() if n.endswith(".jph")]
    assert [key for _, key, _ in found] == expected


def test_archives_in_a_folder_are_archives_of_their_own(tmp_path):
    write_folder(tmp_path, {"x.png": b"x", "manifest.json": b"{}"})
    (tmp_path / "train").mkdir()
    write_tar(tmp_path / "train/t.tar", MEMBERS)
    found = find_archives([tmp_path])
    assert [archive.kind for archive in found] == ["tar", "folder"]
    assert [name for name, _, _ in contents(found[1])] == ["x.png"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz"])
def test_all_that_lies_before_a_cut_is_read(tmp_path, name):
    """However much is read at a time."""
    rng = random.Random(0)
    members = {f"{i:03d}.png": rng.randbytes(2000) for i in range(300)}
    path = WRITERS[name](tmp_path / name, members)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.9)])
    got: list[bytes] = []
    with pytest.raises(ArchiveDamaged):
        got.extend(entry.read() for entry in only(path).entries())
    assert got == list(members.values())[: len(got)]
    assert len(got) > 0.88 * len(members)


def test_a_single_image(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    assert contents(only(tmp_path / "x.png")) == [("x.png", "x", b"x")]


def test_folders_in_each_other_are_read_as_deep_as_anybody_needs(tmp_path):
    """And no deeper: at some 900 Python itself would stop."""
    deepest = tmp_path.joinpath(*["d"] * 64)
    write_folder(deepest, {"x.png": b"x"})
    assert len(contents(only(tmp_path))) == 1
    write_folder(deepest / "d", {"x.png": b"x"})
    with pytest.raises(UserError, match="more than 64 folders in each other"):
        find_archives([tmp_path])


def test_requests_that_cannot_be_met(tmp_path):
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "a.tar", MEMBERS)
    for paths, message in [
        ([tmp_path / "none"], "no archive at"),
        ([tmp_path / "empty"], "no image"),
        ([tmp_path / "a.tar", tmp_path / "empty/../a.tar"], "is named twice, by .*a.tar"),
        ([], "no archive named"),
    ]:
        with pytest.raises(UserError, match=message):
            find_archives(paths)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_names_that_leave_the_archive_are_labels(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    hostile = {"../../evil.png": b"1", "/etc/evil.png": b"2", "a\\..\\b.png": b"3", "..": b"4"}
    found = contents(only(WRITERS[name](folder / name, hostile)))
    assert len(found) == 4
    assert all(KEY_PATTERN.fullmatch(key) for _, key, _ in found)
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["in", name])


def test_names_that_are_no_utf8_become_valid_text(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "r\udcf6ntgen.png", b"x")
    ((name, key, _),) = contents(only(tmp_path / "a.tar"))
    assert name.encode() == b"r\\udcf6ntgen.png"
    assert KEY_PATTERN.fullmatch(key)


@pytest.mark.parametrize("name", WRITERS)
def test_a_member_over_the_limit_is_refused_alone(tmp_path, name, monkeypatch):
    for module in (archives, entries):
        monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 1000)
    path = WRITERS[name](tmp_path / name, {"a.png": b"a", "b.png": bytes(1001), "c.png": b"c"})
    found = [data for _, _, data in contents(only(path))]
    assert found == [b"a", "1001 bytes, over the limit of 1000 for one file", b"c"]
    assert all(e.piece is None or e.piece.size <= 1000 for e in only(path).entries())


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz", "a.zip"])
def test_a_bomb_is_stopped(tmp_path, name, monkeypatch):
    monkeypatch.setattr(entries, "MAX_MEMBER_BYTES", 1 << 16)
    path = WRITERS[name](tmp_path / name, {f"{i}.png": bytes(1 << 20) for i in range(8)})
    with pytest.raises(ArchiveDamaged, match="expands to more than"):
        contents(only(path))


def test_a_huge_header_is_not_read(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))
    with pytest.raises(ArchiveDamaged, match="header of 4294967296 bytes"):
        contents(only(tmp_path / "a.tar.gz"))


def read_until_damage(path: Path) -> tuple[list[bytes | str], str | None]:
    found: list[bytes | str] = []
    try:
        for entry in only(path).entries():
            try:
                found.append(entry.read())
            except BadMember as error:
                found.append(str(error))
    except ArchiveDamaged as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_every_cut_gives_the_members_before_it_and_is_told(tmp_path, name):
    rng = random.Random(0)
    members = {f"{i}.png": rng.randbytes(700) for i in range(6)}
    whole = WRITERS[name](tmp_path / name, members).read_bytes()
    end = len(whole) if name != "a.tar" else 6 * (512 + 1024)  # what follows is the end mark
    for length in sorted(rng.sample(range(end), 60)):
        (tmp_path / name).write_bytes(whole[:length])
        found, damage = read_until_damage(tmp_path / name)
        assert damage is not None, length
        assert found == list(members.values())[: len(found)]
        if name == "a.tar":
            assert len(found) == length // (512 + 1024) or length % 1536 >= 512 + 700


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_flipped_bytes_never_escape(tmp_path_factory, name, seed):
    """Whatever is damaged: the entries, then perhaps ArchiveDamaged; no other exception."""
    rng = random.Random(seed)
    path = tmp_path_factory.mktemp("flip") / name
    WRITERS[name](path, {f"{i}.png": rng.randbytes(50) for i in range(4)})
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(min(len(data), 4096))] = rng.randrange(256)
    path.write_bytes(data)
    read_until_damage(path)


def test_a_damaged_member_of_a_zip_is_refused_alone(tmp_path):
    path = WRITERS["a.zip"](tmp_path / "a.zip", {f"{i}.png": b"%d" % i * 50 for i in range(3)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as packed:
        offset = packed.infolist()[1].header_offset
    data[offset + 30 + 5] ^= 0xFF
    path.write_bytes(data)
    found = [data for _, _, data in contents(only(path))]
    assert found[0] == b"0" * 50
    assert found[2] == b"2" * 50
    assert isinstance(found[1], str)


@given(st.lists(st.sampled_from(["a", "..", ".git", "__MACOSX", "b.PNG", "c.Csv"]), min_size=1))
def test_inputs_by_name(parts):
    expected = not {".git", "__MACOSX"} & set(parts) and parts[-1] != "c.Csv"
    assert is_input("/".join(parts)) == expected


@pytest.mark.parametrize("name", ["a.csv/", "a.csv/.", "./b.json", "c.lab", ".d/e.png", "f./g.PY"])
def test_other_files_and_hidden_ones_are_no_inputs(name):
    assert not is_input(name)


def test_members_with_a_password_are_refused_alone(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"0.png": b"0", "1.png": b"1", "in.zip": b"2"})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as packed:
        for info in packed.infolist()[1:]:
            data[info.header_offset + 6] |= 1
    for name in (b"1.png", b"in.zip"):
        data[data.rindex(name) - 46 + 8] |= 1
    path.write_bytes(data)
    archive = only(path)
    inner = "the rest of this archive in the archive: encrypted"
    assert [found for _, _, found in contents(archive)] == [b"0", "encrypted", inner]
    assert archive.damaged == ["encrypted"]


@pytest.mark.parametrize("name", WRITERS)
def test_data_in_place_are_the_same_bytes(tmp_path, name):
    """Pieces only of local tars and folders, and never of what may be a DICOM file."""
    dicom = bytes(128) + b"DICM" + b"rest"
    members = {"a.png": b"first", "b.jpg": b"", "c.png": dicom, "d": b"bare", "e/1.2.3": b"uid"}
    path = WRITERS[name](tmp_path / name, members)
    archives = find_archives([path])
    for archive in archives:
        kinds, found = {}, {}
        for in_place in (False, True):
            (chunk,) = archive_chunks(archive, lambda _: False, None, in_place=in_place)
            for item in chunk.inputs:
                kinds[item.member] = type(item.data)
                data = item.data.read() if isinstance(item.data, Piece) else item.data
                found.setdefault(item.member, []).append(data)
        assert len(found) == len(members)
        assert all(len(set(pair)) == 1 for pair in found.values())
        pieces = {member for member, kind in kinds.items() if kind is Piece}
        assert pieces == ({"a.png", "b.jpg"} if name in ("a.tar", "a") else set())


def test_a_sparse_member_has_no_piece(tmp_path):
    """Its bytes do not lie in the tar as they are."""
    (tmp_path / "x.png").write_bytes(b"begin")
    with (tmp_path / "x.png").open("r+b") as file:
        file.truncate(1 << 20)
    command = ["tar", "--sparse", "--format=gnu", "-cf", "a.tar", "x.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if (tmp_path / "a.tar").stat().st_size > 1 << 20:
        pytest.skip("this file system has no holes")
    entry = next(every := only(tmp_path / "a.tar").entries())
    assert entry.piece is None
    assert entry.read() == b"begin".ljust(1 << 20, b"\0")
    assert next(every, None) is None


def test_a_piece_that_is_not_there_any_more_stops_the_run(tmp_path):
    (tmp_path / "DOE.png").write_bytes(b"0123456789")
    piece = Piece(str(tmp_path / "DOE.png"), "scans", 2, 6)
    assert (piece.head(3), piece.read()) == (b"234", b"234567")
    with DecodePool(1, None, 32) as pool:
        for size, message in ((7, "changed while it was read"), (0, "run it again")):
            os.truncate(tmp_path / "DOE.png", size) if size else (tmp_path / "DOE.png").unlink()
            with pytest.raises(RunFailed, match=f"scans.*{message}") as told:
                list(pool.run([Task(None, [piece])]))
            assert "DOE" not in str(told.value)
    assert piece.head(3) is None
