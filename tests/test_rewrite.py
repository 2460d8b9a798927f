"""Rewrites keep every output; taps agree with the logits; fewer bits stay close. Small graphs."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from serve.quantise import concat_groups, to_fp16, to_int8
from serve.rewrite import norm_to_conv, pool_before_conv, pool_into_conv
from serve.taps import add_cam, add_features
from shards.console import UserError

SIZE, LABELS = 16, 3


def weight(rng: np.random.Generator, name: str, *shape: int) -> TensorProto:
    fan_in = max(1, int(np.prod(shape[1:])))
    values = rng.normal(size=shape) / np.sqrt(fan_in)
    return numpy_helper.from_array(values.astype(np.float32), name)


def norm(rng: np.random.Generator, name: str, channels: int) -> list[TensorProto]:
    values = {"gamma": rng.uniform(-2, 2, channels), "beta": rng.normal(size=channels)}
    values |= {"mean": rng.normal(size=channels), "variance": rng.uniform(0.1, 2, channels)}
    arrays = {f"{name}.{k}": v.astype(np.float32) for k, v in values.items()}
    return [numpy_helper.from_array(v, k) for k, v in arrays.items()]


def block(pool: dict, conv: dict | None = None) -> list[NodeProto]:
    """A dense block of one layer and a transition, DenseNet in small; then a linear layer."""
    node, parameters = helper.make_node, ("gamma", "beta", "mean", "variance")
    return [
        node("Cast", ["images"], ["grey"], "cast", to=TensorProto.FLOAT),
        node("Mul", ["grey", "scale"], ["x"], "mul"),
        node("Conv", ["x", "w0"], ["a"], "conv0", kernel_shape=[3, 3], pads=[1] * 4),
        node("BatchNormalization", ["a", *(f"n1.{p}" for p in parameters)], ["b"], "n1"),
        node("Relu", ["b"], ["c"], "relu1"),
        node("Conv", ["c", "w1", "b1"], ["d"], "conv1", kernel_shape=[3, 3], pads=[1] * 4),
        node("Concat", ["a", "d"], ["e"], "concat", axis=1),
        node("BatchNormalization", ["e", *(f"n2.{p}" for p in parameters)], ["f"], "n2"),
        node("Relu", ["f"], ["g"], "relu2"),
        node("Conv", ["g", "w2", "b2"], ["h"], "conv2", **{"kernel_shape": [1, 1]} | (conv or {})),
        node("AveragePool", ["h"], ["i"], "pool", **pool),
        node("GlobalAveragePool", ["i"], ["j"], "mean"),
        node("Flatten", ["j"], ["k"], "flatten"),
        node("Gemm", ["k", "w3", "b3"], ["logits"], "head", transB=1),
        node("Sigmoid", ["logits"], ["probabilities"], "sigmoid"),
    ]


PLAIN_POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


def network(pool: dict | None = None, conv: dict | None = None) -> ModelProto:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(np.float32(1 / 255), "scale"),
        weight(rng, "w0", 8, 1, 3, 3),
        *(*norm(rng, "n1", 8), *norm(rng, "n2", 12)),
        *(weight(rng, "w1", 4, 8, 3, 3), weight(rng, "b1", 4)),
        *(weight(rng, "w2", 6, 12, 1, 1), weight(rng, "b2", 6)),
        *(weight(rng, "w3", LABELS, 6), weight(rng, "b3", LABELS)),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 1, SIZE, SIZE])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", LABELS])
        for name in ("logits", "probabilities")
    ]
    graph = helper.make_graph(block(pool or PLAIN_POOL, conv), "g", [images], outputs, weights)
    opset = [helper.make_opsetid("", 20)]
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opset, ir_version=10)
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int = 12, seed: int = 1) -> np.ndarray:
    shape = (count, 1, SIZE, SIZE)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def outputs(model: ModelProto, given: np.ndarray | None = None) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images() if given is None else given})))


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def assert_same(model: ModelProto, expected: ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    found, wanted = outputs(model), outputs(expected)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-6)


def test_the_pool_goes_before_the_convolution_and_into_it():
    plain, first, merged = network(), network(), network()
    pool_before_conv(first)
    order = [n.name for n in first.graph.node]
    assert order.index("pool") < order.index("conv2")
    assert_same(first, plain)
    pool_before_conv(merged)
    pool_into_conv(merged)
    assert kinds(merged)["AveragePool"] == 0
    assert_same(merged, plain)
    assert "w2" not in {t.name for t in merged.graph.initializer}


@pytest.mark.parametrize(
    ("pool", "conv"),
    [
        ({"kernel_shape": [2, 2], "strides": [1, 1]}, None),
        ({"kernel_shape": [3, 3], "strides": [3, 3], "ceil_mode": 1}, None),
        ({**PLAIN_POOL, "pads": [1, 1, 1, 1]}, None),
        (PLAIN_POOL, {"strides": [2, 2]}),
        (PLAIN_POOL, {"pads": [1, 1, 1, 1]}),
    ],
)
def test_other_pools_and_convolutions_are_left_alone(pool, conv):
    plain, rewritten = network(pool, conv), network(pool, conv)
    pool_before_conv(rewritten)
    pool_into_conv(rewritten)
    assert [n.name for n in rewritten.graph.node] == [n.name for n in plain.graph.node]


def test_a_map_that_something_else_reads_stays_as_it_is():
    model = network()
    model.graph.output.append(
        helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 6, SIZE, SIZE])
    )
    before = [n.name for n in model.graph.node]
    pool_before_conv(model)
    assert [n.name for n in model.graph.node] == before


def test_batch_norm_becomes_a_depthwise_convolution():
    model = network()
    norm_to_conv(model)
    assert kinds(model)["BatchNormalization"] == 0
    assert kinds(model)["Conv"] == 5
    assert not any(t.name.startswith(("n1.gamma", "n2.mean")) for t in model.graph.initializer)
    assert_same(model, network())


def test_concatenations_are_grouped_through_each_other():
    node = helper.make_node
    nodes = [
        node("Concat", ["a", "b"], ["ab"], axis=1),
        node("Relu", ["ab"], ["r"]),
        node("Concat", ["ab", "c"], ["abc"], axis=1),
        node("Concat", ["x", "y", "weight"], ["xy"], axis=1),
    ]
    constant = numpy_helper.from_array(np.zeros(1, np.float32), "weight")
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], [constant]))
    groups = {frozenset(group) for group in concat_groups(model)}
    assert groups == {frozenset(("a", "b", "c", "ab", "abc")), frozenset(("x", "y", "xy"))}


def test_taps_agree_with_the_logits():
    plain, model = network(), network()
    add_features(model)
    add_cam(model)
    onnx.checker.check_model(model, full_check=True)
    found = outputs(model)
    np.testing.assert_array_equal(found["logits"], outputs(plain)["logits"])
    weights = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
    from_features = found["features"] @ weights["w3"].T + weights["b3"]
    np.testing.assert_allclose(from_features, found["logits"], atol=1e-5)
    from_maps = found["cam"].mean(axis=(2, 3)) + weights["b3"]
    assert found["cam"].shape == (12, LABELS, SIZE // 2, SIZE // 2)
    np.testing.assert_allclose(from_maps, found["logits"], atol=1e-5)


def test_no_cam_where_the_last_layer_is_not_given_means():
    model = network()
    mean = next(n for n in model.graph.node if n.op_type == "GlobalAveragePool")
    mean.op_type = "MaxPool"
    mean.attribute.append(helper.make_attribute("kernel_shape", [SIZE // 2] * 2))
    with pytest.raises(UserError, match="no CAM for this network"):
        add_cam(model)


def test_int8_is_quantised_throughout_and_close():
    plain = network()
    pool_before_conv(plain)
    add_features(plain)
    add_cam(plain)
    calibration = [images(8, seed=2), images(8, seed=3)]
    model = to_int8(copy.deepcopy(plain), calibration)
    onnx.checker.check_model(model, full_check=True)
    assert kinds(model)["BatchNormalization"] == kinds(model)["AveragePool"] == 0
    assert [opset.domain for opset in model.opset_import] == [""]
    weights = {t.name: t for t in model.graph.initializer}
    scales = {
        n.input[0]: weights[n.input[1]]
        for n in model.graph.node
        if len(n.input) == 3 and n.op_type == "DequantizeLinear" and n.input[0] in weights
    }
    int8 = [name for name in scales if weights[name].data_type == TensorProto.INT8]
    assert len(int8) == 5  # three convolutions and two norms; not the last layer and the CAM
    assert all(len(numpy_helper.to_array(scales[name])) > 1 for name in int8)  # per channel
    points = [weights[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert {point.data_type for point in points} == {TensorProto.UINT8}  # activations
    found, wanted = outputs(model), outputs(plain)
    for name in wanted:
        spread = float(np.ptp(wanted[name])) or 1.0
        assert np.abs(found[name] - wanted[name]).max() < 0.1 * spread, name
    assert len(np.unique(found["probabilities"])) > LABELS  # not 256 steps that all fall together


def test_fp16_takes_bytes_and_gives_floats():
    plain = network()
    model = to_fp16(copy.deepcopy(plain))
    onnx.checker.check_model(model, full_check=True)
    types = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    assert set(types.values()) == {TensorProto.FLOAT}
    halves = [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert {"w0", "w1", "w2"} <= set(halves)
    assert "w3" not in halves
    found, wanted = outputs(model), outputs(plain)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=5e-3)
