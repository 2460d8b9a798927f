"""ingest.spool: what was encoded survives, what was half written does not count."""

import errno
from pathlib import Path

import pytest

from ingest.encode import Encoded, Rejected
from ingest.spool import Spool, remove_spool
from shards.console import RunFailed, UserError

SETTINGS = {"format": "htj2k", "shorter_side": 512}


def encoded(text: str) -> Encoded:
    return Encoded(text.encode(), "jph", 3, 4, f"sha-{text}", f"pixels-{text}")


def test_entries_survive(tmp_path: Path):
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("a", "s1", encoded("first"))
        spool.add("b", "s1", Rejected("broken", "sha-b"))
        spool.add("c", "s2", encoded("third"))
    with Spool(tmp_path, SETTINGS) as spool:
        assert spool.has("a", "s1")
        assert spool.read(spool.entries["a"]) == b"first"
        assert spool.read(spool.entries["c"]) == b"third"
        assert spool.entries["b"].problem == "broken"
        assert spool.entries["c"].width == 3


def test_another_file_under_the_name_and_rejected_ones_are_done_again(tmp_path: Path):
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("a", "s1", encoded("old"))
        spool.add("b", "s1", Rejected("broken", ""))
    with Spool(tmp_path, SETTINGS) as spool:
        assert not spool.has("a", "s2")
        assert not spool.has("b", "s1")
        assert not spool.has("z", "s1")
        spool.add("a", "s2", encoded("new"))
        spool.add("b", "s1", encoded("mended"))
    with Spool(tmp_path, SETTINGS) as spool:
        assert spool.read(spool.entries["a"]) == b"new"
        assert spool.read(spool.entries["b"]) == b"mended"


def test_chunks_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ingest.spool._CHUNK_IMAGES", 4)
    with Spool(tmp_path, SETTINGS) as spool:
        for i in range(10):
            spool.add(str(i), "s", encoded(f"image {i}"))
    assert len(list(tmp_path.glob(".spool/*.jsonl"))) == 3
    with Spool(tmp_path, SETTINGS) as spool:
        contents = {name: spool.read(entry) for name, entry in spool.entries.items()}
    assert contents == {str(i): f"image {i}".encode() for i in range(10)}


def test_a_chunk_without_its_list_does_not_count(tmp_path: Path):
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("a", "s", encoded("whole"))
    (tmp_path / ".spool/chunk-00001.bin").write_bytes(b"half of an image")
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("b", "s", encoded("after"))
    with Spool(tmp_path, SETTINGS) as spool:
        assert spool.read(spool.entries["b"]) == b"after"
        assert spool.entries.keys() == {"a", "b"}


def test_ctrl_c_keeps_what_was_done(tmp_path: Path):
    def stopped() -> None:
        with Spool(tmp_path, SETTINGS) as spool:
            spool.add("a", "s", encoded("done"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with Spool(tmp_path, SETTINGS) as spool:
        assert spool.has("a", "s")


def test_other_settings_are_refused(tmp_path: Path):
    with Spool(tmp_path, SETTINGS):
        pass
    with pytest.raises(UserError, match="shorter_side was 512, now 256"):
        Spool(tmp_path, {**SETTINGS, "shorter_side": 256})


ASKED = {"seed": 0, "metadata_sha256": "m", "files_sha256": "f"}


def test_a_set_that_was_begun_otherwise_is_refused(tmp_path: Path, capsys):
    def stopped() -> None:
        with Spool(tmp_path, SETTINGS, ASKED) as spool:
            spool.add("a", "s", encoded("done"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    for other in ({"seed": 7}, {"metadata_sha256": "n"}, {"seed": 7, "files_sha256": "g"}):
        with pytest.raises(UserError, match=r" was .*, now .*; use the same settings .*or remove "):
            Spool(tmp_path, SETTINGS, ASKED | other)
    with Spool(tmp_path, SETTINGS, ASKED) as spool:
        assert spool.has("a", "s")
    assert capsys.readouterr().err == ""
    mended = ASKED | {"metadata_sha256": "n", "files_sha256": "g"}
    with Spool(tmp_path, SETTINGS, mended) as spool:
        assert spool.has("a", "s")
    assert capsys.readouterr().err.count("(names and sizes of the source's files)") == 1
    with Spool(tmp_path, SETTINGS, mended):
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [UserError, RunFailed])
def test_settings_that_failed_may_be_changed_aloud(tmp_path: Path, error: type, capsys):
    def failing() -> None:
        with Spool(tmp_path, SETTINGS, ASKED) as spool:
            spool.add("a", "s", encoded("done"))
            raise error("too few images in a class")

    with pytest.raises(error):
        failing()
    with Spool(tmp_path, SETTINGS, ASKED | {"seed": 7}) as spool:
        assert spool.has("a", "s")
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path} was begun with other settings: seed was 0, now 7;")
    assert said.count("\n") == 1
    with pytest.raises(UserError, match="seed was 7, now 0"):
        Spool(tmp_path, SETTINGS, ASKED)


def test_images_of_unknown_settings_are_refused(tmp_path: Path):
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("a", "s", encoded("of 512 pixels"))
    (tmp_path / ".spool/settings.json").unlink()
    with pytest.raises(UserError, match=r"settings.json is missing, .*; remove "):
        Spool(tmp_path, {**SETTINGS, "shorter_side": 256})
    for chunk in (tmp_path / ".spool").glob("chunk-*"):
        chunk.unlink()
    with Spool(tmp_path, SETTINGS) as spool:
        assert not spool.entries


def test_two_at_a_time_are_refused(tmp_path: Path):
    with Spool(tmp_path, SETTINGS), pytest.raises(UserError, match="another ingest"):
        Spool(tmp_path, SETTINGS)


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch, capsys):
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr("shards.lock.fcntl.flock", unknown)
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("a", "s1", encoded("first"))
    err = capsys.readouterr().err
    assert "lock cannot be locked (no locks here); see that no other run writes there" in err


def test_images_that_went_away_are_forgotten(tmp_path: Path):
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("a", "s", encoded("1"))
        spool.add("b", "s", encoded("2"))
        spool.retain({"b"})
        assert spool.entries.keys() == {"b"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("settings.json", b"{"),
        ("settings.json", b"3"),
        ("begun.json", b"{"),
        ("begun.json", b"[1]"),
        ("begun.json", b'{"settings": {}}'),
        ("chunk-00000.jsonl", b'{"location": 1, "of another version": 2}\n'),
        ("chunk-00000.jsonl", b"\xff\n"),
    ],
)
def test_what_is_damaged_ends_in_one_line(tmp_path: Path, name: str, data: bytes):
    with Spool(tmp_path, {}, {}) as spool:
        spool.add("a", "", Rejected("bad", ""))
    (tmp_path / ".spool" / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is damaged or of another version; remove "):
        Spool(tmp_path, {}, {})


def test_a_blob_that_lost_its_end_is_told(tmp_path: Path):
    with Spool(tmp_path, {}) as spool:
        spool.add("a", "", Encoded(b"image", "png", 1, 1, "", ""))
        spool.flush()
        blob = tmp_path / ".spool/chunk-00000.bin"
        blob.write_bytes(blob.read_bytes()[:-1])
        with pytest.raises(UserError, match=r"chunk-00000.bin is damaged"):
            spool.read(spool.entries["a"])


def test_a_removal_cut_short_leaves_no_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A kill in the middle of it: what is left must not be in the way of the next run."""
    with Spool(tmp_path, SETTINGS) as spool:
        spool.add("a", "s1", encoded("first"))
    monkeypatch.setattr("shutil.rmtree", lambda folder: (folder / "settings.json").unlink())
    remove_spool(tmp_path)
    with Spool(tmp_path, SETTINGS) as spool:
        assert not spool.has("a", "s1")
