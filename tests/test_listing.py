"""shards.listing, shards.sheet and the commands that print them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.codec import decode_grey
from shards.console import RunFailed, UserError
from shards.listing import find, picture, places, print_list, print_sample, printable
from shards.manifest import Manifest, load_manifest
from shards.reader import read_split
from shards.sheet import contact_sheet
from shards.stats import print_stats

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shards", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "120"},
    )


def test_every_sample_is_listed(tiny_shards: Path, capsys: pytest.CaptureFixture[str]):
    folder = tiny_shards / "chestxray14"
    manifest = load_manifest(folder)
    print_list(folder, manifest)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = [
        [s.key, split, "|".join(manifest.vocabulary.decode(s.labels))]
        for split in ("train", "val", "test")
        for s in read_split(folder, manifest, split)
    ]
    assert lines == expected


def test_one_sample(tiny_shards: Path, capsys: pytest.CaptureFixture[str]):
    folder = tiny_shards / "covid-radiography"
    manifest = load_manifest(folder)
    wanted = next(iter(read_split(folder, manifest, "val")))
    found, place = find(folder, wanted.key)
    read = place.read()
    assert (read.image, read.meta, read.extension) == (wanted.image, wanted.meta, wanted.extension)
    print_sample(found, place)
    out = capsys.readouterr().out
    assert f"file: {wanted.meta.file}\n" in out
    assert "patient: not known\n" in out
    assert "image: .jph, 128 x 128, " in out
    assert out.count(": yes\n") == 1
    with pytest.raises(UserError, match=f"no sample.*for example: .*{wanted.key}"):
        find(folder, wanted.key[:-1])


@pytest.fixture
def own(tiny_shards: Path, tmp_path: Path) -> Path:
    """A data set to damage."""
    return Path(shutil.copytree(tiny_shards / "covid-radiography", tmp_path / "set"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(("extension", "at"), [("json", 0), ("json", 3), ("jph", 4)])
def test_a_flipped_byte_ends_in_one_line_that_names_it(own: Path, extension: str, at: int):
    place = next(places(own, load_manifest(own)))
    found = next(c for c in place.components if c.extension == extension)
    flip(place.path, found.offset + at)
    shown = run("show", own, place.key)
    assert shown.returncode == 1
    stats = run("stats", own)
    assert stats.returncode == (1 if extension == "json" else 0)
    for done in (shown, stats):
        assert done.stderr.count("\n") == done.returncode
        if done.returncode:
            assert place.path.name in done.stderr
            assert found.name in done.stderr
            assert "python -m shards verify" in done.stderr


def test_no_damage_ends_in_a_trace(own: Path):
    manifest = load_manifest(own)
    place = next(places(own, manifest))
    index = place.path.with_suffix(".idx")
    last = max(c.offset + c.size for c in place.components)
    ends = [(index, at) for at in range(120)]
    ends += [(place.path, at) for at in range(0, last, 37)]
    told = 0
    for path, at in ends:
        whole = path.read_bytes()
        flip(path, at)
        for act in (print_sample_of, print_stats_of, print_list):
            try:
                act(own, manifest)
            except (UserError, RunFailed):
                told += 1
        path.write_bytes(whole)
    assert told > 100


def print_sample_of(folder: Path, manifest: Manifest) -> None:
    place = next(places(folder, manifest))
    print_sample(manifest, place)
    picture(place)


def print_stats_of(folder: Path, manifest: Manifest) -> None:
    print_stats(folder, manifest)


def test_names_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\u202ec\nä") == "a?[2Jb?c?ä"


def test_sheet(tiny_shards: Path):
    folder = tiny_shards / "covid-radiography"
    manifest = load_manifest(folder)
    data = contact_sheet(folder, manifest, 5, None)
    assert data == contact_sheet(folder, manifest, 5, None)
    image = decode_grey(data)
    height, width = image.shape
    assert width == 8 + 5 * 168
    assert height == 8 + 3 * (22 + 160 + 8)
    train = next(p for p in places(folder, manifest) if p.read_labels()[0] == 1)
    first = decode_grey(train.read().image)
    assert np.array_equal(image[30 : 30 + 128, 8 : 8 + 128], first)
    few = contact_sheet(folder, manifest, 2, "test")
    assert decode_grey(few).shape == (height, 8 + 2 * 168)


@pytest.mark.parametrize(
    ("per_class", "split", "message"),
    [(0, None, "--per-class 0"), (101, None, "allowed: 1 to 100"), (3, "none", "no split 'none'")],
)
def test_bad_sheets(tiny_shards: Path, per_class: int, split: str | None, message: str):
    folder = tiny_shards / "chestxray14"
    with pytest.raises(UserError, match=message):
        contact_sheet(folder, load_manifest(folder), per_class, split)


def test_commands(tiny_shards: Path, tmp_path: Path):
    folder = tiny_shards / "covid-radiography"
    listed = run("ls", folder)
    assert listed.returncode == 0, listed.stderr
    key = listed.stdout.split("\t", 1)[0]
    shown = run("show", folder, key, "--png", tmp_path / "one.png")
    assert shown.returncode == 0, shown.stderr
    assert cv2.imread(str(tmp_path / "one.png")).shape == (128, 128, 3)
    assert shown.stdout.startswith(f"key: {key}\n")
    sheet = run("sheet", folder, "--out", tmp_path / "sheet.png", "--per-class", 2)
    assert sheet.returncode == 0, sheet.stderr
    assert (tmp_path / "sheet.png").is_file()
    for wrong in (
        ("show", folder, "none"),
        ("sheet", folder, "--out", tmp_path / "no/sheet.png"),
        ("ls", tmp_path),
        ("show",),
    ):
        done = run(*wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
