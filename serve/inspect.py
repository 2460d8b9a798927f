"""What an ONNX model says of itself; of a stranger's model, what it leaves out. Needs no torch.

Run: python -m serve inspect MODEL.onnx
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import onnx
import tyro
from onnx import ModelProto, TensorProto
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve.model_info import INPUT_NAME, PREFIX, PROBABILITIES_NAME, ModelInfo, from_metadata
from serve.thresholds import OperatingPoint
from shards.console import UserError, one_line
from shards.manifest import SOME_OR_ALL

MAX_BYTES = 2**31 - 1  # of one protocol buffer
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class InspectConfig:
    """Print what an ONNX model holds: inputs, outputs, labels, thresholds, parity, licence."""

    model: Annotated[Path, tyro.conf.Positional]
    """The ONNX file."""


def inspect(config: InspectConfig) -> Rows:
    """Print the rows: a table on a terminal, `name: value` lines into a pipe."""
    rows = describe(config.model)
    if not sys.stdout.isatty():
        for name, value in rows:
            print(f"{name}: {value}")
        return rows
    table = Table(title=str(config.model), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a hash is of use only whole
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    Console(highlight=False, markup=False).print(table)
    return rows


def describe(path: Path) -> Rows:
    """(name, value) lines. UserError when the file is no ONNX model."""
    model = load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    rows = [*_file_rows(path), *_graph_rows(model)]
    if any(key.startswith(PREFIX) for key in metadata):
        rows += _info_rows(from_metadata(metadata, str(path)))
    else:
        rows += [(f"metadata {key}", value) for key, value in sorted(metadata.items())]
        rows += _missing_rows(model)
    return [(one_line(name), one_line(value)) for name, value in rows]


def load(path: Path) -> ModelProto:
    """The graph, without weights that lie in other files. UserError when it cannot be read."""
    if not path.is_file():
        raise UserError(f"no file {path}; make a model with: python -m serve export")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than an ONNX file can be (2 GiB)")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's DecodeError, for one
        raise UserError(f"{path} is not an ONNX model ({error})") from error
    if not model.ir_version or not model.graph.node:
        raise UserError(f"{path} is not an ONNX model (no graph in it)")
    return model


def output_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Output -> its shape without the batch; -1 where a side is not fixed."""
    return {
        output.name: tuple(d.dim_value or -1 for d in output.type.tensor_type.shape.dim[1:])
        for output in model.graph.output
    }


def _file_rows(path: Path) -> Rows:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [("file", f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"), ("sha256", digest)]


def _graph_rows(model: ModelProto) -> Rows:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    counts = Counter(node.op_type for node in graph.node)
    values = sum(_elements(tensor) for tensor in graph.initializer)
    outside = sum(t.data_location == TensorProto.EXTERNAL for t in graph.initializer)
    opsets = ", ".join(f"{o.domain or 'onnx'} {o.version}" for o in model.opset_import)
    rows = [
        ("opset", f"{opsets}; IR {model.ir_version}; by {model.producer_name or 'unknown'}"),
        *(("input", _tensor(one)) for one in graph.input if one.name not in weights),
        *(("output", _tensor(one)) for one in graph.output),
        ("weights", f"{values / 1e6:.2f} M values in {len(graph.initializer)} tensors"),
        ("operators", ", ".join(f"{name} {count}" for name, count in counts.most_common(8))),
    ]
    return rows + ([("weights outside", f"{outside} tensors in other files")] if outside else [])


def _elements(tensor: TensorProto) -> int:
    count = 1
    for side in tensor.dims:
        count *= side
    return count


def _tensor(info: Any) -> str:
    number = info.type.tensor_type.elem_type
    known = number in TensorProto.DataType.values()
    kind = TensorProto.DataType.Name(number).lower() if known else f"of unknown type {number}"
    dims = info.type.tensor_type.shape.dim
    return f"{info.name} {kind} ({', '.join(str(d.dim_value or d.dim_param or '?') for d in dims)})"


def _info_rows(info: ModelInfo) -> Rows:
    reduced = f", images reduced to {info.shorter_side} before" if info.shorter_side else ""
    rows = [
        ("labels", ", ".join(info.labels)),
        ("one label holds", "yes" if info.exclusive else "no: any number of them"),
        ("probabilities", f"{info.output} of the logits"),
        ("preprocessing", f"version {info.preprocessing_version}, {info.size} pixels{reduced}"),
        ("16-bit images", depth_text(info.depth)),
        ("precision", info.precision),
        ("network", f"{info.architecture}, head {info.head}"),
        ("trained", f"run {info.run}, recipe {info.recipe}, stage {info.stage}"),
        ("weights sha256", info.weights_sha256),
        ("data set", f"{info.dataset}, manifest {info.manifest_hash}"),
    ]
    if info.splits:
        counts = ", ".join(f"{name} {count}" for name, count in info.splits.items())
        rows.append(("split", counts))
    rows += _gate_rows(info)
    for name, points in info.thresholds.items():
        rows += [(f"{name} {label}", point_text(point)) for label, point in points.items()]
    if info.synthetic:
        told = info.synthetic_images or SOME_OR_ALL
        rows.append(("synthetic", f"{told} of its data set: they say nothing of real ones"))
    rows += [("licence", info.licence), ("intended use", info.intended_use)]
    return [*rows, ("made by", info.created_by)]


def depth_text(depth: int | None) -> str:
    """What becomes of 16-bit images, in words."""
    if depth is None:
        return "of the depth that they declare, else of serve score --depth"
    return f"of the depth that they declare, else {depth} bits, as the training data"


def _gate_rows(info: ModelInfo) -> Rows:
    parity = info.parity
    if parity is None:
        return [("parity", "not known: exported by an earlier version")]
    rows = [
        (
            "parity",
            f"{parity.images} images, torch fp32 beside ONNX Runtime {info.precision} on "
            f"{parity.provider}: probabilities within {parity.max_probability_difference:.2g}, "
            f"on average {parity.mean_probability_difference:.2g}",
        )
    ]
    if parity.auroc_torch is not None:
        text = f"mean {parity.auroc_torch:.4f} torch, {parity.auroc_onnx:.4f} this model; a label's"
        rows.append(
            ("parity AUROC", f"{text} differs by {parity.max_auroc_difference:.2g} at most")
        )
    if parity.allowed_auroc_loss is not None:
        rows.append(("allowed loss of AUROC", f"{parity.allowed_auroc_loss:g}"))
    return rows


def point_text(point: OperatingPoint | None) -> str:
    """One operating point in words."""
    if point is None:
        return "none: the validation split has only images with it, or only without"
    return (
        f"from {point.threshold:.4f}: sensitivity {point.sensitivity:.3f} of {point.positives}, "
        f"specificity {point.specificity:.3f} of {point.negatives}"
    )


def _missing_rows(model: ModelProto) -> Rows:
    """What scoring needs and a stranger's model does not say."""
    missing = [
        f"no {PREFIX}* metadata: labels, size, preprocessing version, thresholds, data, parity, "
        "licence and intended use are not known"
    ]
    inputs: Mapping[str, int] = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    if inputs.get(INPUT_NAME) != TensorProto.UINT8:
        missing.append(f"no uint8 input {INPUT_NAME!r}: its normalisation is not known")
    if PROBABILITIES_NAME not in {output.name for output in model.graph.output}:
        missing.append(f"no output {PROBABILITIES_NAME!r}: logits or probabilities, not known")
    return [("missing", text) for text in missing]
