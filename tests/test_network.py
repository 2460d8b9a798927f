"""serve.network: batches at a time, in bounded number, padded where the batch is fixed."""

import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_model import LABELS, SIZE, expected, images, write_model

from serve.foreign import Foreign
from serve.network import CPU_BATCH, Network
from serve.providers import create_session
from shards.console import RunFailed, UserError


def network(tmp_path: Path, **options) -> Network:
    path = write_model(tmp_path / "m.onnx")
    return Network([create_session(path, "cpu", 1)], str(path), **options)


def test_batches_at_a_time_give_each_its_own_scores(tmp_path):
    made = network(tmp_path, threads=3)
    given = [images(1 + i % CPU_BATCH, seed=i) for i in range(40)]
    found = [batch.result() for batch in [made.submit(part) for part in given]]
    for part, scores in zip(given, found, strict=True):
        assert scores.shape == (len(part), len(LABELS))
        np.testing.assert_allclose(scores, expected(part), atol=1e-5)


class Waiting:
    """A session whose runs wait to be let go; counts those that run at a time."""

    def __init__(self, real):
        self.real, self.go = real, threading.Event()
        self.running, self.most = 0, 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def run(self, *arguments):
        self.running += 1
        self.most = max(self.most, self.running)
        self.go.wait()
        self.running -= 1
        return self.real.run(*arguments)


def test_what_waits_is_bounded_by_what_runs(tmp_path):
    session = Waiting(create_session(write_model(tmp_path / "m.onnx"), "cpu", 1))
    made = Network([session], "m.onnx", threads=2)
    given: list[int] = []

    def feed() -> None:
        for number in range(10):
            made.submit(images(1))
            given.append(number)

    feeder = threading.Thread(target=feed)
    feeder.start()
    while session.running < 2 or len(given) < 4:
        time.sleep(0.001)
    assert feeder.is_alive()
    assert len(given) == 4  # two run, two wait, and the fifth is not taken
    session.go.set()
    feeder.join()
    assert len(given) == 10
    assert session.most == 2


def fixed_model(path: Path, outputs: int) -> Path:
    """float (4, 1, 16, 16) -> the mean of each image, `outputs` times; nothing of ours in it."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Concat", ["flat"] * outputs, ["y"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 1, SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, "labels"])
    return save(helper.make_graph(nodes, "fixed", [x], [y]), path)


def save(graph: onnx.GraphProto, path: Path) -> Path:
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_a_model_of_one_batch_size_is_given_that_size(tmp_path):
    session = create_session(fixed_model(tmp_path / "f.onnx", 2), "cpu", 1)
    said = Foreign(("A", "B"), SIZE, "0-1", "probabilities")
    made = Network([session], "f.onnx", foreign=said)
    assert made.batch == 4
    given = images(3)
    means = np.stack(given).mean((1, 2)) / 255
    np.testing.assert_allclose(made.score(given), np.c_[means, means], atol=1e-5)
    with pytest.raises(UserError, match="takes batches of 4; leave out --batch"):
        Network([session], "f.onnx", 8, said)


def test_an_output_of_another_shape_fails_the_run(tmp_path, monkeypatch):
    session = Waiting(create_session(write_model(tmp_path / "m.onnx"), "cpu", 1))
    monkeypatch.setattr(session, "run", lambda *_: [np.zeros((2, 2), np.float32)], raising=False)
    made = Network([session], "m.onnx")
    with pytest.raises(RunFailed, match=r"output is \(2, 2\), expected \(2, 3\)"):
        made.score(images(2))


def test_a_model_without_inputs_is_refused(tmp_path):
    value = helper.make_tensor("value", TensorProto.FLOAT, [1, 2], [0.5, 0.5])
    nodes = [helper.make_node("Constant", [], ["y"], value=value)]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    path = save(helper.make_graph(nodes, "none", [], [y]), tmp_path / "f.onnx")
    session = create_session(path, "cpu", 1)
    with pytest.raises(UserError, match=r"expected one input .* found none"):
        Network([session], "f.onnx", foreign=Foreign(("A", "B"), SIZE, "0-1", "probabilities"))
