"""ingest.redact: rectangles are black in the named split alone, and drawn before the reduction."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_runs import config, covid

from ingest.config import IngestConfig
from ingest.estimate import estimate
from ingest.merge import MergeConfig, merge
from ingest.redact import blacken
from ingest.resplit import ResplitConfig, resplit
from ingest.retry import retry
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from ingest.sources.folders import Folders, FoldersConfig
from shards.codec import decode_grey
from shards.console import UserError
from shards.manifest import Manifest
from shards.preprocess import reduce_shorter_side
from shards.reader import read_split
from shards.rectangles import Rectangle, read_rectangles
from shards.verify import verify_dataset

FOLDERS = ("COVID-19", "NORMAL", "Viral Pneumonia")


def run(raw: Path, out: Path, table: Path | None, **options) -> Manifest:
    folder = raw / "covid-radiography"
    selection = SelectionConfig(test_per_class=3, exclude=folder / "exclude.txt")
    source = select(CovidRadiography(CovidRadiographyConfig(folder)), selection)
    given_ = {"shorter_side": 128, "workers": 1, "progress": False, "redact": table} | options
    return ingest(source, IngestConfig(out, **given_))


def table(tmp_path: Path, rows: list[str]) -> Path:
    path = tmp_path / "words.csv"
    path.write_text("\n".join(["file,x,y,w,h", *rows]) + "\n")
    return path


@pytest.fixture
def words(tiny_raw: Path, tmp_path: Path) -> Path:
    """Two rectangles for every image."""
    names = [
        f"{folder}/{path.name}"
        for folder in FOLDERS
        for path in (tiny_raw / "covid-radiography" / folder).iterdir()
    ]
    rows = [f"{name},{box}" for name in names for box in ("10,20,31,15", "100.5,100,400,9.5")]
    return table(tmp_path, rows)


def images(folder: Path, manifest: Manifest) -> dict[str, dict[str, np.ndarray]]:
    """Split -> file -> pixels."""
    return {
        split: {s.meta.file: decode_grey(s.image) for s in read_split(folder, manifest, split)}
        for split in manifest.splits
    }


@pytest.mark.parametrize("split", ["test", "all"])
def test_only_the_named_split(
    tiny_raw: Path, tiny_shards: Path, tmp_path: Path, words: Path, split: str
):
    manifest = run(tiny_raw, tmp_path / "out", words, redact_split=split)
    folder = tmp_path / "out/covid-radiography"
    assert not verify_dataset(folder, lambda _: None)
    plain = run(tiny_raw, tmp_path / "plain", None)
    before = images(tmp_path / "plain/covid-radiography", plain)
    after = images(folder, manifest)
    covered = 0
    for name, files in before.items():
        assert files.keys() == after[name].keys()
        for file, pixels in files.items():
            if split not in (name, "all"):
                assert np.array_equal(after[name][file], pixels)
                continue
            covered += 1
            raw = decode_grey((tiny_raw / "covid-radiography" / file).read_bytes())
            raw[20:35, 10:41] = 0
            raw[100:110, 100:] = 0
            assert np.array_equal(after[name][file], reduce_shorter_side(raw, 128))
    assert manifest.notes[0] == f"parts of {covered} images ({split}) are blacked out"
    rows = (folder / "samples.parquet").read_bytes()
    assert rows == (tmp_path / "plain/covid-radiography/samples.parquet").read_bytes()


def test_workers_and_interruptions_change_nothing(
    tiny_raw: Path, tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(tiny_raw, tmp_path / "a", words, workers=2)
    monkeypatch.setattr("ingest.run.assemble", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tiny_raw, tmp_path / "b", words)
    monkeypatch.undo()
    assert run(tiny_raw, tmp_path / "b", words) == whole


def test_other_rectangles_are_another_data_set(tiny_raw: Path, tmp_path: Path, words: Path):
    run(tiny_raw, tmp_path / "out", words)
    words.write_text(words.read_text().replace("10,20,31,15", "10,20,30,15"))
    with pytest.raises(UserError, match="redact: sha256 was"):
        run(tiny_raw, tmp_path / "out", words)
    with pytest.raises(UserError, match="redact was"):
        run(tiny_raw, tmp_path / "out", None)


def test_what_would_uncover_the_words_is_refused(tiny_raw: Path, tmp_path: Path, words: Path):
    run(tiny_raw, tmp_path / "out", words)
    folder = tmp_path / "out/covid-radiography"
    with pytest.raises(UserError, match="covered in the test images of covid-radiography alone"):
        resplit(ResplitConfig((folder,), seed=1, progress=False))
    resplit(ResplitConfig((folder,), tmp_path / "x", seed=1, keep_test=True, progress=False))
    labels = "\n".join(f"covid-radiography,{n},{n}" for n in ("Normal", "COVID-19"))
    (tmp_path / "map.csv").write_text(f"dataset,source_label,label\n{labels}\n")
    with pytest.raises(UserError, match="covered in the test images"):
        merge(MergeConfig((folder,), tmp_path / "map.csv", tmp_path / "m", progress=False))
    source = CovidRadiography(CovidRadiographyConfig(tiny_raw / "covid-radiography"))
    with pytest.raises(UserError, match="--retry covers no words"):
        retry(source, IngestConfig(tmp_path / "out", redact=words, retry=True))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["NORMAL/none.png,1,1,5,5"],
            "names 1 files that the data set lacks; its files are",
        ),
        (["NORMAL/NORMAL (2).png,1,1,0,5"], "line 2: .*w and h above 0"),
        (["NORMAL/NORMAL (2).png,1,1,5"], "line 2 has only 4 fields"),
        (["NORMAL/NORMAL (2).png,nan,1,5,5"], "line 2: "),
        (["NORMAL/NORMAL (2).png,160,1,5,5"], r"begins at 160, 1, outside its 160 x 160 pixels"),
    ],
)
def test_bad_tables(tiny_raw: Path, tmp_path: Path, rows: list[str], message: str):
    with pytest.raises(UserError, match=message):
        run(tiny_raw, tmp_path / "out", table(tmp_path, rows), redact_split="all")


def test_other_bad_requests(tiny_raw: Path, tmp_path: Path, words: Path):
    with pytest.raises(UserError, match="drop --redact"):
        run(tiny_raw, tmp_path / "out", words, format="keep", shorter_side=None)
    with pytest.raises(UserError, match="cannot read"):
        run(tiny_raw, tmp_path / "out", tmp_path / "none.csv")
    words.write_text("file,x,y,w,h\nnowhere.png,1,1,2,2\n")
    with pytest.raises(UserError, match="names 1 files that the data set lacks"):
        estimate(covid(tiny_raw), config(tmp_path / "out", redact=words))
    words.write_text("a,b\n")
    with pytest.raises(UserError, match="expected: file,x,y,w,h"):
        read_rectangles(words)


def copies(src: Path) -> Folders:
    """Ten images of two classes, with a copy each: of the same bytes, or of the same pixels."""
    rng = np.random.default_rng(0)
    for n in range(10):
        grey = np.kron(rng.integers(50, 250, (6, 6), np.uint8), np.ones((8, 8), np.uint8))
        (src / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        for name, level in (("first", 1), ("second", 1 if n < 5 else 9)):
            data = cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, level])[1]
            (src / "ab"[n % 2] / f"{name}{n}.png").write_bytes(data.tobytes())
    return Folders(FoldersConfig(src))


@pytest.mark.parametrize("listed", ["first", "second", "both"])
@pytest.mark.parametrize("on_duplicate", ["drop", "keep"])
def test_the_copy_that_stays_is_covered(tmp_path: Path, listed: str, on_duplicate: str):
    """Whichever of the copies the table names, with rectangles for each."""
    source = copies(tmp_path / "src")
    names = [f for f in source.files if listed in (f[2:-5], "both")]
    rows = [f"{f},{5 if 'first' in f else 20},3,4,6" for f in names]
    options = config(
        tmp_path / "out",
        redact=table(tmp_path, rows),
        redact_split="all",
        near_duplicate="keep",
        on_duplicate=on_duplicate,
    )
    manifest = ingest(source, options)
    kept = 10 if on_duplicate == "drop" else 20
    assert manifest.notes[0] == f"parts of {kept} images (all) are blacked out"
    for files in images(tmp_path / "out/folders", manifest).values():
        for file, pixels in files.items():
            raw = decode_grey((tmp_path / "src" / file).read_bytes())
            for name, left in (("first", 5), ("second", 20)):
                if listed in (name, "both"):
                    raw[3:9, left : left + 4] = 0
            assert np.array_equal(pixels, raw)


def test_a_near_copy_that_stays_uncovered_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = copies(tmp_path / "src")
    for path in (tmp_path / "src").rglob("second*.png"):
        grey = decode_grey(path.read_bytes())
        path.write_bytes(cv2.imencode(".png", grey - 3)[1].tobytes())
    rows = [f"{f},5,3,4,6" for f in source.files if "second" in f]
    given_ = {"redact": table(tmp_path, rows), "redact_split": "all", "near_duplicate": "drop"}
    ingest(Folders(FoldersConfig(tmp_path / "src")), config(tmp_path / "out", **given_))
    said = capsys.readouterr().err
    assert "warning: 10 images stay uncovered, such as " in said
    assert "was dropped as a near duplicate; give rectangles for those too" in said


BOXES = st.builds(
    Rectangle, st.floats(0, 30), st.floats(0, 30), st.floats(0.1, 40), st.floats(0.1, 40)
)


@given(st.lists(BOXES, max_size=4))
def test_every_pixel_that_a_rectangle_touches_is_black(boxes):
    grey = np.full((25, 30), 200, np.uint8)
    black = blacken(grey, boxes)
    for y in range(25):
        for x in range(30):
            touched = any(
                b.x < x + 1 and x < b.x + b.w and b.y < y + 1 and y < b.y + b.h for b in boxes
            )
            assert (black[y, x] == 0) == touched
    assert grey.min() == 200
