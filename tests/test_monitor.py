"""train.monitor: what a GPU tells, and the joules in a checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from test_engine import newest_state

from train.dist import World
from train.epoch import PhaseRun
from train.monitor import Monitor
from train.position import Position
from train.precision import Precision
from train.saver import Saver
from train.stop import Stop

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_a_checkpoint_has_the_joules_of_all_processes(tmp_path, monkeypatch):
    model, world, at = torch.nn.Linear(2, 2), World("cpu"), Position(energy_j=4.0)
    optim = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = SimpleNamespace(
        model=model, optim=optim, precision=Precision("fp32", world.device), ema=None
    )
    monkeypatch.setattr(world, "sum", lambda values: [value + 5.0 for value in values])
    saver = Saver(tmp_path / "checkpoints", world, Stop(), {}, keep=1, every_s=0.0)
    saver.save(at, stepper)
    assert newest_state(tmp_path)["position"]["energy_j"] == 9.0
    assert at.energy_j == 4.0  # of this process, which goes on counting its own


class FakeNvml:
    """One GPU at 412 W that has used 7 J, and does not tell its memory."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> None:
        raise self.NVMLError

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 412_300

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return 7000


def test_what_a_gpu_does_not_tell_is_left_out():
    monitor = Monitor(torch.device("cpu"))
    assert (monitor.note(), monitor.energy_j()) == ("", None)
    monitor._nvml, monitor._handle = FakeNvml(), "gpu"
    assert (monitor.note(), monitor.energy_j()) == ("412 W", 7.0)


def test_the_bar_shows_loss_rate_memory_and_power():
    monitor, nvml = Monitor(torch.device("cpu")), FakeNvml()
    at = Position(loss_sum=1.0, loss_count=2.0, copies=100, step_seconds=4.0)
    run = SimpleNamespace(at=at, clock=SimpleNamespace(monitor=monitor))
    assert PhaseRun._note(run) == "loss 0.5000, 25 img/s"
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=12_340_000_000)
    monitor._nvml, monitor._handle = nvml, "gpu"
    assert PhaseRun._note(run) == "loss 0.5000, 25 img/s, 12.3 GB, 412 W"
