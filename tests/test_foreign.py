"""serve.foreign: models without our metadata, scored as it is said of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_archives import write_tar
from test_score import config, picture, pictures, rows
from tiny_model import foreign_model

from serve.score import score
from shards.codec import encode
from shards.console import RunFailed, UserError
from shards.preprocess import prepare


def test_a_model_without_metadata_is_used_as_said_and_says_so(tmp_path, capsys):
    model = foreign_model(tmp_path / "f.onnx", channels=3)
    path = write_tar(tmp_path / "a.tar", {"x.png": encode(picture(0), "png")})
    said = {"model": model, "labels": "A,B,C", "size": 16}
    score(config(tmp_path, path, **said, normalise="0-1"))
    assert "says nothing of itself" in capsys.readouterr().err
    mean = prepare(picture(0), None, 16).mean() / 255
    assert rows(tmp_path / "out")[0]["prob_B"] == pytest.approx(mean, abs=1e-5)
    score(config(tmp_path, path, **said, outputs="sigmoid", out="two"))
    grey = (mean - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = 1 / (1 + np.exp(-grey.mean()))
    assert rows(tmp_path / "two")[0]["prob_C"] == pytest.approx(expected, abs=1e-5)
    assert score(config(tmp_path, path, **said, outputs="sigmoid", out="two")).already_done
    with pytest.raises(UserError, match=r'foreign\.normalise was "0-1", now "imagenet"; use'):
        score(config(tmp_path, path, **said))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no cxrstack"),
        ({"labels": "A,B,C"}, "--labels and --size go together"),
        ({"normalise": "xrv"}, "--labels and --size go together"),
        ({"outputs": "sigmoid"}, "--labels and --size go together"),
        ({"labels": "A,,C", "size": 16}, "different names"),
        ({"labels": "A,B", "size": 16}, "has 3 outputs, --labels names 2"),
        ({"labels": "A,B,C", "size": 0}, "allowed: 1 to"),
    ],
)
def test_what_is_said_of_a_model_has_to_fit(tmp_path, changes, message):
    model = foreign_model(tmp_path / "f.onnx", channels=3)
    path = write_tar(tmp_path / "a.tar", pictures(1))
    with pytest.raises(UserError, match=message):
        score(config(tmp_path, path, model=model, **changes))


def test_outputs_that_are_no_probabilities_are_told(tmp_path):
    model = foreign_model(tmp_path / "f.onnx", channels=1)
    path = write_tar(tmp_path / "a.tar", pictures(1))
    with pytest.raises(RunFailed, match=r"no probabilities.*--outputs sigmoid"):
        score(config(tmp_path, path, model=model, labels="A,B,C", size=16, normalise="xrv"))


def test_a_model_of_ours_is_not_overruled(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(1))
    with pytest.raises(UserError, match="says its labels and size itself"):
        score(config(tmp_path, path, labels="A,B,C", size=16))
    for changes in (
        {"labels": "A,B,C"},
        {"size": 16},
        {"normalise": "xrv"},
        {"outputs": "softmax"},
    ):
        with pytest.raises(UserError, match="leave all out for one of python -m serve export"):
            score(config(tmp_path, path, **changes))


def test_a_model_of_one_channel_is_not_normalised_as_three(tmp_path):
    model = foreign_model(tmp_path / "f.onnx", channels=1)
    path = write_tar(tmp_path / "a.tar", pictures(1))
    said = {"model": model, "labels": "A,B,C", "size": 16}
    for normalise in (None, "imagenet"):
        with pytest.raises(UserError, match=r"one channel.*say --normalise 0-1, xrv or none"):
            score(config(tmp_path, path, **said, normalise=normalise))
    assert score(config(tmp_path, path, **said, normalise="0-1")).scored == 1


def test_of_several_outputs_it_is_said_which_is_taken(tmp_path, capsys):
    model = onnx.load(foreign_model(tmp_path / "f.onnx", channels=3))
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "f.onnx")
    path = write_tar(tmp_path / "a.tar", pictures(1))
    said = {"model": tmp_path / "f.onnx", "labels": "A,B,C", "size": 16, "outputs": "sigmoid"}
    score(config(tmp_path, path, **said))
    told = " ".join(capsys.readouterr().err.split())
    assert "its first output, y, not mean, as sigmoid" in told
