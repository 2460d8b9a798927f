"""16-bit images that declare no depth, through an ingest and what follows it."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deep_images import picture, png, tiff
from ingest_runs import ROOT, config, tree

from ingest.estimate import estimate
from ingest.merge import _common_depth
from ingest.quarantine import FILE_NAME as QUARANTINE
from ingest.resplit import ResplitConfig, resplit
from ingest.retry import retry
from ingest.run import ingest
from ingest.sources.folders import Folders, FoldersConfig
from ingest.tables import read_rows
from shards.codec import decode_grey, encode
from shards.console import RunFailed, UserError
from shards.manifest import Manifest, load_manifest, shard_path
from shards.reader import read_shard

VALUES = {f"{'ab'[i % 2]}/{i}.png": picture(12, seed=i) for i in range(10)} | {
    "a/dark.tif": picture(10, seed=10)
}
PLAIN = picture(8, seed=11).astype(np.uint8)
EMPTY = Manifest("set", ("a",), True, "jph", 1, 512, {}, {}, {}, ())


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """11 images of 10 and 12 of 16 bits, one that declares 14, and one of 8 bits."""
    folder = tmp_path / "raw"
    for name, values in VALUES.items():
        put(folder, name, png(values) if name.endswith("png") else tiff(values))
    put(folder, "a/declared.png", png(picture(14, seed=12), b"\x0e"))
    put(folder, "b/plain.png", encode(PLAIN, "png"))
    return folder


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def source(raw: Path) -> Folders:
    return Folders(FoldersConfig(raw, name="deep"))


def stored(folder: Path) -> dict[str, np.ndarray]:
    """File -> its pixels in the shards."""
    manifest = load_manifest(folder)
    paths = [shard_path(folder, shard) for shard in manifest.shards]
    return {s.meta.file: decode_grey(s.image) for path in paths for s in read_shard(path)}


def reasons(folder: Path) -> dict[str, str]:
    return {row["member"]: row["reason"] for row in read_rows(folder / QUARANTINE)}


def test_the_depth_is_that_of_all_of_them(raw: Path, capsys: pytest.CaptureFixture[str]):
    manifest = ingest(source(raw), config(raw.parent / "out"))
    assert manifest.depth == 12
    assert "depth" not in manifest.settings
    found = stored(raw.parent / "out/deep")
    for name, values in VALUES.items():
        assert np.array_equal(found[name], values >> 4), name
    assert np.array_equal(found["a/declared.png"], picture(14, seed=12) >> 6)
    assert np.array_equal(found["b/plain.png"], PLAIN)
    said = capsys.readouterr().err
    line = "16-bit images without a declared depth: 12 bits, found over 11 images; --depth sets"
    assert said.count(line) == 1
    assert "grey levels" not in said
    assert ingest(source(raw), config(raw.parent / "out")) == manifest  # finished already


@pytest.mark.parametrize("options", [{"workers": 2}, {"depth": 12}])
def test_workers_and_a_given_depth_give_the_same_images(raw: Path, options: dict[str, int]):
    one = ingest(source(raw), config(raw.parent / "one"))
    two = ingest(source(raw), config(raw.parent / "two", **options))
    assert one.shards == two.shards
    assert (one == two) is ("depth" not in options)
    assert two.depth == 12


def test_without_such_images_there_is_one_pass(raw: Path, monkeypatch: pytest.MonkeyPatch):
    for name in VALUES:
        (raw / name).unlink()
    passes = []
    images = Folders.images
    monkeypatch.setattr(Folders, "images", lambda self: (passes.append(1), images(self))[1])
    assert ingest(source(raw), config(raw.parent / "out")).depth is None
    assert len(passes) == 1


def test_one_image_of_16_bits_decides_and_is_told(raw: Path, capsys: pytest.CaptureFixture[str]):
    put(raw, "a/0.png", png(picture(16)))
    out = raw.parent / "out"
    assert ingest(source(raw), config(out)).depth == 16
    assert np.array_equal(stored(out / "deep")["b/1.png"], VALUES["b/1.png"] >> 8)
    said = " ".join(capsys.readouterr().err.split())
    assert "16 bits, found over 1 image; --depth sets another" in said
    assert "10 of 11 16-bit images use at most 12 of 16 bits, so at most 16 of 256 grey" in said
    assert "--depth 12 quarantines the others" in said


def test_what_is_beyond_a_given_depth_is_quarantined(raw: Path):
    put(raw, "a/0.png", png(picture(13)))
    out = raw.parent / "out"
    manifest = ingest(source(raw), config(out, depth=12))
    assert (manifest.depth, manifest.settings["depth"]) == (12, 12)
    assert reasons(out / "deep") == {
        "a/0.png": "16-bit image without a declared depth uses 13 bits, over the depth of 12: "
        "--depth 14 or 16 holds it"
    }
    with pytest.raises(RunFailed, match="uses 12 bits, over the depth of 10 "):
        ingest(source(raw), config(out / "other", depth=10))


KILLED = """
import os, signal, sys
from pathlib import Path
from ingest import spool
from ingest.config import IngestConfig
from ingest.run import ingest
from ingest.sources.folders import Folders, FoldersConfig
spool._CHUNK_IMAGES = 3
flush, times = spool.Spool.flush, []
def flush_then_die(self):
    flush(self)
    times.append(1)
    if len(times) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
spool.Spool.flush = flush_then_die
raw, out = map(Path, sys.argv[1:3])
ingest(Folders(FoldersConfig(raw, name="deep")), IngestConfig(out, shorter_side=128, workers=1))
"""


def test_killed_it_goes_on_to_the_bytes_of_a_run_that_was_not(raw: Path):
    out = raw.parent / "out"
    command = [sys.executable, "-c", KILLED, raw, out, "2"]
    killed = subprocess.run(command, cwd=ROOT, timeout=120, stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    chunks = "".join(path.read_text() for path in (out / "deep/.spool").glob("*.jsonl"))
    assert '"depth": 12' in chunks  # the second pass had begun
    ingest(source(raw), config(out))
    ingest(source(raw), config(raw.parent / "whole"))
    assert tree(out / "deep") == tree(raw.parent / "whole/deep")


@pytest.mark.parametrize(("bits", "depth"), [(10, 10), (16, 16)])
def test_files_that_were_changed_meanwhile_change_the_depth(
    raw: Path, monkeypatch: pytest.MonkeyPatch, bits: int, depth: int
):
    names = [name for name in VALUES if name != "a/dark.tif"]
    for name in names[1:]:
        put(raw, name, png(VALUES[name] >> 2))
    out = raw.parent / "out"
    monkeypatch.setattr("ingest.run.assemble", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest(source(raw), config(out))
    monkeypatch.undo()
    put(raw, names[0], png(picture(bits, 20, 30)))
    assert ingest(source(raw), config(out)).depth == depth
    ingest(source(raw), config(raw.parent / "whole"))
    assert tree(out / "deep") == tree(raw.parent / "whole/deep")


def test_a_retry_keeps_the_depth(raw: Path):
    for name in ("a/0.png", "a/2.png"):
        put(raw, name, b"broken")
    out = raw.parent / "out"
    ingest(source(raw), config(out))
    put(raw, "a/0.png", png(VALUES["a/0.png"]))
    put(raw, "a/2.png", png(picture(14, seed=2)))
    with pytest.raises(UserError, match="16-bit images of 12 bits, and --depth 14 would change"):
        retry(source(raw), config(out, depth=14))
    manifest = retry(source(raw), config(out))
    assert manifest.depth == 12
    assert np.array_equal(stored(out / "deep")["a/0.png"], VALUES["a/0.png"] >> 4)
    assert list(reasons(out / "deep")) == ["a/2.png"]
    assert "uses 14 bits, over the depth of 12" in reasons(out / "deep")["a/2.png"]


def test_a_retry_where_none_is_settled_guesses_none(raw: Path):
    for name in VALUES:
        if name != "a/0.png":
            (raw / name).unlink()
    put(raw, "a/0.png", b"broken")
    out = raw.parent / "out"
    assert ingest(source(raw), config(out)).depth is None
    put(raw, "a/0.png", png(VALUES["a/0.png"]))
    assert retry(source(raw), config(out)).depth is None
    assert "give --depth 12, 14 or 16" in reasons(out / "deep")["a/0.png"]
    assert retry(source(raw), config(out, depth=12)).depth == 12
    assert np.array_equal(stored(out / "deep")["a/0.png"], VALUES["a/0.png"] >> 4)
    assert retry(source(raw), config(out)).depth == 12  # the options of the first run do again


def test_a_resplit_hands_it_on(raw: Path):
    ingest(source(raw), config(raw.parent / "out"))
    ((_, manifest),) = resplit(ResplitConfig((raw.parent / "out",), raw.parent / "anew", seed=1))
    assert manifest.depth == 12


@pytest.mark.parametrize(
    ("depths", "common"),
    [((None, None), None), ((12, None), 12), ((12, 12), 12), ((12, None, 14), None)],
)
def test_a_merge_has_the_depth_that_is_the_only_one(depths: tuple[int | None], common: int | None):
    assert _common_depth([replace(EMPTY, depth=depth) for depth in depths]) == common


def test_keep_refuses_16_bits_with_the_way_out(raw: Path):
    options = {"format": "keep", "shorter_side": None, "max_bad": 1.0}
    manifest = ingest(source(raw), config(raw.parent / "out", **options))
    assert manifest.depth is None
    said = reasons(raw.parent / "out/deep")
    assert said.keys() == {*VALUES, "a/declared.png"}
    assert set(said.values()) == {
        "--format keep keeps no 16-bit values, only 8-bit ones; --format htj2k"
    }


def test_covered_images_have_it(raw: Path):
    table = raw.parent / "boxes.csv"
    table.write_text("file,x,y,w,h\n" + "".join(f"{name},0,0,9,9\n" for name in VALUES))
    ingest(source(raw), config(raw.parent / "out", redact=table, redact_split="all"))
    black = VALUES["b/1.png"] >> 4
    black[:9, :9] = 0
    assert np.array_equal(stored(raw.parent / "out/deep")["b/1.png"], black)


def test_a_dry_run_tells_it(raw: Path):
    found = estimate(source(raw), config(raw.parent / "out", dry_run=True))
    assert (found.depth, found.measured) == (12, 13)
    given = estimate(source(raw), config(raw.parent / "out", dry_run=True, depth=12))
    assert (given.depth, given.measured) == (None, 13)
    assert not os.path.exists(raw.parent / "out")
