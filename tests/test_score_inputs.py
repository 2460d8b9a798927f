"""Whatever way images are named or packed, each is scored once, and DICOM files name nobody."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from dicom_maker import make_dicom
from test_archives import WRITERS, contents, only, write_folder, write_tar, write_zip
from test_score import config, picture, pictures, rows

from serve import archives, entries, score_run
from serve.entries import ArchiveDamaged
from serve.score import score
from serve.score_inputs import find_archives
from serve.summary import SummaryConfig, summary
from shards.codec import encode
from shards.console import RunFailed, UserError
from shards.urls import path_of

NESTED = ["a.tar", "a.tar.gz", "a.zip"]


def dicom(seed: int) -> bytes:
    out = io.BytesIO()
    make_dicom(picture(seed)).save_as(out, enforce_file_format=True)
    return out.getvalue()


def packed(tmp_path: Path, name: str, members: dict[str, bytes]) -> bytes:
    (tmp_path / "inner").mkdir(exist_ok=True)
    return WRITERS[name](tmp_path / "inner" / name, members).read_bytes()


@pytest.mark.parametrize("outer", NESTED)
@pytest.mark.parametrize("inner", [*NESTED, "a.tar.xz"])
def test_archives_in_archives_give_their_members(tmp_path, outer, inner):
    members = {"x.png": b"one", "y/z.png": b"two", "list.csv": b"a"}
    found = {"1.png": b"first", inner: packed(tmp_path, inner, members), "2.png": b"last"}
    path = WRITERS[outer](tmp_path / outer, found)
    for keep_names, called in ((False, "archive-1"), (True, inner)):
        (archive,) = find_archives([path], keep_names=keep_names)
        assert [(name, data) for name, _, data in contents(archive)] == [
            ("1.png", b"first"),
            (f"{called}/x.png", b"one"),
            (f"{called}/y/z.png", b"two"),
            ("2.png", b"last"),
        ]
        assert archive.skipped == {"other files": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([outer, "inner"])


@pytest.mark.parametrize("outer", NESTED)
@pytest.mark.parametrize("inner", NESTED)
def test_a_damaged_inner_archive_costs_its_rest_alone(tmp_path, outer, inner):
    whole = packed(tmp_path, inner, {f"{i}.png": bytes([i]) * 600 for i in range(4)})
    members = {inner: whole[: len(whole) // 3], "z.png": b"last"}
    found = contents(only(WRITERS[outer](tmp_path / outer, members)))
    assert found[-1][2] == b"last"
    assert found[-2][0] == "archive-1"
    assert "the rest of this archive in the archive" in str(found[-2][2])


def test_an_archive_cut_short_in_an_archive_fails_the_run_which_scores_the_rest(tmp_path):
    inner = packed(tmp_path, "a.tar", pictures(4))
    images = pictures(2) | {"DOE.tar": inner[: len(inner) // 2], "ROE.tar": inner[:700]}
    path = write_tar(tmp_path / "o.tar", images | {"z.png": encode(picture(9), "png")})
    told = r"^o.tar: archives in it that cannot be read to their ends: 2 \("
    for _ in range(2):  # the second finds the folder finished
        with pytest.raises(RunFailed, match=told) as caught:
            score(config(tmp_path, path))
        assert "OE" not in str(caught.value)
    (archive,) = json.loads((tmp_path / "out/scores.json").read_bytes())["archives"]
    found = rows(tmp_path / "out")
    assert (archive["members"], archive["errors"]) == (len(found) - 2, 2)
    assert sum(row["error"] is None for row in found) == len(found) - 2 >= 4
    assert (found[-1]["member"], found[-1]["error"]) == ("z.png", None)
    said = score(config(tmp_path, path, dry_run=True)).lines()
    assert said[0].startswith(f"1 archives, {len(found)} inputs")
    assert any("damaged: " in line and "read to their ends: 2" in line for line in said)


def test_archives_nest_three_deep_and_no_further(tmp_path):
    data = packed(tmp_path, "a.tar", {"x.png": b"x"})
    for depth in (2, 3, 4):
        path = write_tar(tmp_path / "o.tar", {"a.tar": data})
        archive = only(path)
        found = contents(archive)
        assert len(found) == 1
        assert (found[0][2] == b"x") == (depth <= 3)
        data = path.read_bytes()
    assert found[0][2].endswith("the archive: more than 3 archives in each other")
    assert archive.damaged == ["more than 3 archives in each other"]  # so that the run fails


@pytest.mark.parametrize("outer", NESTED)
def test_archives_in_archives_are_called_by_their_numbers_there(tmp_path, outer):
    """Their names are often those of patients; those of shards are not."""
    png = pictures(1)
    inmost = packed(tmp_path, "a.zip", png)
    shard = "train/covid-radiography-train-000000.tar"
    within = {"DOE^ANN.zip": inmost, shard: inmost, "POE.zip": inmost[:90]}
    inner = packed(tmp_path, "a.tar", within)
    members = {"DOE^JANE.tar": inner, "sub/ROE.tar": inner[:700], "OE.zip": b"", shard: b""}
    path = WRITERS[outer](tmp_path / outer, members)
    with pytest.raises(RunFailed, match="read to their ends: 5 "):
        score(config(tmp_path, path))
    found = [(row["member"], row["key"], row["error"] is None) for row in rows(tmp_path / "out")]
    assert found == [
        ("archive-1/archive-1/00000.png", "00000", True),
        (f"archive-1/{shard}/00000.png", "00000", True),
        ("archive-1/archive-3", "input-3", False),
        ("archive-2/archive-1", "input-4", False),
        ("archive-2", "input-5", False),
        ("archive-3", "input-6", False),
        (shard, "input-7", False),
    ]
    written = b"".join(f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file())
    assert not re.search(rb"[DPR]OE|OE.zip", written)
    with pytest.raises(RunFailed):
        score(config(tmp_path, path, out="named", keep_names=True))
    assert rows(tmp_path / "named")[0]["member"] == "DOE^JANE.tar/DOE^ANN.zip/00000.png"


@pytest.mark.parametrize(("outer", "inner"), [("a.zip", "a.zip"), ("a.tar.gz", "a.zip")])
def test_the_budget_is_shared_with_inner_archives(tmp_path, outer, inner, monkeypatch):
    monkeypatch.setattr(entries, "MAX_MEMBER_BYTES", 1 << 16)
    bomb = packed(tmp_path, inner, {f"{i}.png": bytes(1 << 20) for i in range(4)})
    path = WRITERS[outer](tmp_path / outer, {f"{i}.zip": bomb for i in range(8)})
    with pytest.raises(ArchiveDamaged, match="expands to more than"):
        contents(only(path))


def test_a_compressed_inner_zip_over_the_memory_limit_is_refused(tmp_path, monkeypatch):
    data = packed(tmp_path, "a.zip", {"x.png": b"x" * 50})
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 100)
    path = write_zip(tmp_path / "o.zip", {"a.zip": data})
    archive = only(path)
    assert "a zip in an archive" in str(contents(archive)[0][2])
    assert len(archive.damaged) == 1
    assert contents(only(write_tar(tmp_path / "o.tar", {"a.zip": data})))[0][2] == b"x" * 50


def test_globs_lists_and_folders_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "one", {"a.png": b"a", "b.png": b"b", "c.txt": b"c"})
    write_tar(tmp_path / "t1.tar", {"x.png": b"x"})
    write_tar(tmp_path / "t2.tar", {"y.png": b"y"})
    write_folder(tmp_path / "two", {"deep/d.png": b"d"})
    (tmp_path / "list.txt").write_text("# two kinds\n\none/a.png\none/b.png\r\nt2.tar\n")
    found = find_archives([Path("t1.t*"), Path("@list.txt"), Path("two")])
    assert [a.kind for a in found] == ["tar", "tar", "files", "folder"]
    assert [[n for n, _, _ in contents(a)] for a in found] == [
        ["x.png"],
        ["y.png"],
        ["a.png", "b.png"],
        ["deep/d.png"],
    ]
    (globbed,) = find_archives([Path("**/*.png")])
    assert [n for n, _, _ in contents(globbed)] == ["one/a.png", "one/b.png", "two/deep/d.png"]


def test_lists_and_globs_that_cannot_be(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "gone.txt").write_text(f"{tmp_path}/gone.tar\n")
    for argument, message in [
        (f"@{tmp_path}/none.txt", "no list"),
        (f"@{tmp_path}/empty.txt", "names nothing"),
        (f"@{tmp_path}/binary.txt", "not UTF-8"),
        (f"@{tmp_path}/gone.txt", "no archive at"),
        (f"{tmp_path}/*.tar", "nothing matches"),
    ]:
        with pytest.raises(UserError, match=message):
            find_archives([Path(argument)])


def test_dicom_files_are_scored_as_their_pixels_and_name_nobody(tmp_path):
    members = {f"DOE^JANE/{i}": dicom(i) for i in range(3)} | {"DOE^JANE/x.dcm": b"damaged"}
    members |= {"DOE^JANE/scout.png": encode(picture(0), "png")}
    folder = write_folder(tmp_path / "tree", members)
    assert score(config(tmp_path, folder)).errors == 1
    found = {row["member"]: row for row in rows(tmp_path / "out")}
    plain = found.pop("DOE^JANE/scout.png")
    assert "DOE" not in str(list(found.values()))
    assert all(name.startswith("dicom-") and row["key"] == name for name, row in found.items())
    scores = [row["prob_Normal"] for row in found.values()]
    assert plain["prob_Normal"] in scores
    assert scores.count(None) == 1
    score(config(tmp_path, folder, out="named", keep_names=True))
    assert [row["member"] for row in rows(tmp_path / "named")] == sorted(members)


def test_a_dicom_file_that_cannot_be_read_is_named_by_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1000)
    path = write_zip(tmp_path / "a.zip", {"0.png": b"x", "DOE.dcm": bytes(2000)})
    score(config(tmp_path, path))
    assert [row["member"] for row in rows(tmp_path / "out")] == ["0.png", "input-2"]


def test_no_error_of_an_archive_cut_short_names_a_member(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"DOE.dcm": dicom(0), "ROE.dcm": dicom(1)})
    path.write_bytes(path.read_bytes()[:3500])
    with pytest.raises(RunFailed) as caught:
        score(config(tmp_path, path))
    assert "ROE" not in str(caught.value) + str(rows(tmp_path / "out"))


def test_no_error_of_a_zip_names_a_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", {f"O'DOE^{i}.dcm": dicom(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as whole:
        first, second, _ = whole.infolist()
    data[first.header_offset + 30] ^= 1  # the name in its header
    data[second.header_offset + 30 + len(second.filename) + 200] ^= 1
    path.write_bytes(data)
    score(config(tmp_path, path))
    found = [(row["member"], row["error"]) for row in rows(tmp_path / "out")]
    assert found[0] == ("input-1", "File name in directory ... differ.")
    assert found[1][0] == "input-2"
    assert "CRC-32" in str(found[1]) or "decompressing" in str(found[1])
    assert found[2][1] is None
    assert "DOE" not in str(found)


def test_archives_that_were_found_are_not_called_by_names_that_nobody_gave(tmp_path):
    inner = packed(tmp_path, "a.zip", {"1.dcm": dicom(0)})
    (tmp_path / "tree/sub").mkdir(parents=True)
    shard = write_tar(tmp_path / "tree/sub/covid-radiography-test-000000.tar", pictures(1))
    for name, data in {"DOE^JANE.zip": inner, "ROE^JOHN.zip": inner[:100]}.items():
        (tmp_path / "tree" / name).write_bytes(data)
    write_tar(tmp_path / "given.tar", {"DOE^ANN.zip": inner[:100], "POE": dicom(2)})
    asked = config(tmp_path, tmp_path / "tree", tmp_path / "given.tar")
    with pytest.raises(RunFailed, match=r"^tree/archive-2: no list of members"):
        score(asked)
    found = [(row["archive"], row["member"][:6]) for row in rows(tmp_path / "out")]
    assert found == [
        ("tree/archive-1", "dicom-"),
        ("tree/archive-2", ""),
        (shard.name, "00000."),
        ("given.tar", "archiv"),
        ("given.tar", "dicom-"),
    ]
    written = b"".join(f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file())
    assert not re.search(rb"[DRP]OE", written)
    summary(SummaryConfig(tmp_path / "out", top=2))
    with pytest.raises(RunFailed, match=r"^ROE\^JOHN.zip: no list"):
        score(config(tmp_path, tmp_path / "tree", out="named", keep_names=True))
    assert [row["archive"] for row in rows(tmp_path / "named")][:2] == [
        "DOE^JANE.zip",
        "ROE^JOHN.zip",
    ]


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_an_archive_behind_a_url_gives_the_rows_of_the_file(tmp_path, memory, name):
    path = WRITERS[name](tmp_path / name, pictures(5))
    memory.pipe_file(f"/data/{name}", path.read_bytes())
    score(config(tmp_path, path_of(f"memory://data/{name}")))
    score(config(tmp_path, path, out="local"))
    assert rows(tmp_path / "out") == rows(tmp_path / "local")


def test_a_folder_and_a_glob_behind_a_url(tmp_path, memory):
    for name, data in {"a.png": b"a", "sub/b.png": b"b", "sub/c.csv": b"c"}.items():
        memory.pipe_file(f"/data/{name}", data)
    (folder,) = find_archives([path_of("memory://data")])
    assert [(n, d) for n, _, d in contents(folder)] == [("a.png", b"a"), ("sub/b.png", b"b")]
    (globbed,) = find_archives([path_of("memory://data/*.png")])
    assert [d for _, _, d in contents(globbed)] == [b"a"]
    with pytest.raises(UserError, match="nothing matches"):
        find_archives([path_of("memory://data/*.zip")])


def test_an_object_that_changed_is_refused(tmp_path, memory):
    data = write_tar(tmp_path / "a.tar", pictures(3)).read_bytes()
    memory.pipe_file("/data/a.tar", data)
    score(config(tmp_path, path_of("memory://data/a.tar")))
    memory.pipe_file("/data/a.tar", data)  # the same bytes, but who knows what lies between
    with pytest.raises(UserError, match=r"archives\[0\]\.sha256 was .* use another --out"):
        score(config(tmp_path, path_of("memory://data/a.tar")))


def test_an_archive_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", pictures(3))
    real = score_run.identify

    def changed(archive):
        with tarfile.open(path, "a") as tar:
            tar.addfile(tarfile.TarInfo("late.png"))
        return real(archive)

    monkeypatch.setattr(score_run, "identify", changed)
    with pytest.raises(RunFailed, match="changed while it was read"):
        score(config(tmp_path, path))
    assert not (tmp_path / "out/scores.json").exists()


def test_pixels_of_dicom_files_are_those_of_the_viewer(tmp_path):
    image = np.tile(np.arange(48, dtype=np.uint8), (40, 1))
    out = io.BytesIO()
    data = make_dicom(image, PhotometricInterpretation="MONOCHROME1")
    data.save_as(out, enforce_file_format=True)
    folder = write_folder(
        tmp_path / "f", {"a.dcm": out.getvalue(), "b.png": encode(255 - image, "png")}
    )
    score(config(tmp_path, folder))
    one, other = rows(tmp_path / "out")
    assert one["prob_Normal"] == other["prob_Normal"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_server_that_fails_is_no_damaged_archive(tmp_path, memory, monkeypatch, name):
    """What the server did not send is read by the next call of the same command."""
    monkeypatch.setattr("shards.remote_errors.WAIT_S", 0.0)
    data = WRITERS[name](
        tmp_path / name, {f"{i}.png": encode(picture(i, (300, 300)), "png") for i in range(9)}
    )
    memory.pipe_file(f"/data/{name}", data.read_bytes())
    url = f"memory://data/{name}"
    real = type(memory).cat_file

    def cut(self, path, start=None, end=None, **more):
        if start and start >= 2**18:
            raise ConnectionError("reset")
        return real(self, path, start, end, **more)

    monkeypatch.setattr(type(memory), "cat_file", cut)
    with pytest.raises(RunFailed, match=r"reset .* goes on where it stopped"):
        score(config(tmp_path, path_of(url)))
    assert not list((tmp_path / "out/ends").iterdir())
    monkeypatch.setattr(type(memory), "cat_file", real)
    assert score(config(tmp_path, path_of(url))).scored == 9
