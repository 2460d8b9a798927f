"""serve.model_info: what a model says of itself comes back, or is refused by name."""

import json
from dataclasses import asdict, replace

import pytest
from tiny_model import LABELS, model_info, write_model

from serve.model_info import PREFIX, from_metadata, to_metadata
from serve.parity import Parity
from serve.providers import create_session, read_model_info
from serve.thresholds import OperatingPoint
from shards.console import UserError

PARITY = Parity(9, 1e-6, 1e-7, 0.9, 0.9, 0.0, "cpu")
POINT = {"threshold": 0.5, "sensitivity": 1.0, "specificity": 0.5, "positives": 2, "negatives": 4}


def test_metadata_survives_the_model(tmp_path):
    session = create_session(write_model(tmp_path / "m.onnx"), "cpu", 1)
    assert read_model_info(session, "m.onnx") == model_info()


def test_a_model_without_our_metadata_is_refused_with_the_way_out(tmp_path):
    session = create_session(write_model(tmp_path / "m.onnx", metadata={}), "cpu", 1)
    with pytest.raises(UserError, match="python -m serve export"):
        read_model_info(session, "m.onnx")


def test_a_model_that_contradicts_its_metadata_is_refused(tmp_path):
    for changes, message in [
        ({"size": 32}, "expected input"),
        ({"labels": LABELS[:2]}, "expected the output"),
    ]:
        metadata = to_metadata(model_info(**changes))
        session = create_session(write_model(tmp_path / "m.onnx", metadata=metadata), "cpu", 1)
        with pytest.raises(UserError, match=message):
            read_model_info(session, "m.onnx")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", "[]"),
        ("labels", '["a", "a"]'),
        ("labels", "3"),
        ("labels", '{"a": 1}'),
        ("labels", '["\\ud800"]'),
        ("thresholds", "[[]]"),
        ("size", "0"),
        ("size", "true"),
        ("shorter_side", '"512"'),
        ("preprocessing_version", "2"),
        ("exclusive", "1"),
        ("recipe", "not json"),
        ("recipe", "[" * 100_000),
        ("licence", "1"),
        ("splits", "[3]"),
        ("parity", json.dumps(asdict(PARITY) | {"max_probability_difference": "0.1"})),
        ("parity", json.dumps(asdict(PARITY) | {"auroc_onnx": None})),
        ("parity", json.dumps(asdict(PARITY) | {"allowed_auroc_loss": "0.1"})),
        ("thresholds", json.dumps({"youden": dict.fromkeys(LABELS, POINT | {"positives": "2"})})),
    ],
)
def test_wrong_metadata_is_named(name, value):
    with pytest.raises(UserError, match=f"m.onnx.*({name}|metadata|preprocessing)"):
        from_metadata(to_metadata(model_info()) | {PREFIX + name: value}, "m.onnx")


def test_thresholds_and_parity_survive():
    points = {"youden": {label: OperatingPoint(**POINT) for label in LABELS}}
    for parity in (
        PARITY,
        replace(PARITY, auroc_torch=None, auroc_onnx=None),
        replace(PARITY, allowed_auroc_loss=0.005),
    ):
        info = model_info(parity=parity, thresholds=points)
        assert from_metadata(to_metadata(info), "m.onnx") == info


def test_missing_metadata_is_named():
    entries = to_metadata(model_info())
    del entries[PREFIX + "shorter_side"]
    with pytest.raises(UserError, match=r"lacks the metadata cxrstack\.shorter_side"):
        from_metadata(entries, "m.onnx")
