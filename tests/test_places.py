"""ingest.places: no source is written into, and nothing but an ingest's files is published."""

import shutil
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from dicom_maker import picture, table, write
from ingest_runs import config, covid, nih, run_cli, tree

from ingest import run as ingest_run
from ingest.estimate import estimate
from ingest.record import Source
from ingest.retry import retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.dicom import Dicom, DicomConfig
from ingest.sources.folders import Folders, FoldersConfig
from ingest.sources.table import Table, TableConfig
from shards.console import UserError
from shards.urls import path_of


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """fsspec's file system in memory, empty; the cache of the user is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(type(fs), "store", {})
    return fs


def classes(src: Path) -> Folders:
    rng = np.random.default_rng(0)
    for number in range(20):
        path = src / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", rng.integers(0, 256, (16, 16), np.uint8))[1])
    return Folders(FoldersConfig(src))


def refused(source: Source, options) -> str:
    """What ingest, a dry run and a retry say; nothing is written."""
    said = set()
    for act in (ingest, estimate, retry):
        if act is retry and options.work is not None:
            continue
        with pytest.raises(UserError) as caught:
            act(source, options)
        said.add(str(caught.value))
    (message,) = said
    assert "\n" not in message
    return message


def sources(tmp_path: Path, raw: Path) -> dict[str, tuple[Path, Source]]:
    """Name -> the folder that is read, and its source."""
    for name in ("chestxray14", "covid-radiography"):
        shutil.copytree(raw / name, tmp_path / "raw" / name)
    write(tmp_path / "raw/dicom/1.dcm", picture(1), bits=12)
    rows = table(tmp_path / "labels.csv", "1.dcm,a")
    ours = classes(tmp_path / "raw/folders")
    paths = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(ours.files)]
    listed = table(tmp_path / "paths.csv", *paths, header="path,labels")
    shutil.copytree(tmp_path / "raw/folders", tmp_path / "raw/csv")
    built = {
        "chestxray14": nih(tmp_path / "raw"),
        "covid-radiography": covid(tmp_path / "raw"),
        "folders": ours,
        "csv": Table(TableConfig(tmp_path / "raw/csv", listed)),
        "dicom": Dicom(DicomConfig(tmp_path / "raw/dicom", rows, tmp_path / "key")),
    }
    return {name: (tmp_path / "raw" / name, source) for name, source in built.items()}


def test_no_source_is_written_into(tmp_path: Path, tiny_raw: Path, memory):
    (tmp_path / "linked").symlink_to(tmp_path / "raw")
    for name, (src, source) in sources(tmp_path, tiny_raw).items():
        before = tree(src)
        for out, relation in (
            (src.parent, "is"),
            (tmp_path / "linked", "is"),
            (src, "lies in"),
            (src / "deep/shards", "lies in"),
        ):
            message = refused(source, config(out))
            assert message.startswith(f"--out {out}: the ingest would write to {out / name}, which")
            assert f"which {relation} " in message
            url = config(path_of("memory://out"), work=out)
            assert f"--work {out}: " in refused(source, url)
        assert tree(src) == before
        assert not (src / "deep").exists()
    assert not memory.store


def test_an_output_around_the_source_or_its_table(tmp_path: Path):
    source = classes(tmp_path / "out/folders/raw")
    assert "out/folders, which holds " in refused(source, config(tmp_path / "out"))
    (tmp_path / "csv").mkdir()
    listed = table(tmp_path / "csv/paths.csv", "a/0.png,x", "b/1.png,y", header="path,labels")
    rows = Table(TableConfig(tmp_path / "out/folders/raw", listed))
    assert f"holds {listed}" in refused(rows, config(tmp_path))
    ingest(source, config(tmp_path / "out/folders-shards"))  # a folder beside it is no part of it


def test_a_url_inside_the_source_is_refused(tmp_path: Path, memory):
    for path in classes(tmp_path / "src").files.values():
        place = path.relative_to(tmp_path / "src").as_posix()
        memory.pipe_file(f"/sets/folders/{place}", path.read_bytes())
    before = dict(memory.store)
    source = Folders(FoldersConfig(path_of("memory://sets/folders")))
    for out in ("memory://sets", "memory://sets/folders/shards"):
        with pytest.raises(UserError, match="the ingest would write to"):
            ingest(source, config(path_of(out)))
    assert memory.store == before
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("place", ["notes.txt", "train/patients.png", "lists/all.csv", "x.parquet"])
def test_a_strange_file_is_neither_published_nor_removed(tmp_path: Path, memory, place: str):
    stray = tmp_path / "work/folders" / place
    stray.parent.mkdir(parents=True)
    stray.write_text("a patient's name")
    url = config(path_of("memory://out"), work=tmp_path / "work")
    with pytest.raises(UserError, match=r"holds 1 files that no ingest writes.*another --work"):
        ingest(classes(tmp_path / "src"), url)
    assert stray.is_file()
    assert not memory.store


def test_a_file_that_comes_later_is_not_published_either(
    tmp_path: Path, memory, monkeypatch: pytest.MonkeyPatch
):
    stray = tmp_path / "work/folders/notes.txt"
    url = config(path_of("memory://out"), work=tmp_path / "work")
    make = ingest_run._make

    def made(*arguments):
        manifest = make(*arguments)
        stray.write_text("a patient's name")
        return manifest

    monkeypatch.setattr("ingest.run._make", made)
    with pytest.raises(UserError, match="1 files that no ingest writes"):
        ingest(classes(tmp_path / "src"), url)
    assert not [name for name in memory.store if "notes" in name or "manifest" in name]
    stray.unlink()
    ingest(select(classes(tmp_path / "src"), SelectionConfig()), url)
    assert "/out/folders/manifest.json" in memory.store
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_a_file_is_no_place(tmp_path: Path):
    (tmp_path / "file").touch()
    said = refused(classes(tmp_path / "src"), config(tmp_path / "file"))
    assert said == f"--out {tmp_path / 'file'} is a file; name a folder"


def test_the_command_says_it_in_one_line(tmp_path: Path):
    classes(tmp_path / "folders")
    before = tree(tmp_path)
    done = run_cli("ingest", "folders", "--src", tmp_path / "folders", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out ")
    assert done.stderr.count("\n") == 1
    assert tree(tmp_path) == before
