"""The report on run folders made by hand: what it tells, escapes and states as left out."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import tyro
from report_runs import (
    EVIL,
    LABELS,
    evaluate_run,
    make_dataset,
    make_run,
    scored,
    write_faithfulness,
    write_features,
    write_shortcuts,
)

from serve import report_run
from serve.gallery import Gallery, Picture
from serve.report import ReportConfig, write_report
from serve.report_maps import image_webp, to_layer
from serve.report_page import interval, policy


@pytest.fixture
def run(tmp_path):
    make_dataset(tmp_path / "shards" / "toy")
    return make_run(tmp_path / "runs" / f"run {EVIL[2:8]}", tmp_path / "shards")


def everything(run):
    evaluate_run(run, scored(30))
    write_features(run)
    write_faithfulness(run)
    write_shortcuts(run)


class Page(HTMLParser):
    """Tags, attributes and text of a page; opened tags must be closed in order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.words, self.scripts = [], [], [], []
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
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside in ("script", "style") else self.words).append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_self_contained(page):
    """Its own data and its own script alone, no address outside the page, a text for each image."""
    scripts = page.attributes("script")
    assert scripts == [{"type": "application/json", "id": "report-data"}, {}]
    metas = {one.get("http-equiv"): one.get("content") for one in page.attributes("meta")}
    assert metas["Content-Security-Policy"] == policy(page.scripts[0], page.scripts[2])
    assert "default-src 'none'" in metas["Content-Security-Policy"]
    assert "unsafe" not in metas["Content-Security-Policy"]
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "form", "base")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        if tag == "img" and attributes.get("id") not in ("viewer-image", "viewer-heat"):
            assert attributes["alt"]
            assert attributes["src"].startswith("data:image/")
        if tag == "a":
            assert attributes["href"].startswith("#")


def test_a_run_alone_is_told_and_what_lacks_is_stated(run):
    page = Page(write_report(ReportConfig((run,))))
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
        "No shortcuts.json",
        "No features.json",
        "No faithfulness.json",
        "Energy was not measured",
    ):
        assert expected in page.text, expected
    assert [one["data-chart"] for one in page.attributes("figure") if "data-chart" in one] == [
        "loss",
        "validation",
    ]


def test_everything_there_is_told_in_words_too(run):
    everything(run)
    path = write_report(ReportConfig((run,)))
    page = Page(path)
    assert_self_contained(page)
    for expected in (
        "96.7 %",  # accuracy: 29 of 30
        "95 % interval 83.3 % to 99.4 %",
        "bootstrap of 30 images, 50 resamples",
        "Sensitivity and specificity at set thresholds",
        "The 12 features",
        "50.0 % (10.0 to 90.0)",  # pointing game
        "+0.5000 (+0.2500 to +0.7500)",  # a pasted word
        "By view",
        "ECE",
        "With the lungs black",
        "Left out: source: one data set only",
        "of F1, average precision and the means the bootstrap's over 30 images",
        "The same with the bootstrap's intervals",
    ):
        assert expected in page.text, expected
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    drawn = [metrics["bootstrap"]["mean"][name] for name in ("f1", "average_precision")]
    drawn += [one["f1"] for one in metrics["bootstrap"]["classes"]]
    assert [one for one in drawn if interval(one, "area") not in page.text] == []
    charts = {one.get("data-chart") for one in page.attributes("figure")}
    assert {"roc", "pr", "calibration", "deletion", "insertion", "tsne", "som"} <= charts
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text())


def test_images_of_unknown_patients_are_not_counted_as_patients(run):
    everything(run)
    path = run / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["bootstrap"] |= {"unit": "patient", "units": 44, "lone_images": 15}
    path.write_text(json.dumps(metrics))
    text = Page(write_report(ReportConfig((run,)))).text
    assert text.count("29 patients and 15 images of unknown patients") == 3
    assert "44 patients" not in text


def test_it_tells_the_options_to_make_all_of_it_again(run):
    everything(run)
    for name, options in (
        ("evaluation/metrics.json", ["--bootstrap", "200", "--split", EVIL]),
        ("features/features.json", ["--per-class", "12"]),
        ("faithfulness/faithfulness.json", ["--sanity", "0"]),
        ("shortcuts/shortcuts.json", ["--on", "Viral Pneumonia"]),
    ):
        path = run / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"options": options}))
    (run / "explain").mkdir()
    told = {"items": [], "weights_sha256": "", "options": ["--method", "cam", "IMAGE..."]}
    (run / "explain" / "explanations.json").write_text(json.dumps(told))
    text = Page(write_report(ReportConfig((run,), gallery=0))).text
    for expected in (
        "--bootstrap 200 --split",
        "--per-class 12 python -m serve faithfulness",
        "--sanity 0",
        "--on 'Viral Pneumonia'",
        "--method cam IMAGE...",
        "--gallery 0",
    ):
        assert expected in text, expected


def test_everything_hostile_is_escaped(run):
    everything(run)
    path = write_report(ReportConfig((run,)))
    html = path.read_text()
    assert EVIL not in html
    assert html.count("<script") == 2
    page = Page(path)
    assert_self_contained(page)
    assert page.text.count(EVIL) >= 20  # labels, phases, groups, words, methods: as text
    data = json.loads(page.scripts[1])
    assert data[0]["features"]["classes"] == list(LABELS)
    assert data[0]["evaluation"]["operating"]["classes"][2]["label"] == EVIL


def test_the_sliders_counts_are_the_evaluations(run):
    joined = scored(30)
    evaluate_run(run, joined)
    page = Page(write_report(ReportConfig((run,))))
    told = json.loads(page.scripts[1])[0]["evaluation"]["operating"]
    assert told["steps"] == 1000
    for i, one in enumerate(told["classes"]):
        for step in (0, 137, 500, 801, 1000):
            called = joined.probabilities[:, i] >= step / 1000
            assert one["true_positive"][step] == (called & (joined.targets[:, i] == 1)).sum()
            assert one["false_positive"][step] == (called & (joined.targets[:, i] == 0)).sum()


def test_labels_that_do_not_exclude_each_other(run):
    evaluate_run(run, scored(30, exclusive=False))
    page = Page(write_report(ReportConfig((run,))))
    assert "No confusion matrix: an image may have several labels" in page.text
    assert "each label from probability 0.5 on" in page.text


def test_an_external_set_with_another_class_has_no_accuracy_and_the_page_says_why(run):
    whole = scored(30)
    has_it = whole.targets[:, 2:] == 1
    part = replace(
        whole,
        targets=np.where(has_it, whole.targets, np.array([-1, -1, 0])).astype(np.int8),
        outside=tuple(None if has else "Other" for has in has_it.ravel()),
    )
    evaluate_run(run, part)
    text = Page(write_report(ReportConfig((run,)))).text
    why = "no accuracy: 20 of 30 images have a class that the network lacks (Other)"
    assert f"There is {why}." in text
    assert "an image may have several labels" not in text


def test_two_runs_side_by_side(run, tmp_path):
    other = make_run(tmp_path / "runs" / "second", tmp_path / "shards")
    evaluate_run(run, scored(30))
    evaluate_run(other, scored(60))
    path = write_report(ReportConfig((run, other), tmp_path / "both.html"))
    page = Page(path)
    assert_self_contained(page)
    assert "B: second" in page.text
    assert "differ in their numbers of evaluated images" in page.text
    assert "Side by side, with 95 % intervals" in page.text
    assert {one["data-threshold"] for one in page.attributes("div") if "data-threshold" in one} == {
        "0",
        "1",
    }
    assert len(json.loads(page.scripts[1])) == 2
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_command_line_takes_two_runs():
    config = tyro.cli(ReportConfig, args=["--run", "a", "--run", "b", "--gallery", "3"])
    assert [str(path) for path in config.run] == ["a", "b"]
    assert config.scores == ()


def test_missing_data_sets_and_unfinished_stages_are_stated(run, tmp_path):
    (run / "covid" / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    config = ReportConfig((run,), tmp_path / "page.html", shards=(tmp_path / "none",))
    page = Page(write_report(config))
    assert "Not told here: no folder" in page.text
    assert "This stage is not finished" in page.text
    assert "No epoch of this stage" in page.text


def test_half_a_line_that_a_killed_run_left_is_no_epoch(run):
    path = run / "metrics.jsonl"
    whole = Page(write_report(ReportConfig((run,)))).text
    path.write_text(path.read_text() + '{"stage": "cov')
    assert Page(write_report(ReportConfig((run,)))).text == whole


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, "No examples.png in"),
        (2**21 + 1, "examples.png has 2,097,153 bytes, the page takes 2,097,152"),
        (2**21, "What was done to the images."),
    ],
)
def test_a_picture_that_lacks_or_is_too_large_is_stated(run, size, expected):
    write_shortcuts(run)
    if size is not None:
        (run / "shortcuts" / "examples.png").write_bytes(bytes(size))
    assert expected in Page(write_report(ReportConfig((run,)))).text


def test_gallery_figures_are_escaped(run, monkeypatch):
    layers = tuple(to_layer(m, EVIL, np.eye(8, dtype=np.float32)) for m in ("gradcam", "lrp"))
    image = image_webp(np.zeros((8, 8), np.uint8))
    pictures = [
        Picture('a" onload="x', (EVIL,), EVIL, 0.75, True, image, layers),
        Picture("plain", (), "Normal", 0.5, None, image, layers[:1]),
        Picture("dark", None, "Normal", 0.5, None, image, layers[:1]),
    ]
    gallery = Gallery(LABELS, pictures, 7)
    monkeypatch.setattr(report_run, "_gallery", lambda *_: (gallery, ["Half of it."]))
    path = write_report(ReportConfig((run,)))
    assert EVIL not in path.read_text()
    page = Page(path)
    assert_self_contained(page)
    assert "75.0 % (wrong)" in page.text
    assert "truth: none of the labels plain" in page.text
    assert "truth: unknown dark" in page.text
    assert {"value": "unknown"} in page.attributes("option")
    assert "Half of it." in page.text
    tiles = [one for one in page.attributes("figure") if "data-called" in one]
    assert [(t["data-truth"], t["data-called"], t["data-wrong"]) for t in tiles] == [
        ("2 ", "2", "1"),
        ("", "0", ""),
        ("unknown", "0", ""),
    ]


def test_a_temperature_that_could_not_be_fitted_is_told_so(run):
    evaluate_run(run, scored(30))
    assert "No temperature: python -m serve" in Page(write_report(ReportConfig((run,)))).text
    path = run / "evaluation" / "metrics.json"
    found = json.loads(path.read_text())
    said = "no temperature: the validation scores do not tell one"
    path.write_text(json.dumps(found | {"omitted": [said]}))
    text = Page(write_report(ReportConfig((run,)))).text
    assert f"There is {said}." in text
    assert "No temperature: python -m serve" not in text


def test_energy_is_told_where_every_epoch_has_it():
    epoch = {"phase": 1, "phase_name": "all", "img_s": 1.0, "step_s": 1.0, "copies": 1}
    epochs = [epoch | {"seconds": 2.0, "energy_j": joules} for joules in (1500.0, 500.0)]
    assert report_run._speed(epochs)[0]["energy_kj"] == 2.0
    assert report_run._speed([*epochs, epoch | {"seconds": 2.0}])[0]["energy_kj"] is None
