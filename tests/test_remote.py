"""shards.remote and ingest.remote: data sets from URLs and to URLs are those of local folders."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
import pytest
from ingest_runs import config, tree

from ingest import run as ingest_run
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from ingest.sources.table import Table, TableConfig
from shards import __main__ as command
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest
from shards.remote import RemotePath, name_below
from shards.remote_file import RemoteFile
from shards.urls import path_of, place_of
from shards.verify import unfinished, verify_dataset


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """fsspec's file system in memory, empty; the cache of the user is a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("shards.remote_errors.WAIT_S", 0.0)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def put(fs: Any, folder: Path, place: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{place}/{path.relative_to(folder)}", path.read_bytes())


def download(url: str, folder: Path) -> dict[str, str]:
    """The files behind a URL as `tree` shows a local folder."""
    for path in cast(RemotePath, path_of(url)).files():
        copy = folder / name_below(path, path_of(url))
        copy.parent.mkdir(parents=True, exist_ok=True)
        path.fetch(copy)
    return tree(folder)


def nih_at(url: str) -> ChestXray14:
    return ChestXray14(ChestXray14Config(path_of(f"{url}/chestxray14")))


def test_from_a_url_to_a_url_the_bytes_are_the_same(
    memory: Any, tiny_raw: Path, tiny_shards: Path, tmp_path: Path
):
    put(memory, tiny_raw, "/raw")
    options = config(path_of("memory://out/sets"))
    ingest(nih_at("memory://raw"), options)
    found = download("memory://out/sets", tmp_path / "copy")
    expected = tree(tiny_shards / "chestxray14")
    assert found == {f"chestxray14/{name}": hashed for name, hashed in expected.items()}
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert ingest(nih_at("memory://raw"), options) == load_manifest(tiny_shards / "chestxray14")
    assert "memory" not in (tmp_path / "copy/chestxray14/manifest.json").read_text()
    with pytest.raises(UserError, match=r"memory://out/sets/chestxray14 is finished, with other"):
        ingest(nih_at("memory://raw"), config(options.out, seed=1))


def test_folders_and_tables_of_urls(memory: Any, tiny_raw: Path, tmp_path: Path):
    put(memory, tiny_raw / "covid-radiography", "/raw")

    def covid(src: Path) -> CovidRadiography:
        return CovidRadiography(CovidRadiographyConfig(src))

    here, there = covid(tiny_raw / "covid-radiography"), covid(path_of("memory://raw"))
    assert there.records() == here.records()
    assert sorted(there.inventory()) == sorted(here.inventory())
    expected = {image.location: image.read() for image in here.images()}
    assert {image.location: image.read() for image in there.images()} == expected
    names = [name for name in expected if name.startswith("NORMAL")]
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate([*names, "NORMAL/gone.png"])]
    memory.pipe_file("/table.csv", "\n".join(["path,labels", *rows]).encode())
    table = Table(TableConfig(path_of("memory://raw"), path_of("memory://table.csv")))
    assert list(table.files) == names
    assert [image.read() for image in table.images()] == [expected[name] for name in names]


def test_an_upload_that_breaks_off_goes_on(
    memory: Any, tiny_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = ChestXray14(ChestXray14Config(tiny_raw / "chestxray14"))
    out, whole = path_of("memory://out"), type(memory).put_file
    memory.pipe_file(
        "/out/chestxray14/train/chestxray14-train-000009.tar", b"of an earlier attempt"
    )
    puts: list[str] = []

    def break_off(self: Any, local: str, place: str, **options: Any) -> None:
        puts.append(place)
        if place.startswith("/out/chestxray14/train"):
            self.pipe_file(place, b"half")
            raise TimeoutError("the line is cut")
        whole(self, local, place, **options)

    monkeypatch.setattr(type(memory), "put_file", break_off)
    with pytest.raises(RunFailed, match=r"the line is cut \(4 tries\).*goes on where it stopped"):
        ingest(source, config(out))
    names = [path.name for path in (out / "chestxray14/train").iterdir()]
    assert names == ["chestxray14-train-000000.idx.tmp", "chestxray14-train-000009.tar"]
    assert unfinished(out) == ["memory://out/chestxray14 is not finished"]
    before, puts[:] = set(puts), []
    monkeypatch.setattr(
        type(memory),
        "put_file",
        lambda self, a, b, **o: (puts.append(b), whole(self, a, b, **o))[1],
    )
    monkeypatch.setattr("ingest.run.encode_all", lambda *_: 1 / 0)  # all is made already
    ingest(source, config(out))
    assert not {p for p in before if "/train/" not in p} & set(puts)
    assert verify_dataset(out / "chestxray14", lambda _: None) == []
    assert unfinished(out) == []


def test_an_earlier_attempt_s_split_that_is_no_more_goes(memory: Any, tiny_raw: Path):
    shares = SelectionConfig(random_split=True, fractions=(0.7, 0.0, 0.3))
    source = select(ChestXray14(ChestXray14Config(tiny_raw / "chestxray14")), shares)
    out = path_of("memory://out")
    for name in ("chestxray14-val-000000.tar", "chestxray14-val-000000.idx"):
        memory.pipe_file(f"/out/chestxray14/val/{name}", b"of an earlier attempt")
    manifest = ingest(source, config(out))
    assert manifest.splits.keys() == {"train", "test"}
    assert verify_dataset(out / "chestxray14", lambda _: None) == []
    assert not memory.glob("/out/chestxray14/val/*")


def test_a_faster_machine_with_other_settings_is_not_overwritten(
    memory: Any, tiny_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = ChestXray14(ChestXray14Config(tiny_raw / "chestxray14"))
    out, made = path_of("memory://out"), ingest_run.encode_all

    def slow(*rest: Any) -> Any:  # meanwhile another machine begins and ends
        monkeypatch.setattr("ingest.run.encode_all", made)
        ingest(source, config(out, seed=1, work=tmp_path / "other"))
        return made(*rest)

    monkeypatch.setattr("ingest.run.encode_all", slow)
    with pytest.raises(UserError, match=r"is finished, with other settings: seed was 1, now 0"):
        ingest(source, config(out))
    assert verify_dataset(out / "chestxray14", lambda _: None) == []
    assert load_manifest(out / "chestxray14").settings["seed"] == 1


def test_damage_behind_a_url_is_found(
    memory: Any, tiny_shards: Path, capsys: pytest.CaptureFixture[str]
):
    put(memory, tiny_shards, "/sets")
    folder = path_of("memory://sets")
    command.verify(folder)()
    command.stats(folder)()
    command.list_samples(folder / "chestxray14")()
    printed = capsys.readouterr().out
    assert "all as their manifests say" in printed
    assert "COVID-19" in printed
    assert "\ttrain\t" in printed
    (name,) = memory.glob("/sets/chestxray14/val/*.tar")
    data = bytearray(memory.cat_file(name))
    data[3000] ^= 1
    memory.pipe_file(name, bytes(data))
    with pytest.raises(RunFailed, match="problems in memory://sets"):
        command.verify(folder)()
    assert f"memory:/{name}: its SHA-256 is not the manifest's" in capsys.readouterr().out
    memory.rm_file("/sets/covid-radiography/manifest.json")
    with pytest.raises(RunFailed, match="2 problems in memory://sets"):
        command.verify(folder)()
    lost = "memory://sets/covid-radiography has shards and no manifest.json"
    assert lost in capsys.readouterr().out
    with pytest.raises(UserError, match="wants a local folder"):
        command.show(folder / "chestxray14", "x")()


def test_transient_errors_are_tried_again_with_a_limit(memory: Any, monkeypatch: Any):
    memory.pipe_file("/a/b.bin", b"content")
    path, failures, read = path_of("memory://a/b.bin"), [], type(memory).cat_file

    def flaky(self: Any, place: str, **options: Any) -> bytes:
        if len(failures) < 3:
            failures.append(place)
            raise ConnectionResetError("reset")
        return read(self, place, **options)

    monkeypatch.setattr(type(memory), "cat_file", flaky)
    assert path.read_bytes() == b"content"
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a fault of ours is not tried again
        path.read_bytes()
    with pytest.raises(FileNotFoundError):
        (path.parent / "none").stat()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/x", "given with a password"),
        ("nonsense://bucket/x", "the protocol nonsense is not known"),
        ("s3://bucket/x?versionId=1", "given with a query"),
        ("dropbox://x", "package that is not installed"),
    ],
)
def test_urls_that_are_refused(url: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        path_of(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["memory://x", "ZIP://x.zip", "data://x", "dir://x", "github://a/b"]
)
def test_a_command_is_given_places_where_files_stay(url: str):
    with pytest.raises(UserError, match=r"^[^\n]*allowed: a folder, or a URL such as s3://$"):
        place_of(url)
    assert place_of("local:///a/b") == place_of("file:///a/b") == Path("/a/b")
    assert place_of("memory:/x") == Path("memory:/x")  # a folder of this name


def test_without_s3fs_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    def lacks(protocol: str, **_: Any) -> None:
        raise ImportError(f"Install s3fs to access {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", lacks)
    with pytest.raises(UserError, match=r"pip install '\.\[s3\]'"):
        path_of("s3://bucket/x")


def test_paths_of_urls(memory: Any):
    memory.pipe_file("/a/b c/x.tar.gz", b"1")
    memory.pipe_file("/a/y.csv", b"one\ntwo\n")
    root = path_of("memory://a/")
    assert str(root / "b c/x.tar.gz") == "memory://a/b c/x.tar.gz"
    assert [str(p) for p in sorted(root.glob("*/*.gz"))] == ["memory://a/b c/x.tar.gz"]
    assert (root / "b c").is_dir()
    assert not (root / "b c").is_file()
    assert (root / "y.csv").is_file()
    assert (root / "y.csv").open(encoding="utf-8", newline="").readlines() == ["one\n", "two\n"]
    assert name_below(root / "b c/x.tar.gz", root) == "b c/x.tar.gz"
    assert (root / "y.csv").with_suffix(".idx").name == "y.idx"
    assert path_of("file:///a/b%20c") == Path("/a/b c")
    assert path_of("/a//b") == Path("/a/b")
    assert str(path_of("https://host/a.zip?token=secret")) == "https://host/a.zip"
    with pytest.raises(ValueError, match=r"'\.\.'"):
        root / "../b"
    with pytest.raises(TypeError):
        os.fspath(cast(Any, root))  # or open() and os.walk() would look on the local disk
    with pytest.raises(UserError, match="cannot be written to"):
        config(path_of("https://host/out")).check()
    with pytest.raises(UserError, match="--retry works on a local folder"):
        config(root, retry=True).check()


def test_streams_read_ahead_and_seek(monkeypatch: pytest.MonkeyPatch):
    data = os.urandom(5000)
    monkeypatch.setattr(RemoteFile, "FIRST_BYTES", 10)
    monkeypatch.setattr(RemoteFile, "MAX_BYTES", 300)
    asked: list[tuple[int, int]] = []

    def read_range(start: int, end: int) -> bytes:
        asked.append((start, end))
        return data[start:end]

    with RemoteFile(read_range, len(data)) as file:
        assert file.read(5) == data[:5]
        assert asked == [(0, 10)]
        assert file.read() == data[5:]
        assert sorted(asked) == sorted(set(asked))  # nothing twice
        assert max(end - start for start, end in asked) == 300
        assert file.read(1) == b""
    with io.BufferedReader(RemoteFile(read_range, len(data))) as stream:
        for start in (4000, 17, 4999):
            stream.seek(start)
            assert stream.read(20) == data[start : start + 20]
