"""shards.tars: the one reader of strangers' tars; a tar that is not whole never looks whole."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.tars import MAX_HEADER_BYTES, TarDamaged, members, open_tar, read_member

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=130)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=700)), max_size=6)
KINDS = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


def pack(
    files: list[tuple[str, bytes]], layout: int = tarfile.GNU_FORMAT, *, ended: bool = True
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return buffer.getvalue() if ended else buffer.getvalue()[:end]


def unpack(data: bytes, *, seekable: bool = False) -> list[tuple[str, bytes]]:
    with open_tar(io.BytesIO(data), seekable=seekable) as tar:
        return [(m.name, read_member(tar, m)) for m in members(tar) if m.isreg()]


@given(FILES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.booleans())
def test_every_member_comes_back(files, layout, seekable):
    found = unpack(pack(files, layout), seekable=seekable)
    assert [data for _, data in found] == [data for _, data in files]


@given(FILES.filter(bool), st.data())
def test_a_tar_that_is_cut_is_damaged(files, data):
    whole = pack([(f"{n}.png", content) for n, (_, content) in enumerate(files)])
    end = sum(512 + -(-len(content) // 512) * 512 for _, content in files)
    cut = whole[: data.draw(st.integers(0, end))]  # behind it stands the end mark
    for seekable in (True, False):
        with pytest.raises(TarDamaged):
            unpack(cut, seekable=seekable)


@given(FILES.filter(bool), st.data())
def test_a_flipped_bit_in_a_header_is_damage(files, data):
    whole = bytearray(pack([(f"{n}.png", content) for n, (_, content) in enumerate(files)]))
    # Byte 155 ends the check sum's own field: it is neither part of a sum nor read by anyone.
    place = data.draw(st.integers(0, 499).filter(lambda at: at != 155))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(TarDamaged):
        unpack(bytes(whole))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SYMTYPE])
def test_a_header_of_a_huge_size_is_refused_unread(kind: bytes):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, MAX_HEADER_BYTES + 1
    with pytest.raises(TarDamaged, match=f"a tar header of {info.size} bytes"):
        unpack(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))


@given(FILES, FILES, st.integers(1, 30), st.integers(0, 511), st.booleans())
def test_what_stands_behind_zero_blocks_is_read(before, behind, zeros, rest, seekable):
    """A lone zero block, or an end mark with another tar joined to it, whose padding is cut."""
    joined = pack(before, ended=False) + bytes(512 * zeros) + pack(behind) + bytes(rest)
    assert unpack(joined, seekable=seekable) == unpack(pack(before)) + unpack(pack(behind))


@pytest.mark.parametrize("more", [b"x", b"no tar" * 99, bytes(700) + b"x"])
def test_data_behind_the_end_that_are_no_tar_are_damage(more: bytes):
    with pytest.raises(TarDamaged, match="behind the mark of its end"):
        unpack(pack([("a", b"a")]) + more)


def test_what_is_no_file_holds_nothing():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in KINDS:
            info = tarfile.TarInfo(f"{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert unpack(buffer.getvalue()) == []
    with open_tar(io.BytesIO(buffer.getvalue())) as tar:
        assert len(list(members(tar))) == len(KINDS)


def test_headers_are_not_kept():
    with open_tar(io.BytesIO(pack([(str(n), b"") for n in range(50)]))) as tar:
        for _ in members(tar):
            assert len(tar.members) <= 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("data", [b"", b"no tar" * 999, bytes(511)])
def test_what_is_no_tar(data: bytes):
    with pytest.raises(TarDamaged):
        unpack(data)
