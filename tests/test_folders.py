"""ingest.sources.folders: classes from folder names, with and without a split above them."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from ingest.config import IngestConfig
from ingest.estimate import estimate
from ingest.retry import retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.folders import Folders, FoldersConfig
from shards.console import UserError


def make(src: Path, names: list[str], **options) -> Folders:
    for name in names:
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(b"image")
    return Folders(FoldersConfig(src, **options))


def test_classes(tmp_path: Path):
    names = ["sick/1.png", "sick/deep/2.jpg", "Healthy/1.png", "Healthy/notes.txt", ".git/x.png"]
    source = make(tmp_path, names, name="ours")
    assert source.name == "ours"
    assert source.vocabulary.names == ("Healthy", "sick")
    assert source.vocabulary.exclusive
    assert source.split.fractions == (0.7, 0.1, 0.2)
    assert {r.location: (r.labels, r.split) for r in source.records()} == {
        "Healthy/1.png": (("Healthy",), None),
        "sick/1.png": (("sick",), None),
        "sick/deep/2.jpg": (("sick",), None),
    }
    assert [i.location for i in source.images()] == [r.location for r in source.records()]


def test_a_split_above(tmp_path: Path):
    names = ["train/a/1.png", "train/b/1.png", "test/a/1.png", "__MACOSX/train/a/._1.png"]
    source = make(tmp_path, names)
    assert source.vocabulary.names == ("a", "b")
    assert [(r.location, r.labels, r.split) for r in source.records()] == [
        ("test/a/1.png", ("a",), "test"),
        ("train/a/1.png", ("a",), "train_val"),
        ("train/b/1.png", ("b",), "train_val"),
    ]
    make(tmp_path, ["val/b/7.png"])
    splits = [r.split for r in Folders(FoldersConfig(tmp_path)).records()]
    assert splits == ["test", "train", "train", "val"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", "b/1.png", "loose.png"], "1 images stand in no class folder.*loose.png"),
        (["train/a/1.png", "train/b/1.png", "train/2.png"], "no class folder.*train/2.png"),
        (["train/a/1.png", "b/1.png"], "holds b, train; expected either class folders, or train"),
        (["test/a/1.png", "test/b/1.png"], "holds test; expected either"),
        (["a/1.png"], "at least two class folders in .*; found: a"),
        ([], "at least two class folders in .*; found: none"),
        (["a/1.png", "b/1.png", "empty/readme.txt"], "no image in the class folder 'empty'"),
        (["a/1.png", "b\udcff/1.png"], "not named in UTF-8"),
    ],
)
def test_wrong_folders(tmp_path: Path, names: list[str], message: str):
    with pytest.raises(UserError, match=message):
        make(tmp_path, names)


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "x" * 41])
def test_wrong_names(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"--name .*; allowed: up to 40"):
        make(tmp_path, ["a/1.png", "b/1.png"], name=name)


def test_no_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no folder"):
        make(tmp_path / "nowhere", [])


def test_an_output_inside_the_source_is_refused(tmp_path: Path):
    source = make(tmp_path / "src", ["a/1.png", "b/1.png"])
    for out in (tmp_path / "src", tmp_path / "src/deep/shards"):
        for act in (ingest, estimate, retry):
            with pytest.raises(UserError, match=r"--out .* lies in .*; name a folder outside"):
                act(source, IngestConfig(out))
    assert not (tmp_path / "src/deep").exists()


def test_linked_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make(tmp_path / "src", ["a/1.png", "b/1.png"])
    (tmp_path / "src/a/more").symlink_to(tmp_path / "src/b")
    source = Folders(FoldersConfig(tmp_path / "src"))
    assert len(source.files) == 2
    assert "1 folders below" in capsys.readouterr().err


def test_every_other_file_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    for n in range(8):
        make_image(tmp_path / f"src/{'ab'[n % 2]}/{n}.png", rng)
    jpeg = cv2.imencode(".jpg", rng.integers(0, 256, (16, 16), np.uint8))[1].tobytes()
    for name in ("a/x.jfif", "b/deep/y.JPE"):
        (tmp_path / "src" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_bytes(jpeg[:-2] + name.encode() + jpeg[-2:])
    others = ["a/1.dcm", "b/2.DCM", "a/scan", "readme.txt"]
    others += ["a/.DS_Store", "__MACOSX/a/._1.dcm", "SYNTHETIC"]  # these say nothing
    (tmp_path / "src/b/gone.png").symlink_to(tmp_path / "nowhere")
    source = make(tmp_path / "src", others)
    said = "5 files are no images by their names (2 .dcm, 1 .txt, 1 links that lead nowhere, 1 "
    said += "without suffix)"
    assert capsys.readouterr().err == (
        f"warning: {said}, below {tmp_path / 'src'}; passed over: rename those that are images, "
        "and ingest .dcm by dicom\n"
    )
    assert {"a/x.jfif", "b/deep/y.JPE"} < source.files.keys()
    chosen = select(source, SelectionConfig(fractions=(0.5, 0.0, 0.5)))
    manifest = ingest(chosen, replace(options(tmp_path / "out"), on_duplicate="keep"))
    assert manifest.notes[0] == f"{said}; passed over"
    assert sum(split.samples for split in manifest.splits.values()) == 10


def test_many_kinds_are_told_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make(tmp_path, ["a/1.png", "b/1.png", *(f"a/1.2.{n}" for n in range(40)), "a/x.2", "a/y.dcm"])
    said = capsys.readouterr().err
    assert "42 files are no images by their names (2 .2, 1 .0, " in said
    assert ", 35 others), below" in said


def test_lists_take_back_every_name(tmp_path: Path):
    names = [
        "plain.png",
        "line\nbreak.png",
        "\u202eturned.png",
        " space.png",
        "para\u2029graph.png",
    ]
    rng = np.random.default_rng(0)
    for place in (f"{label}/{name}" for label in "ab" for name in names):
        make_image(tmp_path / "src" / place, rng)
    whole = ingest(Folders(FoldersConfig(tmp_path / "src")), options(tmp_path / "one"))
    lists = tmp_path / "one/folders/lists"
    given = {f"{split}_list": lists / f"{split}.txt" for split in ("train", "val", "test")}
    again = select(Folders(FoldersConfig(tmp_path / "src")), SelectionConfig(**given))
    back = ingest(again, options(tmp_path / "two"))
    assert back.splits == whole.splits
    assert not back.excluded
    assert "a/plain.png" in "".join(path.read_text() for path in lists.iterdir())


def options(out: Path) -> IngestConfig:
    return IngestConfig(out, workers=1, progress=False, near_duplicate="keep")


def make_image(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", rng.integers(0, 256, (16, 16), np.uint8))[1].tobytes())
