"""train.sources: memory that CUDA does not pin, and copies; with a CUDA runtime that is made up."""

import numpy as np
import pytest
import torch

from shards.console import RunFailed
from train import sources
from train.sources import PinnedSource, copy_into, upload

CPU = torch.device("cpu")
IMAGES = torch.arange(5 * 4 * 4, dtype=torch.uint8).reshape(5, 4, 4)


class Runtime:
    """CUDA's, whose cudaHostRegister fails, and as torch has it: the error stays until a kernel
    reports it, `lost` times."""

    def __init__(self, lost: int) -> None:
        self.status, self.errors = 2, lost
        self.released = 0

    def cudart(self) -> "Runtime":
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert (address, size, flags) == (IMAGES.data_ptr(), IMAGES.nbytes, 0)
        return self.status

    def cudaHostUnregister(self, address: int) -> None:
        self.released += 1

    def cudaGetErrorString(self, status: int) -> str:
        return "out of memory"

    def synchronize(self, device: torch.device) -> None:
        """Nothing is under way."""

    def ones(self, *shape: int, device: torch.device) -> torch.Tensor:
        if self.errors:
            self.errors -= 1
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
        return torch.empty(shape)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made_up = Runtime(lost=1)
    monkeypatch.setattr(torch.cuda, "cudart", made_up.cudart)
    monkeypatch.setattr(torch.cuda, "synchronize", made_up.synchronize)
    monkeypatch.setattr(sources.torch, "ones", made_up.ones)
    return made_up


def test_memory_that_cannot_be_pinned_is_said_and_works(runtime, capsys):
    source = PinnedSource(IMAGES, CPU)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the images' memory cannot be pinned (out of memory); ")
    assert runtime.errors == 0  # no later kernel finds it
    positions = np.array([3, 0, 3])
    assert torch.equal(source.take(positions), IMAGES[positions])
    source.close()
    assert runtime.released == 0


def test_a_lost_gpu_is_one_line(runtime):
    runtime.errors = 9
    with pytest.raises(RunFailed, match=r"^cpu does not answer .CUDA error: out of memory.$"):
        PinnedSource(IMAGES, CPU)


def test_pinned_memory_is_read_and_given_back_once(runtime, capsys):
    runtime.status, runtime.errors = 0, 0
    source = PinnedSource(IMAGES, CPU)
    positions = np.array([4, 1])
    assert torch.equal(source.take(positions), IMAGES[positions])
    source.close()
    source.close()
    assert runtime.released == 1
    assert capsys.readouterr().err == ""


def test_a_copy_goes_where_it_should():
    target = torch.zeros_like(IMAGES)
    copy_into(target, 1, IMAGES[3:])
    assert torch.equal(target[1:3], IMAGES[3:])
    assert not target[[0, 3, 4]].any()


def test_an_upload_is_the_array():
    array = np.array([[1, -1], [0, 1]], np.int8)
    assert upload(array, CPU).tolist() == array.tolist()
