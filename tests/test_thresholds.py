"""Operating points against a search over every threshold, and as a column of the scores."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_archives import WRITERS
from test_score import config, pictures
from tiny_model import LABELS, model_info, write_model

from serve.model_info import PREFIX, from_metadata, to_metadata
from serve.score import score
from serve.thresholds import OperatingPoint, called, choose, pick, sensitivity_point, youden_point
from shards.console import UserError

# Few distinct values, so that ties are common; neighbours in float32, so that midpoints are hard.
VALUES = [0.0, 0.25, float(np.nextafter(np.float32(0.25), np.float32(1))), 0.5, 0.75, 1.0]
images = st.lists(st.tuples(st.sampled_from(VALUES), st.booleans()), min_size=1, max_size=30)


def rates(scores: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[int, int]:
    """(true positives, true negatives)."""
    called = scores.astype(np.float64) >= threshold
    return int((called & truth).sum()), int((~called & ~truth).sum())


def split(found: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, truth = zip(*found)
    return np.array(scores, np.float32), np.array(truth)


@given(images, st.sampled_from([0.5, 0.9, 0.98, 1.0]))
def test_the_sensitive_point_is_the_most_specific_of_all_thresholds(found, at_least):
    scores, truth = split(found)
    point = sensitivity_point(scores, truth, at_least)
    if truth.all() or not truth.any():
        assert point is None
        return
    every = [rates(scores, truth, t) for t in (*VALUES, 2.0)]
    enough = [n for p, n in every if p / truth.sum() >= at_least - 1e-12]
    p, n = rates(scores, truth, point.threshold)
    assert p / truth.sum() >= at_least - 1e-12
    assert n == max(enough)
    assert point.sensitivity == p / truth.sum()
    assert point.specificity == n / (~truth).sum()
    assert (point.positives, point.negatives) == (truth.sum(), (~truth).sum())


@given(images)
def test_youden_is_the_best_of_all_thresholds(found):
    scores, truth = split(found)
    point = youden_point(scores, truth)
    if truth.all() or not truth.any():
        assert point is None
        return
    m, k = int(truth.sum()), int((~truth).sum())
    every = [rates(scores, truth, t) for t in (*VALUES, 2.0)]
    p, n = rates(scores, truth, point.threshold)
    best = max(a * k + b * m for a, b in every)
    # A classifier that calls nothing may tie with the worst; it is never chosen, and never better.
    assert p * k + n * m == best
    assert p == max(a for a, b in every if a * k + b * m == best)


@given(images)
def test_calling_with_a_point_gives_its_rates(found):
    scores, truth = split(found)
    for point in (youden_point(scores, truth), sensitivity_point(scores, truth, 0.98)):
        if point is not None:
            yes = called(np.array(scores, np.float32), point)
            assert yes[truth].mean() == point.sensitivity
            assert (~yes[~truth]).mean() == point.specificity


def test_unknown_labels_are_left_out_and_one_kind_has_no_point():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.2], [0.1, 0.3], [0.95, 0.4]])
    targets = np.array([[1, 1], [0, 1], [0, 1], [-1, 1]], np.int8)
    points = choose(probabilities, targets, ("a", "b"))
    assert points["youden"]["a"] == OperatingPoint(0.55, 1.0, 1.0, 1, 2)
    assert points["sensitivity98"]["a"] == points["youden"]["a"]
    assert points["youden"]["b"] is points["sensitivity98"]["b"] is None
    assert called(probabilities[:, 0], points["youden"]["a"]).tolist() == [True, False, False, True]


def test_98_percent_of_50_is_49():
    scores = np.linspace(0, 1, 100)
    point = sensitivity_point(scores, np.arange(100) % 2 == 0, 0.98)
    assert point.sensitivity == 49 / 50


def points(**thresholds: float) -> dict:
    return {"youden": {label: OperatingPoint(t, 1.0, 0.5, 3, 4) for label, t in thresholds.items()}}


def test_thresholds_survive_the_metadata():
    thresholds = points(**dict.fromkeys(LABELS, 0.1234567890123)) | {
        "sensitivity98": dict.fromkeys(LABELS, None)
    }
    info = model_info(thresholds=thresholds)
    assert from_metadata(to_metadata(info), "m").thresholds == thresholds


@pytest.mark.parametrize("damage", ['{"youden": {}}', '{"youden": 3}', "[1]", '{"youden": null}'])
def test_damaged_thresholds_are_an_error_in_a_line(damage):
    entries = to_metadata(model_info()) | {f"{PREFIX}thresholds": damage}
    with pytest.raises(UserError, match=r"m\.onnx has damaged metadata"):
        from_metadata(entries, "m.onnx")
    point = {"threshold": 7.0, "sensitivity": 1, "specificity": 1, "positives": 1, "negatives": 1}
    entries[f"{PREFIX}thresholds"] = json.dumps({"youden": dict.fromkeys(LABELS, point)})
    with pytest.raises(UserError, match="a threshold is from 0 to 1"):
        from_metadata(entries, "m.onnx")


def test_a_point_that_the_model_lacks_is_refused(capsys):
    with pytest.raises(UserError, match=r"no thresholds for youden \(it has: none\)"):
        pick({}, "youden", LABELS, "m.onnx")
    assert pick({}, None, LABELS, "m.onnx") is None
    assert pick({"youden": dict.fromkeys(LABELS)}, "youden", LABELS, "m.onnx") == (None,) * 3
    assert "no youden threshold for Normal" in capsys.readouterr().err
    known = points(**dict.fromkeys(LABELS, 0.5))
    assert pick(known, "youden", LABELS, "m.onnx") == tuple(known["youden"].values())
    assert capsys.readouterr().err == ""
    known["youden"][LABELS[1]] = None
    assert pick(known, "youden", LABELS, "m.onnx")[1] is None
    assert f"no youden threshold for {LABELS[1]}; " in capsys.readouterr().err


def test_scores_have_a_column_of_calls(tmp_path):
    thresholds = points(**{LABELS[0]: 0.5, LABELS[1]: 0.4})
    thresholds["youden"][LABELS[2]] = None
    metadata = to_metadata(model_info(thresholds=thresholds))
    archive = WRITERS["a.tar"](tmp_path / "a.tar", pictures(6) | {"9.png": b"broken"})
    settings = config(tmp_path, archive, operating_point="youden")
    write_model(settings.model, metadata=metadata)
    score(settings)
    rows = pq.read_table(tmp_path / "out" / "parts").to_pylist()
    assert len(rows) == 7
    for row in rows:
        for label, at in ((LABELS[0], 0.5), (LABELS[1], 0.4)):
            p = row[f"prob_{label}"]
            assert row[f"call_{label}"] is (None if p is None else p >= at)
        assert row[f"call_{LABELS[2]}"] is None
    called = {row[f"call_{LABELS[0]}"] for row in rows}
    assert {True, False, None} >= called > {None}
    with pytest.raises(UserError, match="operating_point was"):
        score(config(tmp_path, archive, model=settings.model))
