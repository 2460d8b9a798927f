"""Files of torch.save -> nested containers and tensors, without running what they hold.

The zip format (torch 1.6 and later) and the stream of pickles before it (2017 to 2020; torch still
writes it with _use_new_zipfile_serialization=False). Sizes are checked before allocation.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.console import UserError
from train.restricted_pickle import Opaque, RefusedPickle, StorageRef, TensorRef, read_pickle

MAX_BYTES = 2 << 30  # a checkpoint of VGG16 with its optimiser has 1.1 GB
MAX_PICKLE_BYTES = 64 << 20
MAX_DEPTH = 40  # of modules in modules: DenseNet has 5
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
ReadStorage = Callable[[StorageRef], Tensor]


def read_torch_file(path: Path) -> Any:
    """Dicts, lists, tuples, numbers, text, tensors on the CPU, and Opaque for modules.

    UserError that names the file for anything else, and for what is damaged or too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RefusedPickle(f"it is larger than {MAX_BYTES} bytes")
        data = path.read_bytes()
        if data[:2] == b"PK":
            return _read_zip(data)
        return _read_stream(data)
    except (RefusedPickle, zipfile.BadZipFile, OSError, RecursionError) as error:
        raise UserError(f"{path} holds more than weights, or is damaged: {error}") from error


def _read_zip(data: bytes) -> Any:
    """PREFIX/data.pkl and PREFIX/data/<key>, stored without compression."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedPickle("a zip file, but not torch's")
        prefix = pickles[0].removesuffix("/data.pkl")

        def read(name: str, limit: int) -> bytes:
            info = members.get(name)
            if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
                raise RefusedPickle(f"{name} is missing, compressed or too large")
            return archive.read(info)

        if f"{prefix}/byteorder" in members and read(f"{prefix}/byteorder", 10) != b"little":
            raise RefusedPickle("its numbers are big-endian")
        value = read_pickle(io.BytesIO(read(pickles[0], MAX_PICKLE_BYTES)))
        blocks: dict[str, Tensor] = {}
        left = len(data)  # all blocks together: members of a zip file may overlap

        def storage(ref: StorageRef) -> Tensor:
            nonlocal left
            if ref.key not in blocks:
                block = read(f"{prefix}/data/{ref.key}", left)
                left -= len(block)
                blocks[ref.key] = _numbers(ref, block)
            return blocks[ref.key]

        return _with_tensors(value, storage)


def _read_stream(data: bytes) -> Any:
    """Pickles of: a magic number, a version, the machine, the object, the storages' keys; then per
    key int64 how many numbers, and the numbers."""
    file = io.BytesIO(data)
    if read_pickle(file) != _MAGIC or read_pickle(file) != _PROTOCOL:
        raise RefusedPickle("no file of torch.save")
    system = read_pickle(file)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise RefusedPickle("its numbers are big-endian")
    value, keys = read_pickle(file), read_pickle(file)
    refs: dict[str, StorageRef] = {}
    _with_tensors(value, lambda ref: _remember(refs, ref))
    if not isinstance(keys, list) or not all(key in refs for key in keys):
        raise RefusedPickle("its list of storages does not fit")
    blocks = {}
    for key in keys:
        numel = int.from_bytes(file.read(8), "little")
        width = _dtype(refs[key]).itemsize
        if numel * width > len(data) - file.tell():
            raise RefusedPickle("it is cut short")
        blocks[key] = _numbers(refs[key], file.read(numel * width))
    return _with_tensors(value, lambda ref: blocks[ref.key])


def _remember(refs: dict[str, StorageRef], ref: StorageRef) -> Tensor:
    """Note which storages there are; their numbers come later in the file."""
    if refs.setdefault(ref.key, ref).kind != ref.kind:
        raise RefusedPickle("a storage of two kinds")
    return torch.empty(0, dtype=_dtype(ref))


def _dtype(ref: StorageRef) -> torch.dtype:
    if ref.kind not in _DTYPES:
        raise RefusedPickle(f"numbers of the kind {ref.kind}")
    return _DTYPES[ref.kind]


def _numbers(ref: StorageRef, block: bytes) -> Tensor:
    dtype = _dtype(ref)
    if len(block) % dtype.itemsize:
        raise RefusedPickle("a storage is cut short")
    return torch.frombuffer(bytearray(block), dtype=dtype) if block else torch.empty(0, dtype=dtype)


def _with_tensors(root: Any, storage: ReadStorage) -> Any:
    """The same containers with tensors in the place of references to them.

    What the pickle refers to twice is converted once: else a small file of lists in lists could ask
    for any amount of work. What contains itself is refused, as is what is nested too deeply.
    """
    done: dict[int, Any] = {}
    opened: set[int] = set()

    def convert(value: Any) -> Any:
        if not isinstance(value, TensorRef | dict | list | tuple | Opaque):
            return value
        if id(value) not in done:
            if id(value) in opened or len(opened) > 4 * MAX_DEPTH:  # a module has four containers
                raise RefusedPickle("it contains itself, or is nested too deeply")
            opened.add(id(value))
            done[id(value)] = inside(value)
            opened.remove(id(value))
        return done[id(value)]

    def inside(value: Any) -> Any:
        if isinstance(value, TensorRef):
            return _tensor(value, storage(value.storage))
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, Opaque):
            return Opaque(value.name, convert(value.state))
        return type(value)(convert(item) for item in value)

    return convert(root)


def _tensor(ref: TensorRef, block: Tensor) -> Tensor:
    """RefusedPickle where the tensor would reach out of its storage. Empty block: no data yet."""
    start = ref.storage.offset + _whole(ref.offset)
    if len(ref.size) != len(ref.stride) or len(ref.size) > 8:
        raise RefusedPickle("a tensor without a shape")
    sizes, strides = [_whole(n) for n in ref.size], [_whole(n) for n in ref.stride]
    if not len(block):
        return block
    last = start + sum(max(n - 1, 0) * step for n, step in zip(sizes, strides))
    # Strides of 0 would let a small file ask for a large tensor.
    if last >= len(block) or math.prod(sizes) > len(block):
        raise RefusedPickle("a tensor reaches out of its storage")
    return torch.as_strided(block, sizes, strides, start)


def _whole(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise RefusedPickle(f"{type(number).__name__} as a size, or a number below 0")
    return number


def module_weights(module: Opaque) -> dict[str, Tensor]:
    """The state dict of a whole module that a file holds: parameters and buffers by their names.

    A module that stands at two places is taken at the first.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", module)]
    while waiting:
        prefix, current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for group in ("_parameters", "_buffers"):
            values = _entries(current, group).items()
            found |= {prefix + str(k): value for k, value in values if isinstance(value, Tensor)}
        inner = _entries(current, "_modules").items()
        waiting += [(f"{prefix}{k}.", part) for k, part in inner if isinstance(part, Opaque)]
    return found


def _entries(module: Opaque, group: str) -> Mapping[str, Any]:
    entries = module.state.get(group) if isinstance(module.state, Mapping) else None
    return entries if isinstance(entries, Mapping) else {}
