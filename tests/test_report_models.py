"""What is of other weights than a run's is left out of its report and its model card, and said;
what does not say of which is shown with a line that says so."""

import json
from dataclasses import replace

import pytest
from report_runs import (
    evaluate_run,
    make_dataset,
    make_run,
    scored,
    write_faithfulness,
    write_features,
    write_json,
    write_shortcuts,
    write_weights,
)
from test_report import Page
from tiny_model import LABELS, model_info

from serve.model_card import write_card
from serve.predictions import ScoredBy
from serve.report import ReportConfig, write_report
from shards.console import UserError

OWN, OTHER = "a" * 64, "b" * 64
NUMBERS = "96.7 %"  # accuracy of the evaluation: 29 of 30
PARTS = ("features", "faithfulness", "shortcuts")


def scored_by(weights: str | None, precision: str | None = "fp32") -> ScoredBy:
    return ScoredBy("m.onnx", "c" * 64, weights, precision)


@pytest.fixture
def run(tmp_path):
    make_dataset(tmp_path / "shards" / "toy")
    return make_run(tmp_path / "run", tmp_path / "shards")


def everything(run, weights: str | None) -> None:
    """All that other commands leave, of a model with these weights."""
    evaluate_run(run, scored(30), scored_by(weights))
    write_features(run)
    write_faithfulness(run)
    write_shortcuts(run)
    for name in PARTS:
        path = run / name / f"{name}.json"
        content = json.loads(path.read_text()) | ({"weights_sha256": weights} if weights else {})
        write_json(path, content)
    scores = {"rows": 1, "seconds": 1, "img_s": 9876.5, "provider": "cpu", "errors": 0}
    scores |= {"model": "m", "exclusive": True, "synthetic": True, "labels": [], "archives": []}
    write_json(
        run / "scores/scores.json", scores | {"model_sha256": "0", "weights_sha256": weights}
    )


def text_of(run) -> str:
    return Page(write_report(ReportConfig((run,)))).text


def test_of_its_own_weights_all_is_shown_without_a_word(run):
    everything(run, OWN)
    write_weights(run, OWN)
    text = text_of(run)
    assert NUMBERS in text
    assert "9,876.5" in text
    assert "The 12 features" in text
    assert "2 explanations on split" in text
    assert "With the lungs black" in text
    for word in ("other weights", "which model it is of", "No model.json"):
        assert word not in text


def test_damaged_scores_are_named(run):
    everything(run, OWN)
    write_weights(run, OWN)
    write_json(run / "scores/scores.json", {"rows": 1, "weights_sha256": OWN})
    with pytest.raises(
        UserError, match=r"scores\.json is damaged \(scores lacks model\); delete it"
    ):
        text_of(run)


def test_of_other_weights_nothing_is_shown_and_each_is_named(run):
    everything(run, OTHER)
    write_weights(run, OWN)
    path = write_report(ReportConfig((run,)))
    text = Page(path).text
    for shown in (NUMBERS, "9,876.5", "The 12 features", "2 explanations", "With the lungs black"):
        assert shown not in text
    for name in ("evaluation/metrics", "scores/scores", *(f"{name}/{name}" for name in PARTS)):
        assert f"{run}/{name}.json is of other weights than this run's; make it again" in text, name
    data = json.loads(path.read_text().split('id="report-data">')[1].split("</script>")[0])
    assert "tsne" not in str(data)


def test_what_does_not_say_its_model_is_shown_and_said(run):
    everything(run, None)
    write_weights(run, OWN)
    text = text_of(run)
    assert NUMBERS in text
    for name in ("evaluation/metrics", *(f"{name}/{name}" for name in PARTS)):
        assert f"{run}/{name}.json does not say which model it is of" in text, name
    (run / "covid/model.json").unlink()
    everything(run, OWN)
    text = text_of(run)
    assert NUMBERS in text
    assert f"No model.json in this run: {run}/evaluation/metrics.json may be of another" in text


@pytest.mark.parametrize("name", ["evaluation/metrics", *(f"{one}/{one}" for one in PARTS)])
def test_what_has_other_labels_than_the_network_is_refused(run, name):
    """It does not say its weights, as other people's predictions."""
    everything(run, None)
    write_weights(run, OWN)
    path = run / f"{name}.json"
    content = json.loads(path.read_text())
    write_json(path, content | {"labels": ["Mass", "Normal"], "exclusive": False})
    message = rf"{name}\.json has the labels Mass, Normal; this run's network has Normal, Viral"
    with pytest.raises(UserError, match=message):
        text_of(run)


@pytest.mark.parametrize(("exclusive", "fits"), [(False, True), (True, False)])
def test_fewer_labels_are_of_the_network_where_each_is_on_its_own(run, exclusive, fits):
    whole = scored(30, exclusive)
    part = {"targets": whole.targets[:, :2], "probabilities": whole.probabilities[:, :2]}
    evaluate_run(run, replace(whole, labels=whole.labels[:2], **part))
    write_weights(run, OWN)
    if fits:
        assert "metrics.json does not say which model it is of" in text_of(run)
    else:
        with pytest.raises(UserError, match="it is of another model"):
            text_of(run)


def test_another_precision_is_said(run):
    evaluate_run(run, scored(30), scored_by(OWN, "int8"))
    write_weights(run, OWN)
    text = text_of(run)
    assert NUMBERS in text
    assert "metrics.json is of an export in int8" in text


@pytest.mark.parametrize(
    ("weights", "precision", "own", "shown", "said"),
    [
        (OWN, "fp32", "fp32", True, "Measured with m.onnx (fp32) of these weights."),
        (OWN, "fp32", "int8", True, "; this file is int8, whose numbers differ.**"),
        (None, None, "fp32", True, "do not say which model they are of"),
        (OTHER, "fp32", "fp32", False, "is of other weights and is left out"),
    ],
)
def test_the_card_says_which_model_its_numbers_are_of(
    tmp_path, weights, precision, own, shown, said
):
    info = model_info(weights_sha256=OWN, precision=own)
    metrics = {
        "labels": list(LABELS),
        "split": "test",
        "evaluated": 30,
        "classes": [{"label": name} for name in LABELS],
        "accuracy": {"value": 0.875, "low": 0.8, "high": 0.9},
        "scored_by": None if weights is None else vars(scored_by(weights, precision)),
    }
    write_json(tmp_path / "evaluation/metrics.json", metrics)
    card = write_card(info, {}, {}, tmp_path)
    assert ("Accuracy 0.875" in card) == shown
    assert said in card
