"""train.device, shards.nvidia: the GPU is taken, or it is said why not and what to do."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from shards import nvidia
from shards.console import UserError
from train import device
from train.device import choose_device, runs_on, why_no_gpu

CPU = torch.device("cpu")
CU13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a card, whose driver is for CUDA 12.8, and torch for CUDA 13.2, which does not
    see it."""

    def version(number: "ctypes._Pointer[ctypes.c_int]") -> int:
        number._obj.value = made.driver  # type: ignore[attr-defined]
        return 0

    def library(name: str) -> SimpleNamespace:
        if made.driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace(cuDriverGetVersion=version)

    def init() -> None:
        raise RuntimeError("Error 802: system not yet initialized\n(see the log)")

    (tmp_path / "0000:0f:00.0").mkdir()
    made = SimpleNamespace(driver=12080)
    monkeypatch.setattr(nvidia, "_CARDS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(device.ctypes, "CDLL", library)
    return made


def test_a_machine_without_a_gpu_is_no_matter(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nvidia, "_CARDS", tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 0) == choose_device("cpu", 0) == CPU
    assert why_no_gpu() is None
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="torch sees no GPU; take --device cpu"):
        choose_device("cuda", 0)


def test_an_unknown_device_is_named():
    with pytest.raises(UserError, match="no device 'tpu'; there are: auto, cpu, cuda"):
        choose_device("tpu", 0)


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        (12080, "13.2", r"its driver is for CUDA 12\.8, torch .* for CUDA 13\.2: a newer driver"),
        (13000, "13.2", r"Error 802: system not yet initialized \(see the log\)"),
        (None, "13.2", r"there is no libcuda\.so\.1 .*docker run --gpus all"),
        (12080, None, "is the CPU's build"),
    ],
    ids=["old driver", "another reason", "no library", "another torch"],
)
def test_a_gpu_that_torch_cannot_use_is_said(machine, monkeypatch, capsys, driver, cuda, said):
    machine.driver = driver
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert choose_device("auto", 0) == choose_device("auto", 1) == CPU
    (line,) = capsys.readouterr().err.splitlines()  # of the first process alone
    with pytest.raises(UserError, match=f"torch cannot use the GPU: .*{said}.*; take --device cpu"):
        choose_device("cuda", 0)
    assert line.startswith("warning: torch cannot use the GPU: ")
    assert line.endswith("; going on with the CPU")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_is_no_matter(machine, monkeypatch, capsys, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device("auto", 0) == CPU
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), CU13, False),  # V100
        ((7, 5), CU13, True),
        ((8, 9), CU13, True),  # sm_86's code
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), CU13, True),
        ((12, 1), CU13, True),
        ((7, 5), ["sm_80", "compute_80"], False),
    ],
)
def test_code_runs_on_its_generation(capability, built, runs):
    assert runs_on(capability, built) == runs


def test_a_gpu_that_is_too_old_is_refused_in_one_line(monkeypatch):
    taken: list[int] = []
    answers = {"is_available": True, "device_count": 2, "get_arch_list": CU13}
    answers |= {"get_device_capability": (7, 0), "get_device_name": "Tesla V100"}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name in ("auto", "cuda"):
        with pytest.raises(UserError, match=r"no code for Tesla V100 \(.*7\.0; .*sm_75, sm_80"):
            choose_device(name, 1)
    with pytest.raises(UserError, match="local rank 2, but this machine has 2 GPUs"):
        choose_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    assert taken == [1]
