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
    ("folders", "splits", "note"),
    [
        ("Train Val Test", "train val test", "'Train' as train, 'Val' as val, 'Test' as test"),
        ("training testing", "train_val test", "'training' as train, 'testing' as test"),
        ("train dev eval", "train val test", "'dev' as val, 'eval' as test"),
        ("train eval test", "train val test", "'eval' as val"),
        ("train_set valid_set", "train val", "'train_set' as train, 'valid_set' as val"),
        ("TR TS", "train_val test", "'TR' as train, 'TS' as test"),
        ("trainval holdout", "train_val test", "'holdout' as test, 'trainval' as train_val"),
    ],
)
def test_splits_in_other_words(tmp_path: Path, folders: str, splits: str, note: str):
    source = make(tmp_path, [f"{split}/{one}/1.png" for split in folders.split() for one in "ab"])
    assert source.vocabulary.names == ("a", "b")
    by_folder = {r.location.split("/")[0]: r.split for r in source.records()}
    assert by_folder == dict(zip(folders.split(), splits.split()))
    assert source.notes == (f"names of splits: {note}",)


@pytest.mark.parametrize("names", ["TR AR", "te va normal", "evaluate train-delay", "1 2", "set a"])
def test_classes_that_sound_like_splits_are_classes(tmp_path: Path, names: str):
    source = make(tmp_path, [f"{one}/1.png" for one in names.split()])
    assert set(source.vocabulary.names) == set(names.split())
    assert {r.split for r in source.records()} == {None}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("fold1/A fold1/B fold2/A fold2/B", r"folders fold1 and fold2 hold .* \(A, B\)"),
        ("x/Normal x/COVID y/COVID y/Normal y/Flu", r"folders x and y hold .* \(COVID, Normal\)"),
        ("A/train A/test B/train B/test", r"folders A and B hold .* \(test, train\)"),
        ("A/Training B/Training", r"folders A and B hold .* \(Training\)"),
        ("A/images A/masks B/images B/masks", r"folders A and B hold .* \(images, masks\)"),
        ("train/1/A train/1/B train/2/A test/2/B", r"folders 1 and 2 hold .* \(A, B\)"),
    ],
)
def test_folders_that_hold_the_same_folders_are_no_classes(tmp_path: Path, names: str, told: str):
    with pytest.raises(UserError, match=f"{told}, so they are not taken for classes; put"):
        make(tmp_path, [f"{name}/1.png" for name in names.split()])


@pytest.mark.parametrize(
    "names",
    [
        "A/images/1 B/images/1",  # one folder in each
        "A/p1/1 A/p2/1 A/p3/1 B/p2/1 B/p3/1 B/p4/1",  # patients, some with images of both classes
        "A/1 A/x/1 A/y/1 B/1 B/x/1 B/y/1",  # images beside the folders
    ],
)
def test_folders_in_classes_are_allowed(tmp_path: Path, names: str):
    assert make(tmp_path, [f"{name}.png" for name in names.split()]).vocabulary.names == ("A", "B")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", "b/1.png", "loose.png"], "1 images stand in no class folder.*loose.png"),
        (["train/a/1.png", "train/b/1.png", "train/2.png"], "no class folder.*train/2.png"),
        (["train/a/1.png", "b/1.png"], "holds b, train; expected either class folders, or train"),
        (["test/a/1.png", "test/b/1.png"], "holds test; expected either"),
        (["a/1.png"], "at least two class folders in .*; found: a$"),
        (["x/Train/a/1.png", "x/Test/a/1.png"], "found: x, which holds Test, Train: is --src one"),
        (["train/a/1.png"], "at least two class folders in .*; found: a$"),
        (["Train/1.png", "Test/1.png"], "2 images stand in no class folder"),
        (["dev/a/1.png", "eval/a/1.png"], "holds dev, eval; expected either"),
        (["train/a/1.png", "val/a/1.png", "dev/b/1.png"], "'dev' and 'val' both mean the split"),
        (["train/NORMAL/1.png", "train/b/1.png", "test/Normal/1.png"], "in case or spaces alone"),
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


def with_comment(jpeg: bytes, text: str) -> bytes:
    segment = b"\xff\xfe" + (2 + len(text)).to_bytes(2, "big") + text.encode()
    return jpeg[:2] + segment + jpeg[2:]


def test_every_other_file_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    for n in range(8):
        make_image(tmp_path / f"src/{'ab'[n % 2]}/{n}.png", rng)
    jpeg = cv2.imencode(".jpg", rng.integers(0, 256, (16, 16), np.uint8))[1].tobytes()
    for name in ("a/x.jfif", "b/deep/y.JPE"):
        (tmp_path / "src" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "src" / name).write_bytes(with_comment(jpeg, name))
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
