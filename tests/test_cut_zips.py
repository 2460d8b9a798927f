"""Of a zip without its list of members, all that lies before the cut is read, however it was
written; the rest is one error, and its limits are those of a whole zip."""

import io
import random
import struct
import zipfile
from pathlib import Path

import fsspec
import pytest
from test_archives import only, read_until_damage, write_zip
from test_score import config, pictures, rows

from serve import entries
from serve.entries import ArchiveDamaged
from serve.score import score
from shards.console import RunFailed
from shards.urls import path_of

RANDOM = random.Random(0)
MEMBERS = {f"{i}/ä{i}.png": RANDOM.randbytes(RANDOM.randrange(400)) * 2 for i in range(12)}


class Streamed(io.BytesIO):
    """The sizes of what is written into it follow the members."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation


def written(members: dict[str, bytes], method: int, *, streamed: bool, zip64: bool) -> bytes:
    out = Streamed() if streamed else io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as packed:
        packed.writestr("a folder/", b"")
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with packed.open(info, "w", force_zip64=zip64) as file:
                file.write(data)
    return out.getvalue()


def ends_of(data: bytes) -> list[int]:
    """Where each member but the folder ends: where the next one, or the list, begins."""
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        infos = packed.infolist()
        return [*(info.header_offset for info in infos[2:]), packed.start_dir]


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_cut_gives_the_members_before_it(tmp_path, method, streamed, zip64):
    data = written(MEMBERS, method, streamed=streamed, zip64=zip64)
    ends = ends_of(data)
    cuts = {end + step for end in ends for step in (-1, 0, 1, 29)}
    cuts |= {len(data) - 1, len(data) - 22, len(data) - 100, *RANDOM.sample(range(len(data)), 40)}
    for cut in sorted(cuts):
        (tmp_path / "a.zip").write_bytes(data[:cut])
        found, damage = read_until_damage(tmp_path / "a.zip")
        assert found == list(MEMBERS.values())[: sum(end <= cut for end in ends)], cut
        assert damage is not None
        assert "no list of members" in damage


def test_fifty_images_are_scored_up_to_the_cut(tmp_path):
    whole = write_zip(tmp_path / "a.zip", pictures(50))
    score(config(tmp_path, whole, out="whole"))
    expected = {row["member"]: row["prob_Normal"] for row in rows(tmp_path / "whole")}
    data = whole.read_bytes()
    with zipfile.ZipFile(whole) as packed:
        ends = [*(info.header_offset for info in packed.infolist()[1:]), packed.start_dir]
    for number, cut in enumerate([100, ends[20], ends[20] - 1, ends[49] + 10, len(data) - 100]):
        whole.write_bytes(data[:cut])
        with pytest.raises(RunFailed, match=r"no list of members .* what could be read is scored"):
            score(config(tmp_path, whole, out=f"{number}"))
        *found, rest = rows(tmp_path / f"{number}")
        count = sum(end <= cut for end in ends)
        assert {row["member"]: row["prob_Normal"] for row in found} == dict(
            list(expected.items())[:count]
        )
        assert (rest["member"], rest["prob_Normal"]) == ("", None)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_list_of_a_zip_in_it_is_not_taken_for_its_own(tmp_path, streamed):
    inner = written({"x.png": b"inner"}, zipfile.ZIP_STORED, streamed=False, zip64=False)
    members = {"0.png": b"first", "in.zip": inner, "2.png": b"last"}
    data = written(members, zipfile.ZIP_STORED, streamed=streamed, zip64=False)
    _, end, _ = ends_of(data)
    for cut in (data.index(inner) + len(inner), end, end + 3, end + 31):
        (tmp_path / "a.zip").write_bytes(data[:cut])
        found, damage = read_until_damage(tmp_path / "a.zip")
        assert found == [b"first", b"inner"][: 1 + (cut >= end)], cut
        assert damage is not None
    (tmp_path / "a.zip").write_bytes(data)
    assert read_until_damage(tmp_path / "a.zip") == ([b"first", b"inner", b"last"], None)
    (tmp_path / "b.zip").write_bytes(b"a program" + data)
    assert read_until_damage(tmp_path / "b.zip") == ([b"first", b"inner", b"last"], None)


def test_a_damaged_and_an_encrypted_member_are_refused_alone(tmp_path):
    members = {f"{i}.png": RANDOM.randbytes(300) for i in range(4)}
    data = bytearray(written(members, zipfile.ZIP_DEFLATED, streamed=False, zip64=False))
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        _, _, damaged, encrypted, _ = packed.infolist()
    data[damaged.header_offset + 30 + 100] ^= 1
    data[encrypted.header_offset + 6] |= 1
    (tmp_path / "a.zip").write_bytes(data[:-30])
    found, damage = read_until_damage(tmp_path / "a.zip")
    assert (found[0], found[2], found[3]) == (members["0.png"], "encrypted", members["3.png"])
    assert isinstance(found[1], str)
    assert damage is not None


@pytest.mark.parametrize("streamed", [False, True])
def test_a_bomb_that_is_cut_is_stopped(tmp_path, monkeypatch, streamed):
    monkeypatch.setattr(entries, "MAX_MEMBER_BYTES", 1 << 16)
    members = {f"{i}.png": bytes(1 << 20) for i in range(8)}
    data = written(members, zipfile.ZIP_DEFLATED, streamed=streamed, zip64=False)
    (tmp_path / "a.zip").write_bytes(data[:-30])
    with pytest.raises(ArchiveDamaged, match="expands to more than"):
        list(only(tmp_path / "a.zip").entries())


def test_a_header_that_says_less_than_there_is_bounds_what_is_read(tmp_path):
    data = bytearray(
        written({"0.png": bytes(1 << 22)}, zipfile.ZIP_DEFLATED, streamed=False, zip64=False)
    )
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        struct.pack_into("<L", data, packed.infolist()[1].header_offset + 22, 50)
    (tmp_path / "a.zip").write_bytes(data[:-30])
    (found,), damage = read_until_damage(tmp_path / "a.zip")
    assert "CRC" in str(found)
    assert damage is not None


@pytest.mark.parametrize("streamed", [False, True])
def test_flipped_bytes_of_a_cut_zip_never_escape(tmp_path: Path, streamed):
    rng = random.Random(1)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        whole = written(dict(list(MEMBERS.items())[:4]), method, streamed=streamed, zip64=True)
        for _ in range(100):
            data = bytearray(whole[:-30])
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path / "a.zip").write_bytes(data)
            read_until_damage(tmp_path / "a.zip")


def test_a_cut_zip_behind_a_url_gives_the_same(tmp_path):
    fs = fsspec.filesystem("memory")
    data = written(MEMBERS, zipfile.ZIP_DEFLATED, streamed=True, zip64=False)[:-30]
    fs.pipe_file("/cut/a.zip", data)
    (tmp_path / "a.zip").write_bytes(data)
    found = read_until_damage(path_of("memory://cut/a.zip"))
    fs.store.clear()
    assert found == read_until_damage(tmp_path / "a.zip")
    assert found[0] == list(MEMBERS.values())
