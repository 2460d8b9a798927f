"""More outputs of an exported network: features for t-SNE or a self-organising map, and CAM.

features: float32 (N, F), what the last layer is given; cam: float32 (N, L, h, w), the last layer's
weights over the last maps (class activation maps, Zhou et al. 2016): their mean over h and w, plus
the last layer's bias, is the logit.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from serve.model_info import LOGITS_NAME
from serve.rewrite import producers
from shards.console import UserError

FEATURES_NAME = "features"
CAM_NAME = "cam"
_SHAPE_ONLY = {"Reshape", "Flatten", "Squeeze", "Identity", "Dropout"}
_MEANS = {"ReduceMean", "GlobalAveragePool"}


def last_layer(model: ModelProto) -> NodeProto:
    """The node of the output layer: Gemm, or the 1x1 Conv of a network that pools after it."""
    made_by = producers(model)
    node = made_by[LOGITS_NAME]
    while node.op_type in _SHAPE_ONLY | _MEANS | {"Relu"}:
        node = made_by[node.input[0]]
    if node.op_type not in ("Gemm", "Conv"):
        raise UserError(f"the network ends in {node.op_type}, not in a layer that can be tapped")
    return node


def add_features(model: ModelProto) -> None:
    """Give the model the output `features`; of a last Conv, the means of the maps it is given."""
    layer = last_layer(model)
    source = layer.input[0]
    if layer.op_type == "Conv":
        pooled = f"{FEATURES_NAME}.pooled"
        model.graph.node.append(
            helper.make_node("GlobalAveragePool", [source], [pooled], f"{FEATURES_NAME}.pool")
        )
        node = helper.make_node("Flatten", [pooled], [FEATURES_NAME], FEATURES_NAME, axis=1)
    else:
        node = helper.make_node("Identity", [source], [FEATURES_NAME], FEATURES_NAME)
    model.graph.node.append(node)
    _add_output(model, FEATURES_NAME, ["batch", _width(model, layer)])


def add_cam(model: ModelProto) -> None:
    """Give the model the output `cam`. UserError where the last layer does not stand at a mean."""
    layer = last_layer(model)
    outputs = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if layer.op_type == "Conv":
        maps = _mean_after(model).input[0]  # the last layer's own maps
        model.graph.node.append(helper.make_node("Identity", [maps], [CAM_NAME], CAM_NAME))
    else:
        maps = _mean_before(model, layer).input[0]
        weight = _weight(model, layer).reshape(outputs, -1, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"{CAM_NAME}.weight"))
        inputs = [maps, f"{CAM_NAME}.weight"]
        node = helper.make_node("Conv", inputs, [CAM_NAME], CAM_NAME, kernel_shape=[1, 1])
        model.graph.node.append(node)
    _add_output(model, CAM_NAME, ["batch", outputs, "cam_height", "cam_width"])


def _mean_before(model: ModelProto, layer: NodeProto) -> NodeProto:
    made_by = producers(model)
    node = made_by.get(layer.input[0])
    while node is not None and node.op_type in _SHAPE_ONLY:
        node = made_by.get(node.input[0])
    if node is None or node.op_type not in _MEANS:
        raise UserError(
            "no CAM for this network: its last layer is not given the means of maps; leave out "
            "--cam (python -m serve explain has other methods)"
        )
    return node


def _mean_after(model: ModelProto) -> NodeProto:
    made_by = producers(model)
    node = made_by[LOGITS_NAME]
    while node.op_type in _SHAPE_ONLY:
        node = made_by[node.input[0]]
    return node


def _weight(model: ModelProto, layer: NodeProto) -> np.ndarray:
    """(L, F) of a Gemm, (L, F, 1, 1) of a Conv."""
    found = next(t for t in model.graph.initializer if t.name == layer.input[1])
    weight = numpy_helper.to_array(found)
    transposed = any(a.name == "transB" and a.i for a in layer.attribute)
    return weight.copy() if transposed or layer.op_type == "Conv" else weight.T.copy()


def _width(model: ModelProto, layer: NodeProto) -> int:
    return int(_weight(model, layer).shape[1])


def _add_output(model: ModelProto, name: str, shape: list[str | int]) -> None:
    info = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    model.graph.output.append(info)
    onnx.checker.check_model(model)
