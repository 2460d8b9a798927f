"""The measures of explanations against plain loops; the command once, on a network made by hand."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from tiny_run import small_densenet, stand_in
from torch import nn

from serve.explain.faithfulness import (
    CELLS,
    STEPS,
    area_under,
    box_mask,
    cell_order,
    likeness,
    points_into,
    stepwise,
    top_iou,
    unusable,
)
from serve.explain.faithfulness_command import (
    FaithfulnessConfig,
    _cases,
    _randomised,
    faithfulness,
)
from serve.explain.methods import Explained
from serve.explain.subjects import Subject
from serve.report_charts import chart_data
from shards.console import UserError
from shards.labels import CHESTXRAY14
from shards.sample import Box
from train.warp import normalise


def test_box_is_scaled_to_the_square():
    mask = box_mask([Box("Mass", 100, 50, 200, 100)], 400, 200, 40)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 10, 29)
    assert mask.sum() == 400
    assert not box_mask([], 400, 200, 40).any()


@given(st.integers(0, 2**32 - 1))
def test_pointing_and_overlap_match_loops(seed):
    rng = np.random.default_rng(seed)
    heat = rng.random((12, 12)).astype(np.float32)
    left, top = rng.integers(0, 8, 2)
    mask = box_mask([Box("x", left, top, 4, 3)], 12, 12, 12)
    best = max(((r, c) for r in range(12) for c in range(12)), key=lambda place: heat[place])
    assert points_into(heat, mask) == mask[best]
    ranked = sorted(np.ndindex(12, 12), key=lambda place: -heat[place])[: int(mask.sum())]
    inside = sum(bool(mask[place]) for place in ranked)
    assert top_iou(heat, mask) == pytest.approx(inside / (2 * mask.sum() - inside))


def test_a_map_of_nothing_points_nowhere():
    mask = np.ones((8, 8), bool)
    assert top_iou(mask.astype(float), mask) == 1
    assert unusable(np.zeros((8, 8))) == unusable(np.ones((8, 8))) == "empty"
    assert unusable(-np.eye(8)) == "one-signed"
    assert unusable(np.eye(8)) is unusable(np.eye(8) - 0.5) is None


def test_fresh_weights_draw_on_no_gpu_where_the_network_is_not(monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    model = small_densenet()
    before = torch.get_rng_state()
    assert [name for name, _ in _randomised(model, 0)] == ["output_layer", "all_layers"]
    assert torch.equal(torch.get_rng_state(), before)
    assert not recwarn.list


@pytest.mark.parametrize("size", [64, 224, 237])
def test_deletion_goes_from_the_image_to_its_blur_the_hottest_cell_first(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (size, size), np.uint8)
    heat = np.zeros((size, size), np.float32)
    heat[: size // CELLS, : size // CELLS] = 1
    order = cell_order(heat)
    assert order[0] == 0
    assert sorted(order) == list(range(CELLS**2))
    gone, come = stepwise(image, order, insert=False), stepwise(image, order, insert=True)
    assert len(gone) == STEPS + 1
    assert np.array_equal(gone[0], image)
    assert np.array_equal(come[-1], image)
    assert np.array_equal(gone[-1], come[0])
    changed = [(step != image).mean() for step in gone]
    assert changed == sorted(changed)
    assert (gone[1] != image)[: size // CELLS, : size // CELLS].mean() > 0.9
    # One puts what the other takes: together each pixel is there once.
    middle = STEPS // 2
    other = np.where(gone[middle] == image, come[0], image)
    assert (come[middle] == other).mean() > 0.95


def test_area_and_likeness():
    assert area_under(np.linspace(0, 1, 11)) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(9, 9)), rng.normal(size=(9, 9))
    assert likeness(one, other) == pytest.approx(
        spearmanr(np.abs(one).ravel(), np.abs(other).ravel()).statistic
    )
    assert likeness(one, -one) == pytest.approx(1)
    assert likeness(one, np.ones((9, 9))) is likeness(np.zeros((9, 9)), one) is None


@pytest.fixture
def trained(monkeypatch):
    """A small network with ChestX-ray14's labels stands for a run's."""
    stand_in(monkeypatch, small_densenet(15), labels=CHESTXRAY14.names, exclusive=False)


def test_the_command_measures_every_method_and_chance(
    trained, tiny_shards, tmp_path, capsys, monkeypatch
):
    cases = []
    monkeypatch.setattr(
        "serve.explain.faithfulness_command._cases",
        lambda *given: cases.extend(made := _cases(*given)) or made,
    )
    folder, out = tiny_shards / "chestxray14", tmp_path / "out"
    config = FaithfulnessConfig(Path("run"), folder, out, "train", limit=4, sanity=1)
    told = json.loads(faithfulness(config).read_bytes())
    assert told["options"] == ["--split", "train", "--limit", "4", "--sanity", "1"]
    with torch.inference_mode():
        images = normalise(torch.tensor(np.stack([case.image for case in cases])))
        found = small_densenet(15)(images).sigmoid()
    whole = float(found[range(len(cases)), [case.target for case in cases]].mean())
    names = [row["method"] for row in told["methods"]]
    assert names == ["lrp", "gradcam", "cam", "occlusion-drop", "random"]
    assert told["weights_sha256"]
    assert told["explanations"] >= 4
    for row in told["methods"]:
        assert row["maps"] + row["empty"] + row["one_signed"] == told["explanations"]
    used = [row for row in told["methods"] if row["maps"] == told["explanations"]]
    assert {"lrp", "gradcam", "cam", "random"} <= {row["method"] for row in used}
    for row in used:
        assert len(row["deletion_curve"]) == len(told["fractions"]) == STEPS + 1
        assert 0 <= row["deletion"] <= 1
        assert row["deletion_curve"][0] == pytest.approx(whole, abs=1e-5)
        assert row["insertion_curve"][-1] == pytest.approx(whole, abs=1e-5)
        assert abs(row["deletion_curve"][-1] - whole) > 1e-4  # the blurred image is another
        assert row["pointing"]["n"] == told["with_boxes"] > 0
        assert 0 <= row["pointing"]["low"] <= row["pointing"]["high"] <= 1
    sanity = {row["method"]: row["sanity"] for row in told["methods"]}
    assert sanity["random"] is None
    assert set(sanity["lrp"]) == {"output_layer", "all_layers"}
    assert (tmp_path / "out" / "faithfulness.png").read_bytes().startswith(b"\x89PNG")
    assert "pointing" in capsys.readouterr().out


@pytest.mark.usefixtures("trained")
def test_maps_of_nothing_are_counted_and_give_no_number(tiny_shards, tmp_path, monkeypatch, capsys):
    """They would pass the check of random weights, where low is good, with a perfect 0."""

    def explainer(method, model, size, *_):
        slope = np.linspace(-1, 1, size * size, dtype=np.float32).reshape(1, size, size)
        maps = {"gradcam": 0 * slope, "lrp": slope - 1, "cam": slope}
        return lambda images, targets: Explained(maps[method])

    monkeypatch.setattr("serve.explain.methods.Explainer", explainer)
    paths = (Path("run"), tiny_shards / "chestxray14", tmp_path)
    config = FaithfulnessConfig(*paths, "train", "gradcam,lrp,cam", limit=3, sanity=2)
    told = json.loads(faithfulness(config).read_bytes())
    cases = told["explanations"]
    rows = {row["method"]: row for row in told["methods"]}
    counts = {name: (row["maps"], row["empty"], row["one_signed"]) for name, row in rows.items()}
    assert counts == {
        "gradcam": (0, cases, 0),
        "lrp": (0, 0, cases),
        "cam": (cases, 0, 0),
        "random": (cases, 0, 0),
    }
    names = ("pointing", "iou", "deletion", "insertion", "deletion_curve", "insertion_curve")
    for name in ("gradcam", "lrp"):
        assert [rows[name][one] for one in names] == [None] * len(names)
        assert set(rows[name]["sanity"].values()) == {None}
    assert rows["cam"]["sanity"] == pytest.approx({"output_layer": 1, "all_layers": 1})
    printed = capsys.readouterr().out
    assert f"left out: gradcam: {cases} of {cases} maps are empty: " in printed
    assert "lrp: " in printed
    assert "maps are one-signed (nothing speaks for the label): " in printed
    assert "gradcam: 2 of 2 maps cannot be compared with those of another network, one" in printed
    line = next(line for line in printed.splitlines() if line.startswith("gradcam "))
    assert line.split()[1:] == ["0", *["-"] * 6]
    data = chart_data([], None, None, told)["faithfulness"]
    assert [one["method"] for one in data["methods"]] == ["cam", "random"]


@pytest.mark.parametrize(("which", "kept"), [("output_layer", True), ("all_layers", False)])
def test_weights_are_fresh_where_they_are_said_to_be(which, kept):
    model = small_densenet()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
    before = copy.deepcopy(model.state_dict())
    other = dict(_randomised(model, 7))[which]
    assert not other.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for name, value in other.named_parameters():
        if name.endswith("weight"):
            of_head = name.startswith("classifier")
            assert torch.equal(value, before[name]) == (kept and not of_head), name


def test_each_label_with_boxes_is_a_case_of_its_own():
    """Boxes in the pixels of the original, which is wider than high; without one, the call."""
    images = np.zeros((2, 40, 40), np.uint8)
    boxes = (Box("B", 100, 50, 200, 100), Box("C", 0, 0, 40, 20), Box("other", 0, 0, 400, 200))
    subjects = [
        Subject("one", "one", b"", boxes=boxes, width=400, height=200),
        Subject("two", "two", b""),
    ]
    spec = SimpleNamespace(labels=("A", "B", "C"), size=40)
    with pytest.MonkeyPatch.context() as patch:
        called = np.array([[0.9, 0, 0], [0, 0.1, 0.8]])
        patch.setattr("serve.explain.faithfulness_command.probabilities_of", lambda *_: called)
        found = _cases(SimpleNamespace(spec=spec), subjects, images)
    assert [case.target for case in found] == [1, 2, 2]
    np.testing.assert_array_equal(found[0].mask, box_mask(boxes[:1], 400, 200, 40))
    assert (found[0].mask.sum(), found[1].mask.sum()) == (400, 16)
    assert found[2].mask is None


def test_wrong_requests_are_refused(trained, tiny_shards, tmp_path):
    folder = tiny_shards / "chestxray14"
    with pytest.raises(UserError, match="no method 'x'"):
        faithfulness(FaithfulnessConfig(Path("run"), folder, tmp_path, methods="lrp,x"))
    with pytest.raises(UserError, match="--limit 0"):
        faithfulness(FaithfulnessConfig(Path("run"), folder, tmp_path, limit=0))
    with pytest.raises(UserError, match="no split 'none'"):
        faithfulness(FaithfulnessConfig(Path("run"), folder, tmp_path, split="none"))
