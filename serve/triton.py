"""An exported model as a Triton model repository: config.pbtxt, labels.txt and 1/model.onnx.

The text follows Triton's ModelConfig protocol buffer; tritonclient carries its schema, against
which a test parses it.
"""

import re
from pathlib import Path

from serve.model_info import INPUT_NAME, PROBABILITIES_NAME, ModelInfo
from shards.console import UserError
from shards.writer import write_atomic

MAX_BATCH = 64
PREFERRED_BATCHES = (8, 16, 32)
# How long a request may wait for others to share its batch: 1 ms is little beside a pass (15 ms on
# a core, about 3 on a GPU) and enough for requests that arrive together.
MAX_DELAY_US = 1000
Shape = tuple[int, ...]  # -1: any


def check_name(name: str) -> None:
    """UserError when it cannot name a model in a repository."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise UserError(
            f"the Triton model would be called {name!r}, after the file; letters, digits, '_', '-' "
            "and '.' are allowed: name --out accordingly"
        )


def write_repository(
    root: Path, name: str, model: Path, info: ModelInfo, outputs: dict[str, Shape]
) -> Path:
    """Write the model's folder, its weights last; outputs: name -> shape without the batch."""
    check_name(name)
    folder = root / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.pbtxt", config_text(name, info, outputs).encode())
    labels = "".join(f"{_one_line(label)}\n" for label in info.labels)
    write_atomic(folder / "labels.txt", labels.encode())
    write_atomic(folder / "1" / "model.onnx", model.read_bytes())
    return folder


def config_text(name: str, info: ModelInfo, outputs: dict[str, Shape]) -> str:
    """config.pbtxt: dynamic batching, one instance on each GPU (on the CPU where there is none)."""
    blocks = [_tensor("input", INPUT_NAME, "TYPE_UINT8", (1, info.size, info.size))]
    for output, shape in outputs.items():
        labelled = output == PROBABILITIES_NAME
        blocks.append(_tensor("output", output, "TYPE_FP32", shape, labelled=labelled))
    preferred = ", ".join(map(str, PREFERRED_BATCHES))
    return "\n".join(
        [
            f"name: {_quoted(name)}",
            'backend: "onnxruntime"',
            'default_model_filename: "model.onnx"',
            f"max_batch_size: {MAX_BATCH}",
            *blocks,
            "dynamic_batching {",
            f"  preferred_batch_size: [{preferred}]",
            f"  max_queue_delay_microseconds: {MAX_DELAY_US}",
            "}",
            "instance_group [{ count: 1, kind: KIND_AUTO }]",
            "",
        ]
    )


def _tensor(kind: str, name: str, data_type: str, shape: Shape, *, labelled: bool = False) -> str:
    dims = ", ".join(map(str, shape))
    label_file = ', label_filename: "labels.txt"' if labelled else ""
    return (
        f"{kind} [{{ name: {_quoted(name)}, data_type: {data_type}, dims: [{dims}]{label_file} }}]"
    )


def _quoted(text: str) -> str:
    """A string of the text format: everything but plain ASCII as octal bytes."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'


def _one_line(label: str) -> str:
    return " ".join(label.split())
