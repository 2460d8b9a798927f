"""An fp32 graph in fewer bits: fp16 for GPUs, int8 for CPUs. Needs onnx and onnxruntime, no torch.

int8: QDQ, activations uint8 and weights int8 per channel (S8S8 is slower than fp32 on x86), ranges
by minimum and maximum over calibration images. What gives the logits stays in floats, and so do
the probabilities: in 8 bits they would have 256 values.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    TensorData,
    TensorsData,
    create_calibrator,
    quant_pre_process,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from serve.model_info import INPUT_NAME
from serve.rewrite import initializer_names, norm_to_conv, pool_into_conv
from serve.taps import CAM_NAME, last_layer

# What ONNX Runtime's CPU provider has int8 kernels for. The first convolution among them: with
# 88 img/s it costs a quarter of the speed when left in floats (DenseNet121 at 224, one thread).
QUANTISED_OPS = [
    *("Conv", "Gemm", "MatMul", "Concat", "Add", "Relu", "Clip"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
]


def to_fp16(model: ModelProto) -> ModelProto:
    """Weights and activations in half precision; inputs, outputs, normalisation, last layer and
    probabilities as they were (a probability of 0.999 in fp16 is known to 0.0005)."""
    entrance = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            break
        entrance.append(node.name)
    made = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Sigmoid", "Softmax"],
        node_block_list=[*entrance, last_layer(model).name],
    )
    ONNXModel(made).topological_sort()  # the casts stand at the end
    return made


def to_int8(model: ModelProto, calibration: Iterable[np.ndarray]) -> ModelProto:
    """calibration: uint8 batches (n, 1, S, S), the kind of images that will be scored."""
    with tempfile.TemporaryDirectory(prefix="cxrstack-int8-") as folder:
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        onnx.save(model, plain)
        # Folds constants and what is left of batch norm after a convolution, and infers shapes.
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        pool_into_conv(graph)
        norm_to_conv(graph)
        onnx.save(graph, prepared)
        ranges = _measure_ranges(prepared, Path(folder) / "measuring.onnx", calibration)
    _unify_concats(graph, ranges)
    quantizer = QDQQuantizer(
        graph,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[last_layer(graph).name, CAM_NAME],
        op_types_to_quantize=QUANTISED_OPS,
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made = quantizer.model.model
    _keep_used_opsets(made)
    return made


def _keep_used_opsets(model: ModelProto) -> None:
    """ONNX Runtime notes all domains that it knows; other runtimes refuse some of them."""
    used = {"", *(node.domain for node in model.graph.node)}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self.batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def _measure_ranges(model: Path, measuring: Path, calibration: Iterable[np.ndarray]) -> TensorsData:
    calibrator = create_calibrator(
        model,
        QUANTISED_OPS,
        augmented_model_path=str(measuring),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(_Batches(calibration))
    return calibrator.compute_data()


def _unify_concats(model: ModelProto, ranges: TensorsData) -> None:
    """One range for all tensors that concatenations join: joining is then copying, and a feature
    of a dense block is rounded once, not once for each layer that reads it."""
    for group in concat_groups(model):
        known = [name for name in group if name in ranges]
        lows = [float(np.min(ranges[name].range_value[0])) for name in known]
        highs = [float(np.max(ranges[name].range_value[1])) for name in known]
        for name in known:
            ranges[name] = TensorData(
                lowest=np.array([min(lows)], np.float32), highest=np.array([max(highs)], np.float32)
            )


def concat_groups(model: ModelProto) -> list[set[str]]:
    """The tensors that Concat nodes join, directly or through each other."""
    group_of: dict[str, set[str]] = {}
    weights = initializer_names(model)
    for node in model.graph.node:
        if node.op_type != "Concat":
            continue
        merged = {*node.output, *(name for name in node.input if name not in weights)}
        for name in list(merged):
            merged |= group_of.get(name, set())
        group_of.update(dict.fromkeys(merged, merged))
    found = defaultdict(set)
    for name, group in group_of.items():
        found[id(group)].add(name)
    return list(found.values())
