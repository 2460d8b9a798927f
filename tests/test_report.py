"""The report on run folders made by hand: what it tells, escapes and states as left out."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve import report
from serve.evaluate import measure, write_metrics, write_pictures
from serve.gallery import Picture, choose, make_pictures, read_images, wrong_calls
from serve.predictions import Joined
from serve.report import ReportConfig, interval, percent, write_report
from shards.codec import encode
from shards.console import UserError
from shards.manifest import Manifest, SplitCounts
from shards.sample import Sample, SampleMeta
from shards.writer import write_shard

EVIL = "<script>alert(1)</script>"
LABELS = ("Normal", "Viral $Pneumonia", EVIL)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def dataset(tmp_path):
    """Six test images of three labels, image i of grey level 10 i."""
    folder = tmp_path / "shards" / "toy"
    samples = [
        Sample(
            key=f"image-{i}",
            image=encode(np.full((64, 96), 10 * i, np.uint8), "png"),
            extension="png",
            labels=np.eye(3, dtype=np.int8)[i % 3],
            meta=SampleMeta("toy", f"{EVIL}.png", "0" * 64, 96, 64),
        )
        for i in range(6)
    ]
    shards = tuple(
        write_shard(folder / "test" / f"toy-test-{n}.tar", "test", samples[3 * n : 3 * n + 3])
        for n in range(2)
    )
    manifest = Manifest(
        dataset="toy",
        labels=LABELS,
        exclusive=True,
        image_extension="png",
        preprocessing_version=1,
        shorter_side=None,
        splits={"test": SplitCounts(6, dict.fromkeys(LABELS, 2))},
        excluded={"duplicate: same pixels": 3, f"lateral {EVIL}": 1},
        settings={},
        shards=shards,
        synthetic=True,
        notes=("A note.",),
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    table = pa.table({"reason": ["empty file", "does not decode: a", "does not decode: b"]})
    pq.write_table(table, folder / "quarantine.parquet")
    return folder, manifest


@pytest.fixture
def run(tmp_path, dataset):
    """A finished run of two phases, without a model, scores or an evaluation."""
    folder = tmp_path / "runs" / f"run {EVIL[:8]}"
    phases = [{"name": "output layer", "epochs": 2}, {"name": f"all {EVIL}", "epochs": 2}]
    settings = {
        "recipe": "network-c",
        "config": {"stages": [{"name": "covid", "dataset": "toy", "phases": phases}]},
        "shards": str(dataset[0].parent),
        "command": f"python -m train network-c # {EVIL}",
        "commit": "0123456789abcdef",
        "synthetic": True,
    }
    write_json(folder / "settings.json", settings)
    write_json(folder / "environment.json", {"torch": "2.11", "gpu": None, "cpu": EVIL})
    rows = [
        {
            "stage": "covid",
            "phase": 1 + epoch // 3,
            "phase_name": phases[epoch // 3]["name"],
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "val_loss": 1.1 / epoch,
            "val_accuracy": 1 - 0.4 / epoch,
            "val_auroc": None,
            "lr": 1e-3,
            "seconds": 2.0,
            "step_s": 0.5,
            "img_s": 1234.0,
            "copies": 100,
            "time": 0.0,
        }
        for epoch in range(1, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = {"accuracy": 0.875, "auroc_mean": 0.912}
    told = {"best_epoch": 2, "best_val_loss": 0.25, "test": test}
    result = {"phases": [{**phase, **told} for phase in phases]}
    write_json(folder / "covid" / "result.json", result)
    return folder


def join_arrays(truth, probabilities):
    keys = tuple(f"image-{i}" for i in range(len(truth)))
    return Joined(keys, LABELS, True, truth, probabilities, None, {}, True)


def evaluated(run):
    truth = np.eye(3, dtype=np.int8)[np.arange(6) % 3]
    probabilities = np.where(truth == 1, 0.8, 0.1)
    probabilities[0] = (0.2, 0.9, 0.1)
    joined = join_arrays(truth, probabilities)
    evaluation = measure(joined, "test")
    (run / "evaluation").mkdir()
    write_pictures(evaluation, joined, run / "evaluation")
    write_metrics(evaluation, run / "evaluation")


class Page(HTMLParser):
    """Tags, attributes and text of a page; opened tags must be closed in order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def assert_self_contained(page):
    """No script, no address outside the page, a text for each image."""
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["alt"]
            assert attributes["src"].startswith("data:image/")
        if tag == "a":
            assert attributes["href"].startswith("#")


def test_a_run_alone_is_told_and_what_lacks_is_stated(run):
    page = Page(write_report(ReportConfig(run)))
    assert_self_contained(page)
    for expected in (
        "SYNTHETIC DATA",
        "not a medical device",
        "network-c",
        "duplicate: same pixels 3",
        "empty file 1",
        "does not decode 2",
        "A note.",
        "87.5 %",
        "0.912",
        "1,234.0",
        "commit 0123456789ab",
        "python -m serve evaluate",
        "No evaluation in",
        "No scores in",
        "No scores.json",
    ):
        assert expected in page.text, expected
    assert sum(tag == "img" for tag, _ in page.tags) == 1  # the curves


def test_everything_hostile_is_escaped(run):
    evaluated(run)
    path = write_report(ReportConfig(run))
    assert EVIL not in path.read_text()
    page = Page(path)
    assert_self_contained(page)
    assert page.text.count(EVIL) >= 6  # labels, phases, reasons, command, environment: as text


def test_an_evaluation_is_told_with_intervals(run):
    evaluated(run)
    page = Page(write_report(ReportConfig(run)))
    assert "83.3 %" in page.text
    assert "95 % interval 43.6 % to 97.0 %" in page.text
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert any(alt.startswith("Confusion matrix") for alt in alts)
    assert any(alt.startswith("ROC curves") for alt in alts)


def test_missing_data_sets_and_unfinished_stages_are_stated(run, tmp_path):
    (run / "covid" / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    page = Page(write_report(ReportConfig(run, tmp_path / "page.html", shards=tmp_path / "none")))
    assert "Not told here: no folder" in page.text
    assert "This stage is not finished" in page.text
    assert "No epoch of this stage" in page.text


def test_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no settings\.json"):
        write_report(ReportConfig(tmp_path))


def test_a_damaged_file_is_named(run):
    (run / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        write_report(ReportConfig(run))


def test_a_file_of_another_version_is_named_not_a_traceback(run):
    write_json(run / "evaluation" / "metrics.json", {"format_version": 1, "accuracy": None})
    with pytest.raises(UserError, match="has no attribute"):
        write_report(ReportConfig(run))
    write_json(run / "settings.json", {"shards": "nowhere"})
    with pytest.raises(UserError, match="'config'"):
        write_report(ReportConfig(run))


def test_gallery_figures_are_escaped(run, monkeypatch):
    pixels = encode(np.zeros((8, 16), np.uint8), "jpeg")
    picture = Picture('a" onload="x', EVIL, EVIL, 0.75, True, pixels)
    monkeypatch.setattr(report, "_gallery", lambda *_: ([picture], ["Half of it."]))
    path = write_report(ReportConfig(run))
    assert EVIL not in path.read_text()
    page = Page(path)
    assert_self_contained(page)
    assert "75.0 % (wrong)" in page.text
    assert "Half of it." in page.text


def test_choose_takes_wrong_calls_first_then_each_label_in_turn():
    truth = np.eye(3, dtype=np.int8)[[0, 0, 0, 1, 1, 2, 2, 2]]
    probabilities = np.where(truth == 1, 0.8, 0.1)
    probabilities[1] = (0.2, 0.6, 0.1)  # wrong
    probabilities[5] = (0.9, 0.1, 0.2)  # wrong, and surer
    assert wrong_calls(truth, probabilities).nonzero()[0].tolist() == [1, 5]
    assert choose(truth, probabilities, 6).tolist() == [5, 1, 0, 3, 6, 2]
    assert choose(truth, probabilities, 99).tolist() == [5, 1, 0, 3, 6, 2, 4, 7]
    assert choose(truth, probabilities, 0).tolist() == []
    assert choose(truth, probabilities, 2).tolist() == [5, 0]


def test_unknown_truth_is_no_wrong_call():
    truth = np.array([[-1, 0], [0, 1], [0, -1]], np.int8)
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert wrong_calls(truth, probabilities).tolist() == [False, True, True]


def test_read_images_by_key_from_several_shards(dataset):
    folder, manifest = dataset
    found = read_images(folder, manifest, "test", ["image-5", "image-1", "absent"], 32)
    assert {key: (image.shape, int(image[0, 0])) for key, image in found.items()} == {
        "image-1": ((32, 32), 10),
        "image-5": ((32, 32), 50),
    }


def test_pictures_have_heat_maps_of_the_call(dataset, monkeypatch):
    import torch
    from torchvision.models import DenseNet

    folder, _ = dataset
    torch.manual_seed(0)
    model = DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=3).eval()
    spec = SimpleNamespace(labels=LABELS, exclusive=True, size=64)
    monkeypatch.setattr("train.runs.load_run_model", lambda run: (model, spec))
    truth = np.eye(3, dtype=np.int8)[np.arange(6) % 3]
    probabilities = np.where(truth == 1, 0.8, 0.1)
    probabilities[4] = (0.9, 0.1, 0.1)
    probabilities[0] = np.nan  # could not be scored
    pictures, all_wrong = make_pictures(
        folder, folder, "test", join_arrays(truth, probabilities), 4
    )
    assert all_wrong == 1
    assert [p.key for p in pictures] == ["image-4", "image-3", "image-1", "image-2"]
    assert [p.wrong for p in pictures] == [True, False, False, False]
    assert asdict(pictures[0])["truth"] == "Viral $Pneumonia"
    assert pictures[0].called == "Normal"
    assert pictures[0].pixels.startswith(b"\xff\xd8")


def test_numbers_as_text():
    assert percent(None) == "–"
    assert interval(None) == "–"
    assert interval({"value": 0.5, "low": 0.25, "high": 0.75}) == "50.0 % (25.0 to 75.0)"
    assert interval({"value": 1.0, "low": None, "high": None}, "area") == "1.000"
