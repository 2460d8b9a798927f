"""Every image exactly once, the same scores on every way, whatever happens during the run."""

import hashlib
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_archives import WRITERS, add
from tiny_model import LABELS, SHORTER_SIDE, SIZE, model_info, weights, write_model

from serve import score_folder
from serve.decode import HUNG, KILLED, Decoded, DecodePool, Task, decode_images
from serve.score import ScoreConfig, score
from serve.score_folder import UNIT_INPUTS, Columns, Row, ScoreFolder
from shards.codec import encode
from shards.console import RunFailed, UserError
from shards.preprocess import prepare, reduce_shorter_side
from shards.writer import write_atomic

ROOT = Path(__file__).resolve().parents[1]


def picture(i: int, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)


def pictures(count: int, shape: tuple[int, int] = (40, 48)) -> dict[str, bytes]:
    """Names in the order of a folder, over the three encodings."""
    kinds = (("png", "png"), ("htj2k", "jph"), ("jpeg", "jpg"))
    names = [(i, *kinds[i % 3]) for i in range(count)]
    return {f"{i:05d}.{suffix}": encode(picture(i, shape), kind) for i, kind, suffix in names}


def config(folder: Path, *archives: Path, out: str = "out", **changes) -> ScoreConfig:
    model = folder / "m.onnx"
    if not model.exists():
        write_model(model)
    base = ScoreConfig(model, folder / out, archives, "cpu", batch=8, workers=1, threads=1)
    return replace(base, **changes)


def rows(folder: Path) -> list[dict]:
    return ScoreFolder(folder).read().to_pylist()


def outcomes(folder: Path) -> list[tuple]:
    """Rows without the names that differ between kinds of archive."""
    columns = ("member", "key", *(f"prob_{label}" for label in LABELS), "predicted", "error")
    return [tuple(row[column] for column in columns) for row in rows(folder)]


def test_scores_are_those_of_the_plain_reference(tmp_path):
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(11))
    summary = score(config(tmp_path, archive))
    assert (summary.rows, summary.errors, summary.scored) == (11, 0, 11)
    for i, row in enumerate(rows(tmp_path / "out")):
        if i % 3 == 2:
            continue  # JPEG loses something
        x = prepare(picture(i), SHORTER_SIDE, SIZE).reshape(-1) / 255
        expected = 1 / (1 + np.exp(-(x @ weights())))
        np.testing.assert_allclose([row[f"prob_{n}"] for n in LABELS], expected, atol=1e-5)
        assert row["predicted"] == LABELS[int(expected.argmax())]
        assert row["archive"] == "a.tar"
    table = ScoreFolder(tmp_path / "out").read()
    model = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert table["model_sha256"].unique().to_pylist() == [model]
    assert table["preprocessing_version"].unique().to_pylist() == [
        model_info().preprocessing_version
    ]


def test_every_kind_of_archive_gives_identical_rows(tmp_path):
    members = pictures(9) | {"broken.png": b"no image", "notes.txt": b"skipped"}
    members = dict(sorted(members.items()))
    found = []
    for i, (name, write) in enumerate(WRITERS.items()):
        score(config(tmp_path, write(tmp_path / name, members), out=f"out{i}"))
        found.append(outcomes(tmp_path / f"out{i}"))
    assert len(found[0]) == 10
    assert all(other == found[0] for other in found)


def test_a_raw_image_and_its_ingested_sample_score_the_same(tmp_path):
    image = picture(0, (90, 130))
    stored = reduce_shorter_side(image, SHORTER_SIDE)
    raw = WRITERS["a"](tmp_path / "raw", {"x.png": encode(image, "png")})
    shard = WRITERS["a.tar"](tmp_path / "s.tar", {"x.jph": encode(stored, "htj2k"), "x.lab": b"1"})
    score(config(tmp_path, raw, shard))
    first, second = rows(tmp_path / "out")
    assert [first[f"prob_{n}"] for n in LABELS] == [second[f"prob_{n}"] for n in LABELS]
    assert first["key"] == second["key"] == "x"


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_padding_and_batches_do_not_change_scores(tmp_path, batch):
    archive = WRITERS["a.zip"](tmp_path / "a.zip", pictures(10))
    score(config(tmp_path, archive))
    score(config(tmp_path, archive, out="other", batch=batch))
    for one, other in zip(rows(tmp_path / "out"), rows(tmp_path / "other"), strict=True):
        for name in LABELS:
            assert one[f"prob_{name}"] == pytest.approx(other[f"prob_{name}"], abs=1e-6)


def test_unreadable_images_are_rows_with_a_reason(tmp_path):
    whole = encode(picture(0), "png")
    members = {"a.png": whole, "b.png": whole[:60], "c.png": b"", "d": b"text", "e.png": whole}
    summary = score(config(tmp_path, WRITERS["a.tar.gz"](tmp_path / "a.tar.gz", members)))
    assert (summary.rows, summary.errors, summary.scored) == (5, 3, 2)
    found = rows(tmp_path / "out")
    assert [row["error"] is None for row in found] == [True, False, False, False, True]
    assert all(row["prob_Normal"] is None and row["predicted"] is None for row in found[1:4])


def test_the_predicted_label_is_the_highest_or_of_all_those_with_a_half():
    found = [[0.5, 0.49, 0.1], [0.5, 0.1, 0.9], [0.1, 0.2, 0.3]]
    given = [Row("a", "x", "x", np.array(p, np.float32), None) for p in found]
    given.append(Row("a", "y", "y", None, "broken"))
    for exclusive, expected in ((True, ["A", "C", "C", None]), (False, ["A", "A|C", "", None])):
        table = Columns(("A", "B", "C"), exclusive, "0", 1).table(given)
        assert table["predicted"].to_pylist() == expected


def test_an_output_that_is_no_number_is_an_error(tmp_path, monkeypatch):
    spoilt = weights()
    spoilt[:, 1] = np.nan
    monkeypatch.setattr("tiny_model.weights", lambda seed: spoilt)
    summary = score(config(tmp_path, WRITERS["a.tar"](tmp_path / "a.tar", pictures(3))))
    assert (summary.rows, summary.errors) == (3, 3)
    for row in rows(tmp_path / "out"):
        assert row["error"] == "the network's output is not a finite number"
        assert row["prob_Normal"] is None


def test_an_archive_cut_short_is_scored_up_to_the_cut_and_fails(tmp_path):
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(6))
    other = WRITERS["a.zip"](tmp_path / "b.zip", pictures(2))
    data = archive.read_bytes()
    with tarfile.open(archive) as tar:
        cut = tar.getmembers()[4].offset_data + 10
    archive.write_bytes(data[:cut])
    for _ in range(2):  # the same command says the same again
        with pytest.raises(RunFailed, match=r"a\.tar: cut short inside a member"):
            score(config(tmp_path, archive, other))
    found = rows(tmp_path / "out")
    assert [row["member"] for row in found] == [*list(pictures(4)), "", *list(pictures(2))]
    assert [row["error"] is not None for row in found] == [False] * 4 + [True] + [False] * 2
    summary = json.loads((tmp_path / "out/scores.json").read_text())
    assert [a["members"] for a in summary["archives"]] == [4, 2]
    words = "--provider cpu --batch 8 --workers 1 --threads 1"
    assert summary["options"] == words.split()


def test_limit_counts_over_the_archives(tmp_path):
    first = WRITERS["a.tar"](tmp_path / "a.tar", pictures(5))
    second = WRITERS["a.zip"](tmp_path / "b.zip", pictures(5))
    assert score(config(tmp_path, first, second, limit=7)).rows == 7
    assert [row["archive"] for row in rows(tmp_path / "out")] == ["a.tar"] * 5 + ["b.zip"] * 2


def test_a_finished_folder_is_left_alone(tmp_path):
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(3))
    score(config(tmp_path, archive))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    again = score(config(tmp_path, archive, workers=2))
    assert again.already_done
    assert again.scored == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}


def test_every_file_of_the_scores_appears_by_renaming(tmp_path, monkeypatch):
    written = []

    def noted(path, data):
        written.append(path)
        write_atomic(path, data)

    monkeypatch.setattr(score_folder, "write_atomic", noted)
    score(config(tmp_path, WRITERS["a.tar"](tmp_path / "a.tar", pictures(3))))
    there = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(written) == sorted(path for path in there if path.name != ".lock")
    assert written[0].name == "request.json"
    assert written[-1].name == "scores.json"


def test_another_request_on_the_same_folder_is_refused(tmp_path):
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(3))
    score(config(tmp_path, archive))
    other_model = write_model(tmp_path / "other.onnx", seed=1)
    with pytest.raises(UserError, match=r"model_sha256 was .* use another --out"):
        score(config(tmp_path, archive, model=other_model))
    with pytest.raises(UserError, match="limit was null, now 2"):
        score(config(tmp_path, archive, limit=2))
    WRITERS["a.tar"](archive, pictures(4))
    with pytest.raises(UserError, match=r"archives\[0\]\.bytes was \d+, now \d+"):
        score(config(tmp_path, archive))


def test_two_runs_never_share_a_folder(tmp_path):
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(3))
    with (
        ScoreFolder(tmp_path / "out").locked(),
        pytest.raises(UserError, match="another run is writing"),
    ):
        score(config(tmp_path, archive))


@pytest.mark.parametrize("changes", [{"batch": 0}, {"batch": 10**6}, {"limit": 0}, {"workers": -1}])
def test_wrong_settings_are_named(tmp_path, changes):
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(1))
    with pytest.raises(UserError, match=f"{next(iter(changes))} must be"):
        score(config(tmp_path, archive, **changes))


def test_an_archive_without_images_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "readme.txt", b"nothing")
    with pytest.raises(UserError, match="no image in "):
        score(config(tmp_path, tmp_path / "a.tar"))
    other = WRITERS["a.tar"](tmp_path / "b.tar", pictures(1))
    assert score(config(tmp_path, other)).rows == 1  # the folder is free for another request


def decode_or_die(images: list[bytes], *prepared: int | None) -> Decoded:
    """Stands for a decoder that a damaged image takes down with its process."""
    if b"killer" in images:
        os._exit(66)
    if b"endless" in images:
        time.sleep(3600)
    return decode_images(images, *prepared)


def test_an_image_that_kills_its_worker_is_the_only_one_lost():
    good = encode(picture(0), "png")
    tasks = [Task(i, [good, good]) for i in range(6)]
    tasks[2] = Task(2, [good, b"killer", good])
    with DecodePool(2, SHORTER_SIDE, SIZE, decode=decode_or_die) as pool:
        found = list(pool.run(tasks))
    assert [tag for tag, _ in found] == list(range(6))
    errors = [decoded.errors for _, decoded in found]
    assert errors == [[None, None]] * 2 + [[None, KILLED, None]] + [[None, None]] * 3
    expected = prepare(picture(0), SHORTER_SIDE, SIZE)
    assert all((decoded.images[0] == expected).all() for _, decoded in found)


@pytest.mark.soak
def test_an_image_that_never_ends_is_the_only_one_lost():
    good = encode(picture(0), "png")
    tasks = [Task(i, [good, b"endless"] if i == 1 else [good]) for i in range(4)]
    with DecodePool(1, SHORTER_SIDE, SIZE, decode=decode_or_die, seconds=4) as pool:
        errors = [decoded.errors for _, decoded in pool.run(tasks)]
    assert errors == [[None], [None, HUNG], [None], [None]]


RUN = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from serve.score import ScoreConfig, score
if __name__ == "__main__":
    model, out, archive = map(Path, sys.argv[1:])
    score(ScoreConfig(model, out, (archive,), "cpu", batch=8, workers=1, threads=1))
    assert not any(name.startswith("torch") and sys.modules[name] for name in sys.modules)
"""


def start(tmp_path: Path, out: str, archive: Path) -> subprocess.Popen:
    (tmp_path / "run.py").write_text(RUN)
    arguments = [str(path) for path in (tmp_path / "m.onnx", tmp_path / out, archive)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, tmp_path / "run.py", *arguments], env=environment)


def wait_for_parts(process: subprocess.Popen, folder: Path, count: int) -> None:
    while process.poll() is None and len(list(folder.glob("parts/part-*.parquet"))) < count:
        time.sleep(0.002)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_killed_runs_end_in_the_rows_of_one_undisturbed_run(tmp_path, name):
    """And the rooms that scoring needs work without torch."""
    write_model(tmp_path / "m.onnx")
    count = 5 * UNIT_INPUTS + 100
    members = {f"{i:05d}.png": encode(picture(i, (20, 24)), "png") for i in range(count)}
    members["00700.png"] = members["00700.png"][:50]
    archive = WRITERS[name](tmp_path / name, members)
    score(config(tmp_path, archive, out="whole"))
    rng = random.Random(name)
    for parts in (1, 2, 4):
        process = start(tmp_path, "killed", archive)
        wait_for_parts(process, tmp_path / "killed", parts)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.wait()
        if parts == 1:
            assert not (tmp_path / "killed/scores.json").exists()
    committed = list((tmp_path / "killed/parts").glob("*.parquet"))
    times = {path: path.stat().st_mtime_ns for path in committed}
    assert start(tmp_path, "killed", archive).wait() == 0
    assert {path: path.stat().st_mtime_ns for path in committed} == times
    assert ScoreFolder(tmp_path / "killed").read().equals(ScoreFolder(tmp_path / "whole").read())
    assert len(rows(tmp_path / "killed")) == count
