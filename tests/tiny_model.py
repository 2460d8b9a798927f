"""Small ONNX models for the scoring tests: grey values -> one linear layer -> sigmoid; and one of a
stranger, which says nothing of itself."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serve.model_info import ModelInfo, to_metadata

LABELS = ("Normal", "Viral Pneumonia", "COVID-19")
SIZE, SHORTER_SIDE = 16, 32


def model_info(**changes) -> ModelInfo:
    values = {
        "architecture": "linear",
        "labels": LABELS,
        "exclusive": True,
        "size": SIZE,
        "shorter_side": SHORTER_SIDE,
        "preprocessing_version": 1,
        "dataset": "covid-radiography",
        "manifest_hash": "0" * 64,
        "recipe": "test",
        "stage": "covid",
        "synthetic": True,
        "weights_sha256": "1" * 64,
        "run": "run",
        "licence": "none",
        "intended_use": "tests",
        "created_by": "tests",
    }
    return ModelInfo(**(values | changes))


def weights(seed: int = 0) -> np.ndarray:
    """(S * S, L) float32."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(SIZE * SIZE, len(LABELS))).astype(np.float32) / SIZE


def write_model(path: Path, seed: int = 0, metadata: dict[str, str] | None = None) -> Path:
    """uint8 `images` (N, 1, S, S) -> `logits`, `probabilities` (N, L)."""
    nodes = [
        helper.make_node("Cast", ["images"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["grey", "white"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    shape = ["n", len(LABELS)]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(x, 1, shape) for x in ("logits", "probabilities")],
        [
            numpy_helper.from_array(weights(seed), "weights"),
            numpy_helper.from_array(np.float32(255), "white"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    helper.set_model_props(model, to_metadata(model_info()) if metadata is None else metadata)
    onnx.save(model, path)
    return path


def foreign_model(path: Path, *, channels: int, kind: int = TensorProto.FLOAT) -> Path:
    """Images -> the mean of each corner block, as three raw outputs; nothing of ours in it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["f"], ["mean"]),
        helper.make_node("ReduceMean", ["mean"], ["one"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Flatten", ["one"], ["flat"]),
        helper.make_node("Concat", ["flat", "flat", "flat"], ["y"], axis=1),
    ]
    x = helper.make_tensor_value_info("x", kind, ["n", channels, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "foreign", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE), np.uint8))


def expected(given: list[np.ndarray]) -> np.ndarray:
    values = np.stack(given).reshape(len(given), -1) / 255
    return 1 / (1 + np.exp(-(values @ weights())))
