"""ONNX Runtime sessions on the processor that was asked for, or an error: never a quiet fallback.

ONNX Runtime runs on the CPU when a GPU's libraries do not load and only logs it; here that is a
UserError, except under `auto`, which says aloud what it took.
"""

import ctypes
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from serve.model_info import INPUT_NAME, PROBABILITIES_NAME, ModelInfo, from_metadata
from shards.console import RunFailed, UserError, warn
from shards.nvidia import has_gpu
from shards.user_cache import user_cache

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# The default, EXHAUSTIVE, tries every convolution algorithm anew for each shape of input. By TF32 a
# GPU alone would round the factors of an fp32 model to 10 bits; fp16 is the way to be fast there.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
_FAILURE = re.compile(r"\b\w+ failure \d+: [^;]*")  # "CUDNN failure 4: why ; GPU=0 ; hostname="
_LAYERS = {"Conv", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul"}


@dataclass(frozen=True)
class GpuOptions:
    """fp16: TensorRT may compute in half precision; graph: CUDA captures the work of a batch once
    and replays it, so every batch must have the same shape and buffers; engines: folder where
    TensorRT keeps what it built for this GPU (minutes), in a folder for each model, by default in
    the user's cache."""

    fp16: bool = False
    graph: bool = False
    engines: Path | None = None


def create_session(
    model_path: Path, provider: Provider, threads: int, gpu: GpuOptions = GpuOptions()
) -> onnxruntime.InferenceSession:
    """A session whose first provider is the one asked for; threads: for the operators on the CPU.

    `auto` is CUDA where it works, else the CPU. UserError when the file is no ONNX model, or not
    the whole of one, or when the provider is not there.
    """
    if not model_path.is_file():
        raise UserError(f"no model at {model_path}; make it with: python -m serve export")
    if not os.access(model_path, os.R_OK):
        raise UserError(f"no permission to read {model_path}")
    _check_whole(model_path)
    if provider != "auto":
        return _create(model_path, provider, threads, gpu)
    if _NAMES["cuda"] in onnxruntime.get_available_providers():
        try:
            return _create(model_path, "cuda", threads, gpu)
        except UserError as error:
            warn(f"{error}; going on with the CPU, as --provider auto allows")
    elif has_gpu():
        warn(
            "this machine has a GPU, and its onnxruntime is the CPU's: going on with the CPU, as "
            "--provider auto allows; onnxruntime-gpu takes its place (make setup ONNX=gpu in a new "
            ".venv)"
        )
    return _create(model_path, "cpu", threads, gpu)


def _check_whole(model_path: Path) -> None:
    """UserError for a model whose weights lie in other files. By the hash of the one file the rows
    know their model and TensorRT its engines, and it is all that a cluster's machines get: weights
    that changed would be taken for those before."""
    try:
        model = onnx.load(model_path, load_external_data=False)
    except Exception:  # not ONNX, which ONNX Runtime tells
        return
    nodes = [*model.graph.node, *(node for each in model.functions for node in each.node)]
    for tensor in (*model.graph.initializer, *_tensors(nodes)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UserError(
                f"{model_path} keeps weights in other files; make it one, in Python: "
                "onnx.save(onnx.load('that.onnx'), 'one.onnx')"
            )


def _tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Those of the nodes' attributes, and of the graphs in them."""
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from (*graph.initializer, *_tensors(graph.node))


def provider_of(session: onnxruntime.InferenceSession) -> str:
    """The provider that a session runs on, by our name."""
    first = session.get_providers()[0]
    return next((ours for ours, theirs in _NAMES.items() if theirs == first), first)


def read_model_info(session: onnxruntime.InferenceSession, model: str) -> ModelInfo:
    """The model's metadata, checked against its inputs and outputs. UserError when they differ."""
    info = from_metadata(session.get_modelmeta().custom_metadata_map, model)
    inputs = {node.name: (node.type, node.shape) for node in session.get_inputs()}
    outputs = {node.name: node.shape for node in session.get_outputs()}
    if set(inputs) != {INPUT_NAME} or inputs[INPUT_NAME][0] != "tensor(uint8)":
        raise UserError(f"{model}: expected one uint8 input {INPUT_NAME!r}, found {inputs}")
    shape = inputs[INPUT_NAME][1]
    if len(shape) != 4 or shape[1:] != [1, info.size, info.size] or isinstance(shape[0], int):
        raise UserError(f"{model}: expected input (N, 1, {info.size}, {info.size}), found {shape}")
    found = outputs.get(PROBABILITIES_NAME)
    if found is None or len(found) != 2 or found[1] != len(info.labels):
        wanted = f"{PROBABILITIES_NAME!r} (N, {len(info.labels)})"
        raise UserError(f"{model}: expected the output {wanted}, found {outputs}")
    return info


def probabilities(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """images: (N, 1, S, S) uint8 -> (N, L) float32. RunFailed when it does not run."""
    try:
        (found,) = session.run([PROBABILITIES_NAME], {INPUT_NAME: images})
    except Exception as error:  # ONNX Runtime's errors share no base class
        provider = provider_of(session)
        way_out = "" if provider == "cpu" else "; CUDA_VISIBLE_DEVICES= hides the GPU"
        raise RunFailed(
            f"the network does not run on {provider}: {reason(error)}{way_out}"
        ) from error
    return np.asarray(found, np.float32)


def _create(
    model_path: Path, provider: str, threads: int, gpu: GpuOptions
) -> onnxruntime.InferenceSession:
    wanted = _NAMES[provider]
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise UserError(
            f"the provider {provider} needs {wanted}, which this onnxruntime lacks (it has: "
            f"{', '.join(available)}); install onnxruntime-gpu or use --provider cpu"
        )
    if provider != "cpu":
        # It tells of each library that is missing on standard output, then in its log, which warns
        # even where CUDA works; the one line for people is `_missing`.
        onnxruntime.set_default_logger_severity(4)
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if provider == "tensorrt" and not gpu.fp16:
        # TensorRT's builder allows TF32 (see _CUDA_OPTIONS), and ONNX Runtime has no option for it.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Several threads of one session would otherwise wait for work in a loop, on cores that others
    # need. Scoring itself takes one thread for each batch (serve/network.py).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what it logs as an error it also raises, in one line of ours
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(model_path),
            options,
            providers=_provider_list(model_path, provider, gpu),
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        if provider == "cuda" and gpu.graph:  # where one node has to run on the CPU, for example
            session = _create(model_path, provider, threads, replace(gpu, graph=False))
            warn(f"without CUDA graphs, which this model does not allow ({reason(error)})")
            return session
        raise _session_error(model_path, provider, error) from error
    if session.get_providers()[0] != wanted:
        why = _missing(provider) or f"this session has: {', '.join(session.get_providers())}"
        raise UserError(
            f"the provider {provider} was asked for, but {wanted} did not load ({why}); check "
            "the driver and the CUDA and cuDNN libraries (TensorRT has its own), or use "
            "--provider cpu"
        )
    elsewhere = misplaced_layers(session, wanted)
    if elsewhere:
        raise UserError(
            f"the provider {provider} was asked for, but does not take {sum(elsewhere.values())} "
            f"layers of {model_path} ({', '.join(sorted(elsewhere))}); use --provider cpu"
        )
    return session


def misplaced_layers(session: onnxruntime.InferenceSession, wanted: str) -> Counter[str]:
    """How many layers that compute run on another provider, by their kind. What remains, such as
    the arithmetic of shapes, may run where ONNX Runtime likes."""
    return Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != wanted and node.op_type in _LAYERS
    )


def _provider_list(model_path: Path, provider: str, gpu: GpuOptions) -> list[Any]:
    if provider == "cpu":
        return [_NAMES["cpu"]]
    if provider == "cuda":
        options = {**_CUDA_OPTIONS, "enable_cuda_graph": gpu.graph}
        return [(_NAMES["cuda"], options), _NAMES["cpu"]]
    # ONNX Runtime knows an engine by the model's file name and layers: two trainings of one network
    # would share it, and with it the weights of the first (microsoft/onnxruntime#6455).
    with model_path.open("rb") as file:
        own = hashlib.file_digest(file, "sha256").hexdigest()
    engines = (gpu.engines or user_cache() / "tensorrt") / own
    engines.mkdir(parents=True, exist_ok=True)
    options = {
        "trt_fp16_enable": gpu.fp16,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(engines),
    }
    return [(_NAMES["tensorrt"], options), (_NAMES["cuda"], _CUDA_OPTIONS), _NAMES["cpu"]]


def _session_error(model_path: Path, provider: str, error: Exception) -> UserError:
    said = reason(error)
    unreadable = {"InvalidProtobuf", "InvalidGraph", "NoModel", "InvalidArgument", "NoSuchFile"}
    if type(error).__name__ in unreadable or provider == "cpu":
        return UserError(
            f"{model_path} is not an ONNX model that this onnxruntime can load ({said}); "
            "make it with: python -m serve export"
        )
    said = _missing(provider) or said
    return UserError(f"the provider {provider} does not start ({said}); or use --provider cpu")


def _missing(provider: str) -> str:
    """What the loader lacks for the provider's library, by name; empty where it has everything."""
    name = f"libonnxruntime_providers_{provider}.so"
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / name))
    except OSError as error:
        return str(error)
    return ""


def reason(error: Exception) -> str:
    """What ONNX Runtime says is wrong: of CUDA's failures the failure, without the source file and
    the name of the machine."""
    text = " ".join(str(error).split())
    failure = _FAILURE.search(text)
    # Of errors in one another the innermost; what is wrong may stand behind a path of the source.
    return failure[0].strip() if failure else text.rpartition("[ONNXRuntimeError] : ")[2][:1000]
