"""train.warp_triton: the kernel gives the reference, and what is said where it cannot be built."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from all_copies import EVERYTHING, WORDS, all_copies

from train.augment import Varied
from train.expand import copies_from
from train.warp import fused_warp, warp_slowly

FUSED = """
import numpy as np, torch
from train.expand import Copies
from train.warp_triton import probe, warp_fused
data = np.load({path!r})
copies = Copies(*(data[name] for name in ("sample", "matrices", "jitter", "elastic")))
probe(torch.device("cpu"))
for dtype in (torch.float32, torch.float16):
    out = warp_fused(torch.from_numpy(data["images"]), copies, dtype)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.save({path!r} + str(dtype), out.float().numpy())
"""


def test_the_fused_kernel_is_the_reference_when_interpreted(tmp_path):
    pytest.importorskip("triton", reason="triton comes with torch for CUDA only")
    rng, size = np.random.default_rng(0), 40
    images = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 2), np.uint8), (0, 0), 1.5)
    images = torch.from_numpy(np.ascontiguousarray(images.transpose(2, 0, 1)))
    changed = all_copies(WORDS, Varied(4, EVERYTHING), seed=3, epoch=1, size=size)
    copies = copies_from(np.arange(4) % 2, changed, size)
    path = str(tmp_path / "in.npz")
    np.savez(path, images=images.numpy(), **vars(copies))
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", FUSED.format(path=path)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = warp_slowly(images, copies).numpy()
    for dtype, near in (("torch.float32", 2e-4), ("torch.float16", 4e-3)):
        np.testing.assert_allclose(np.load(path + dtype + ".npy"), expected, atol=near)


def test_a_gpu_without_the_kernel_says_so_and_goes_on(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "train.warp_triton", None)
    fused_warp.cache_clear()
    assert fused_warp() is None
    assert fused_warp() is None
    error = capsys.readouterr().err
    assert error.count("the fused GPU warp cannot be built") == 1
    fused_warp.cache_clear()


class FakeTritonError(Exception):
    """As triton.errors.TritonError, of which PTXASError, CompilationError, OutOfResources are."""


@pytest.mark.parametrize(
    "error",
    [
        type("PTXASError", (FakeTritonError,), {})("PTXAS error: no such\n`ptxas`"),
        AssertionError("libcuda.so cannot found!\nPossible files are located at []."),
    ],
)
def test_what_triton_raises_where_it_cannot_build_is_said(monkeypatch, capsys, error):
    def probe(device: torch.device) -> None:
        raise error

    errors = SimpleNamespace(TritonError=FakeTritonError)
    kernels = SimpleNamespace(probe=probe, warp_fused=None)
    monkeypatch.setitem(sys.modules, "triton.errors", errors)
    monkeypatch.setitem(sys.modules, "train.warp_triton", kernels)
    fused_warp.cache_clear()
    assert fused_warp() is None
    fused_warp.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert " ".join(str(error).split()) in line
