"""Memory that runs out in training: said in one line, or half as much at once."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from test_engine import equal, trained
from tiny_training import CONFIG, COVID

from shards.console import RunFailed, UserError
from train.log import read_metrics
from train.memory_limit import MicroBatch, is_out_of_memory
from train.phases import Phase
from train.step import Stepper
from train.store import Store

pytestmark = pytest.mark.usefixtures("tiny_network")


def exhausted(limit: int):
    forward = torchvision.models.DenseNet.forward

    def limited(net, images):
        out = forward(net, images)
        if net.training and len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return out

    return limited


def test_out_of_memory_names_the_setting(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(5))
    said = r"64 images at once \(CUDA out of memory. Tried to allocate 20.00 MiB\); "
    with pytest.raises(
        RunFailed, match=said + r"lower --micro-batch \(now 64\).* --auto-micro-batch"
    ):
        trained(tiny_shards, tmp_path / "run")


def test_auto_micro_batch_goes_on_as_if_it_had_begun_so(tiny_shards, tmp_path, monkeypatch, capsys):
    smaller = replace(CONFIG, micro_batch=4)
    trained(tiny_shards, tmp_path / "small", smaller)
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(5))
    asked = replace(CONFIG, micro_batch=16, auto_micro_batch=True)
    trained(tiny_shards, tmp_path / "run", asked)
    assert equal(tmp_path / "run", tmp_path / "small")
    assert "out of memory with 16 images at once; going on with 8" in capsys.readouterr().err
    assert {line["micro_batch"] for line in read_metrics(tmp_path / "run")} == {4}
    recorded = json.loads((tmp_path / "run" / "micro-batch.json").read_bytes())
    assert recorded == {"micro_batch": 4, "asked": 16}
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(2))
    with pytest.raises(RunFailed, match="out of memory with 4 images at once, the least"):
        trained(tiny_shards, tmp_path / "none", asked)


def test_after_a_step_without_memory_the_epochs_images_are_expected_again(
    tiny_shards, tmp_path, monkeypatch
):
    expected, expect = [], Store.expect

    def noted(self: Store, positions: np.ndarray) -> None:
        expected.append(positions.tolist())
        expect(self, positions)

    monkeypatch.setattr(Store, "expect", noted)
    monkeypatch.setattr(torchvision.models.DenseNet, "forward", exhausted(5))
    phase = Phase("head", 1, "head", 0.05)
    config = replace(CONFIG, stages=(replace(COVID, phases=(phase,)),), auto_micro_batch=True)
    trained(tiny_shards, tmp_path / "run", config)
    epoch, *again, val, test = expected  # 64, 32, 16, 8: each does not fit
    assert again == [epoch] * 4
    assert (len(epoch), len(val), len(test)) == (24, 5, 9)


def test_memory_that_numpy_lacks_is_one_line(tiny_shards, tmp_path, monkeypatch):
    def lacking(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 29.1 TiB for an array with shape (32, 1000000)")

    monkeypatch.setattr("train.loop.load_stores", lacking)
    with pytest.raises(
        RunFailed, match=r"out of memory \(Unable .*; lower --micro-batch or --size"
    ):
        trained(tiny_shards, tmp_path / "run")


def test_one_of_many_processes_records_the_smaller_size_and_ends(tmp_path, capsys):
    size = MicroBatch(tmp_path, 64, auto=True)
    assert size.now == 64
    (tmp_path / "micro-batch.json").write_text('{"micro_')
    with pytest.raises(UserError, match=r"micro-batch\.json is damaged"):
        assert size.now
    with pytest.raises(RunFailed, match=r"lowered it to 32: the same command .* goes on"):
        size.halve(64, "CUDA out of memory", alone=False)
    assert MicroBatch(tmp_path, 64, auto=True).now == 32
    assert MicroBatch(tmp_path, 48, auto=True).now == 48  # mended settings begin anew


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "FIND was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_memory_that_runs_out_is_known_by_its_message(message):
    assert is_out_of_memory(RuntimeError(message))
    assert is_out_of_memory(torch.AcceleratorError(message))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_no_room_for_the_optimisers_state_says_what_makes_some(tiny_shards, tmp_path, monkeypatch):
    def lacking(self: Stepper) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 77.00 MiB")

    monkeypatch.setattr(Stepper, "update", lacking)
    config = replace(CONFIG, auto_micro_batch=True)
    with pytest.raises(RunFailed, match=r"for the optimiser's state .*--input.store host, or in"):
        trained(tiny_shards, tmp_path / "run", config)


def test_no_room_for_the_momentum_that_is_built_is_said_by_a_name_too(
    tiny_shards, tmp_path, monkeypatch
):
    """Python's own error has no words."""

    def lacking(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("train.loop.build_optim", lacking)
    with pytest.raises(RunFailed, match=r"for the optimiser's state \(MemoryError\); take"):
        trained(tiny_shards, tmp_path / "run")
