"""serve evaluate: what it reads, what it writes, what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ingest_runs import ROOT, run_cli

from serve.evaluate import (
    EvaluateConfig,
    evaluate,
)
from serve.evaluation_tables import to_csv
from shards.console import UserError

SCORES = "key,A,B\na,0.9,0.2\nb,0.3,0.6\nc,0.8,0.4\nd,,\n"


TRUTH = "key,A,B\na,1,0\nb,0,1\nc,0,1\nd,1,0\n"


def run(folder, scores=SCORES, labels=TRUTH, **more):
    """Evaluate two small tables into `folder`/out."""
    (folder / "scores.csv").write_text(scores)
    (folder / "labels.csv").write_text(labels)
    files = (folder / "scores.csv", folder / "labels.csv", folder / "out")
    return evaluate(EvaluateConfig(*files, **{"bootstrap": 0, **more}))


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("serve.evaluate.write_pictures", lambda *_: None)


def test_no_cell_of_its_tables_is_a_formula():
    found = to_csv(("key", "-x"), [("=1+1", -0.5), ("@a", None), ("a-b", "+"), ("'=", "'a")])
    assert found.decode() == "key,'-x\n'=1+1,-0.5\n'@a,\na-b,'+\n''=,'a\n"


def test_evaluate_reads_tables_and_writes_the_folder(tmp_path, capsys):
    found = run(tmp_path)
    out = tmp_path / "out"
    assert (found.confusion, found.errors, found.split) == ([[1, 0], [1, 1]], 1, None)
    tables = ["calibration", "confusion", "curves", "histograms", "left_out", "metrics"]
    pictures = ["calibration", "confusion", "histograms", "pr", "roc", "thresholds"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{name}.csv" for name in (*tables, "thresholds")]
        + [f"{name}.{kind}" for name in pictures for kind in ("png", "svg")]
        + ["metrics.json"]
    )
    assert json.loads((out / "metrics.json").read_text())["options"] == ["--bootstrap", "0"]
    printed = capsys.readouterr().out
    assert "accuracy   0.6667 (95 % interval 0.2077 to 0.9385)" in printed
    assert "left out: 1 images could not be scored: d" in printed
    assert (out / "left_out.csv").read_text() == "key,reason\nd,images could not be scored\n"
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    accuracy = next(r for r in rows if r["metric"] == "accuracy" and not r["label"])
    assert float(accuracy["value"]) == found.accuracy.value == 2 / 3
    assert float(accuracy["low"]) == found.accuracy.low


def test_a_second_evaluation_leaves_nothing_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "serve.evaluate.write_figure", lambda _, path: path.with_name(f"{path.name}.png").touch()
    )
    run(tmp_path, against=tmp_path / "scores.csv")
    out = tmp_path / "out"
    assert (out / "against.csv").is_file()
    assert (out / "confusion.png").is_file()
    run(tmp_path, exclusive=False)
    assert not [path for path in out.iterdir() if path.stem in ("against", "confusion")]

    def fails(*_):
        raise OSError

    monkeypatch.setattr("serve.evaluate.write_tables", fails)
    with pytest.raises(OSError, match=r"^$"):
        run(tmp_path)
    assert not (out / "metrics.json").exists()  # it would say that the folder is complete


@pytest.mark.usefixtures("no_pictures")
def test_a_column_of_class_names_is_as_good_as_one_per_class(tmp_path):
    named = run(tmp_path, labels="key,label\na,A\nb,B\nc,B\nd,\n")
    assert named.exclusive
    assert named.confusion == [[1, 0], [1, 1]]
    with pytest.raises(UserError, match="a column 'A' and a class 'A'"):
        run(tmp_path, labels="key,label,A\na,A,1\nb,B,0\nc,B,0\nd,,\n")


@pytest.mark.usefixtures("no_pictures")
def test_labels_may_be_taken_as_exclusive_or_not(tmp_path):
    assert run(tmp_path, exclusive=False).confusion is None
    masked = TRUTH.replace("d,1,0", "d,1,").replace("c,0,1", "c,0,")
    found = run(tmp_path, labels=masked, exclusive=True)
    assert (found.evaluated, found.accuracy, found.confusion) == (3, None, None)
    assert "no accuracy: 1 of 3 images have a class that is not fully known" in found.omitted
    with pytest.raises(UserError, match="--exclusive with the one label 'A'"):
        run(tmp_path, scores="key,A\na,0.5\n", exclusive=True)


@pytest.mark.parametrize(
    ("scores", "labels", "more", "message"),
    [
        ("key,A,B\na,0.9,0.2\na,0.3,0.6\n", TRUTH, {}, "1 keys stand more than once in the pred"),
        (SCORES, "key,A,B\na,1,0\na,1,0\n", {}, "1 keys stand more than once in the labels: a"),
        ("key,A,B\na,0.9,nan\nb,0.1,0.2\n", TRUTH, {}, "image 'a' has nan for 'B'"),
        ("key,A,B\na,0.9,inf\n", TRUTH, {}, "line 2, label 'B': a probability is from 0 to 1"),
        ("key,A,B\na,0.9,-0.1\n", TRUTH, {}, "found -0.1"),
        ("key,X,Y\na,0.9,0.1\n", TRUTH, {}, "no label is on both sides: the scores have X, Y"),
        ("key,A,B\nq,0.9,0.1\n", TRUTH, {}, "no key is on both sides: scores are of q"),
        ("key,A,B\n", TRUTH, {}, "no key is on both sides: scores are of nothing"),
        (SCORES, "key,A,B\n", {}, "no key is on both sides"),
        (SCORES, "key,A,B\na,2,0\n", {}, "a label is 1, 0, or -1 or empty for unknown, found '2'"),
        (SCORES, "key,A,B\na,yes,0\n", {}, "expected a number, found 'yes'"),
        (SCORES, "key,A,B\na,,\nb,-1,\n", {}, "none of the 2 scored images has a known label"),
        ("key,A,B\na,,\nb,,\n", TRUTH, {}, "none of the 2 images could be scored"),
        (SCORES, TRUTH, {"split": "test"}, "no split 'test' in .*labels.csv"),
        (SCORES, TRUTH, {"thresholds": (0.5, 1.2)}, "--thresholds has 1.2"),
        (SCORES, TRUTH, {"bootstrap": 5}, "--bootstrap is 5; give 100 or more, or 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, scores, labels, more, message):
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, scores, labels, **more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.usefixtures("no_pictures")
def test_another_model_and_a_validation_set(tmp_path, capsys):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 80)
    lines = [f"k{i},{t},{1 - t},{'val' if i % 4 == 0 else 'test'}" for i, t in enumerate(truth)]
    labels = "\n".join(["key,A,B,split", *lines])

    def scores(noise, chosen):
        p = 1 / (1 + np.exp(-12 * (2 * truth - 1 + noise * rng.normal(size=80))))
        return "\n".join(["key,A,B", *(f"k{i},{p[i]},{1 - p[i]}" for i in range(80) if chosen(i))])

    for name, text in (
        ("other.csv", scores(3, lambda i: i % 4)),
        ("val.csv", scores(1, lambda i: i % 4 == 0)),
        ("test.csv", own := scores(1, lambda i: i % 4)),
    ):
        (tmp_path / name).write_text(text)
    options = {"split": "test", "calibration_split": "val", "calibration": tmp_path / "val.csv"}
    found = run(tmp_path, own, labels, against=tmp_path / "other.csv", bootstrap=100, **options)
    assert found.exclusive
    assert found.calibration.temperature.form == "softmax"
    assert found.calibration.temperature.value > 1
    assert found.calibration.temperature.images == 20
    assert found.against.images == 60
    assert found.against.mcnemar[0].label is None
    assert (tmp_path / "out" / "against.csv").is_file()
    printed = capsys.readouterr().out
    assert "p " in printed
    assert "(McNemar)" in printed
    leak = {**options, "calibration": tmp_path / "test.csv", "calibration_split": "test"}
    with pytest.raises(UserError, match="60 of its images are evaluated too"):
        run(tmp_path, own, labels, **leak)


@pytest.mark.usefixtures("no_pictures")
def test_thresholds_and_resamples_are_those_asked_for(tmp_path):
    found = run(tmp_path, thresholds=(0.85, 0.3), bootstrap=100, seed=4)
    assert (found.bootstrap.replicates, found.bootstrap.seed) == (100, 4)
    first = found.thresholds[0].rows
    assert [(row.threshold, row.true_positive, row.false_positive) for row in first] == [
        (0.85, 1, 0),
        (0.3, 1, 2),
    ]
    lines = (tmp_path / "out" / "thresholds.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:3]] == [["A", "0.85"], ["A", "0.3"]]


BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision") or name.startswith("scipy.stats"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
from serve.__main__ import main
import serve.shortcuts.command
sys.argv = ["serve", *sys.argv[1:]]
main()
assert not {"torch", "scipy.stats"} & set(sys.modules)
"""


def test_evaluation_runs_without_torch_and_scipy_stats(tmp_path):
    (tmp_path / "scores.csv").write_text(SCORES)
    (tmp_path / "other.csv").write_text(SCORES.replace("0.9", "0.4"))
    (tmp_path / "labels.csv").write_text(TRUTH + "e,1,0\nf,0,1\n")
    (tmp_path / "val.csv").write_text("key,A,B\ne,0.9,0.6\nf,0.8,0.3\n")
    line = "evaluate --scores scores.csv --against other.csv --calibration val.csv"
    more = f"--labels labels.csv --out {tmp_path / 'out'}".split()
    files = [str(tmp_path / one) if one.endswith(".csv") else one for one in line.split()]
    labels = [str(tmp_path / one) if one.endswith(".csv") else one for one in more]
    command = [sys.executable, "-c", BLOCKED, *files, *labels]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metrics.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--scores", "s3://bucket/x", "--labels", "l.csv", "--out", "o"],
        ["inspect", "https://host/m.onnx"],
        ["summary", "s3://bucket/x"],
    ],
)
def test_urls_are_refused_as_they_were_given(words):
    done = run_cli("serve", *words)
    assert done.returncode == 2
    url = next(word for word in words if "://" in word)
    assert done.stderr.startswith(f"error: {url}: {words[0]} takes paths on this machine")
    assert done.stderr.count("\n") == 1


def test_make_evaluate_wants_labels():
    make = ["make", "-o", "setup", "evaluate", "RUN=none"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: give LABELS=")
