"""train.restricted_pickle and train.torch_file: weights come out, and nothing is ever run."""

import contextlib
import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shards.console import UserError
from train.restricted_pickle import Opaque, RefusedPickle, read_pickle
from train.torch_file import module_weights, read_torch_file

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
    ),
    max_leaves=20,
)


def loads(data: bytes):
    return read_pickle(io.BytesIO(data))


@given(PLAIN, st.integers(2, 5))
def test_plain_values_come_out_as_they_went_in(value, protocol):
    assert loads(pickle.dumps(value, protocol)) == value
    assert loads(pickle.dumps(OrderedDict(a=value), protocol)) == {"a": value}
    assert loads(pickle.dumps(b"bytes", max(protocol, 3))) == b"bytes"


class Calls:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(target: Path) -> dict[str, bytes]:
    """Pickles that would make the folder `target`, or come near it."""
    command, name = f"mkdir {target}", str(target).encode()
    line = f"__import__('os').mkdir({str(target)!r})"
    return {
        "os.mkdir": pickle.dumps(Calls(os.mkdir, str(target))),
        "os.system": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "posix.system": b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00touch\x85R.",
        "subprocess": pickle.dumps(Calls(subprocess.check_output, ["mkdir", str(target)])),
        "eval": pickle.dumps(Calls(eval, line)),
        "exec by stack global": pickle.dumps(Calls(exec, line), 4),
        "getattr chain": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "mkdir")),
        "import": b"cbuiltins\n__import__\n(S'os'\ntR.",
        "in a state dict": pickle.dumps(
            {"state_dict": OrderedDict(a=Calls(os.mkdir, str(target)))}
        ),
        "INST": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "NEWOBJ_EX": b"\x80\x04cos\nmkdir\n(X"
        + len(name).to_bytes(4, "little")
        + name
        + b"t}\x92.",
        "extension registry": b"\x80\x02\x82\x01.",
        "copyreg": b"\x80\x02ccopyreg\n_reconstructor\n(cos\n_Environ\nc__builtin__\nobject\nNtR.",
        "dotted name": b"\x80\x04\x8c\x12torch.nn.modules.x\x8c\tos.system\x93\x8c\x02ls\x85R.",
        "torch's own loader": b"ctorch\nload\n(S'x'\ntR.",
        "torch.hub": b"ctorch.hub\nload\n(S'x'\ntR.",
        "a module of another package": b"cevil.torch.nn.modules\nLinear\n(tR.",
        "new lines in a name": b"\x80\x04\x8c\x02os\x8c\x07sys\ntem\x93.",
    }


NAMES = list(payloads(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_pickle_is_refused_in_one_line(tmp_path, name):
    target = tmp_path / "executed"
    with pytest.raises(RefusedPickle) as refused:
        loads(payloads(target)[name])
    assert "\n" not in str(refused.value)
    assert not target.exists()


@pytest.mark.parametrize("name", ["os.mkdir", "eval", "getattr chain", "INST"])
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_hostile_file_is_refused_and_named(tmp_path, name, form):
    target, path = tmp_path / "executed", tmp_path / "hostile.pth"
    payload = payloads(target)[name]
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*head, payload, pickle.dumps([], 2)]))
    with pytest.raises(
        UserError, match=r"hostile.pth holds more than weights, or is damaged: "
    ) as e:
        read_torch_file(path)
    assert "\n" not in str(e.value)
    assert not target.exists()


def test_a_module_class_is_a_stand_in():
    data = b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}X\x01\x00\x00\x00aK\x05sb."
    assert loads(data) == Opaque("torch.nn.modules.linear Linear", {"a": 5})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02]a.",
        b"\x80\x02}(K\x01u.",
        b"h\x07.",
        b"\x80\x02)]s.",
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02K\x01Q.",
        b"P1\n.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.",
        b"\x80\x02K\x01}b.",
        b"X\xff\xff\xff\x7fabc.",  # says that 2 GiB of text follow
    ],
)
def test_damaged_pickles_are_refused(data):
    with pytest.raises(RefusedPickle):
        loads(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_give_a_value_or_are_refused(data):
    with contextlib.suppress(RefusedPickle):
        loads(b"\x80\x02" + data + b".")


class Block(nn.Module):
    """A whole module as the files of 2018 hold one."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.features = nn.Sequential(OrderedDict(first=inner))
        self.classifier = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())


Block.__module__, Block.__qualname__ = "torchvision.models.densenet", "Block"


@pytest.fixture(params=["zip", "stream"])
def saved(request, tmp_path, monkeypatch):
    """Saves a value in one of torch's two formats."""
    monkeypatch.setattr("torchvision.models.densenet.Block", Block, raising=False)

    def save(value) -> Path:
        path = tmp_path / "file.pth"
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return save


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_module_gives_its_state_dict(saved, monkeypatch):
    module = Block()
    module.features.first[1].running_mean.uniform_()
    path = saved({"model": module, "epoch": 3, "rng_state": torch.get_rng_state()})
    monkeypatch.setattr(Block, "__setstate__", lambda *_: pytest.fail("executed"), raising=False)
    content = read_torch_file(path)
    assert content["epoch"] == 3
    assert torch.equal(content["rng_state"], torch.get_rng_state())
    weights = module_weights(content["model"])
    expected = module.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_tensors_of_every_kind_and_shape(saved):
    whole = torch.arange(24.0).reshape(4, 6)
    value = {
        "double": whole.double(),
        "half": whole.half(),
        "bf16": whole.bfloat16(),
        "long": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "transposed": whole.t(),
        "view": whole[1:3, 2:4],
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(whole),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    found = read_torch_file(saved([value]))[0]
    assert found.keys() == value.keys()
    for key, tensor in value.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape or not tensor.numel()
        assert torch.equal(found[key].flatten(), tensor.detach().flatten())


def test_a_file_cut_short_is_refused(saved):
    path = saved({"a": torch.randn(100, 100)})
    data = path.read_bytes()
    for length in (0, 1, 60, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="is damaged"):
            read_torch_file(path)


def write_zip(path: Path, data: bytes, **blocks: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, block in blocks.items():
            archive.writestr(f"archive/data/{key}", block)
    return path


def tensor_of(size: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    """A pickle of a tensor over the storage 'a' of 4 numbers."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    storage += b"X\x01\x00\x00\x00aX\x03\x00\x00\x00cpuK\x04tQ"
    call = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    return call + storage + offset + size + stride + b"\x89NtR."


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        (b"K\x05\x85", b"K\x01\x85", b"K\x00"),  # longer than the storage
        (b"K\x02\x85", b"K\x04\x85", b"K\x00"),  # strides out of it
        (b"K\x02\x85", b"K\x01\x85", b"K\x03"),  # begins too late
        (b"J\xff\xff\xff\x7f\x85", b"K\x00\x85", b"K\x00"),  # 2 billion times the same number
        (b"J\xff\xff\xff\xff\x85", b"K\x01\x85", b"K\x00"),  # a size of -1
        (b"K\x02\x85", b"K\x01K\x01\x86", b"K\x00"),  # two strides for one size
        (b"X\x01\x00\x00\x00x\x85", b"K\x01\x85", b"K\x00"),
    ],
)
def test_a_tensor_stays_in_its_storage(tmp_path, size, stride, offset):
    good = write_zip(tmp_path / "good", tensor_of(b"K\x04\x85", b"K\x01\x85"), a=bytes(16))
    assert read_torch_file(good).tolist() == [0, 0, 0, 0]
    bad = write_zip(tmp_path / "bad", tensor_of(size, stride, offset), a=bytes(16))
    with pytest.raises(UserError, match="holds more than weights, or is damaged"):
        read_torch_file(bad)


def test_compressed_members_and_other_zips_are_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([0] * 1000, 2))
    with pytest.raises(UserError, match="compressed or too large"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(UserError, match="a zip file, but not torch's"):
        read_torch_file(path)


def test_lists_in_lists_cost_no_more_than_their_file(tmp_path):
    # Each of 60 lists holds the one before twice: written out it would be 2 ** 60 lists.
    data = b"\x80\x02]q\x00" + b"".join(
        b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)
    ) + b"."  # fmt: skip
    path = write_zip(tmp_path / "doubling.pth", data)
    assert len(read_torch_file(path)) == 2
    itself = write_zip(tmp_path / "itself.pth", b"\x80\x02]q\x00h\x00a.")
    with pytest.raises(UserError, match="contains itself"):
        read_torch_file(itself)
    deep = write_zip(tmp_path / "deep.pth", b"\x80\x02)" + b"\x85" * 100_000 + b".")
    with pytest.raises(UserError, match="nested too deeply"):
        read_torch_file(deep)
