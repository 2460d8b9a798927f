"""train.optim, train.schedule and train.ema: rates as torch's, what freezes, what is averaged."""

import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shards.console import UserError
from train.ema import Ema
from train.optim import (
    OptimConfig,
    build_optim,
    clear_gradients,
    clip_gradients,
    set_lr,
    set_mode,
    set_trainable,
)
from train.phases import Phase
from train.schedule import Schedule, learning_rate

LOSSES = st.lists(st.integers(1, 6).map(float) | st.just(float("nan")), max_size=40)
ALL = Phase("all", 3, "all", lr=0.1, weight_decay=0.01)


class Net(nn.Module):
    """A convolution with batch norm, and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(images)).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def backward(model: nn.Module) -> None:
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()


@settings(deadline=None)
@given(LOSSES, st.integers(0, 4), st.sampled_from([0.1, 0.5]))
def test_plateau_is_torchs(losses, patience, factor):
    optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optim, factor=factor, patience=patience)
    schedule = Schedule("plateau", factor=factor, patience=patience)
    for epoch, loss in enumerate(losses):
        theirs.step(loss)
        ours = learning_rate(1.0, schedule, losses[: epoch + 1])
        # torch leaves the rate alone once a step would change it by less than 1e-8.
        assert ours == pytest.approx(optim.param_groups[0]["lr"], rel=1e-6, abs=2e-8)


@given(st.integers(0, 60), st.integers(1, 9))
def test_step_is_torchs(epochs, every):
    optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    theirs = torch.optim.lr_scheduler.StepLR(optim, every, 0.1)
    for _ in range(epochs):
        optim.step()
        theirs.step()
    ours = learning_rate(1e-4, Schedule("step", factor=0.1, every=every), [1.0] * epochs)
    assert ours == pytest.approx(optim.param_groups[0]["lr"], rel=1e-6)


def test_a_constant_rate_stays():
    assert learning_rate(0.3, Schedule(), [1.0] * 50) == 0.3


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_an_optimiser_moves_what_the_phase_trains(name, kind):
    model = net()
    phase = Phase("head", 1, "head", lr=0.1, weight_decay=0.01)
    set_trainable(model, phase)
    optim = build_optim(OptimConfig(name), model, phase)
    assert type(optim) is kind
    group = optim.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.1, 0.01, True)
    before = {k: v.clone() for k, v in model.named_parameters()}
    backward(model)
    optim.step()
    moved = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert moved == {"fc.weight", "fc.bias"}
    set_lr(optim, 0.0)
    assert group["lr"] == 0.0
    clear_gradients(optim)
    assert model.fc.weight.grad is None


@pytest.fixture
def unwritten():
    """Memory that nobody has written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_first_step_that_the_scaler_skips_leaves_no_trace(unwritten, name):
    skipping, plain = net(), net()
    losses = {skipping: (float("inf"), 1.0, 1.0), plain: (1.0, 1.0)}
    for model, factors in losses.items():
        optim = build_optim(OptimConfig(name), model, ALL)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for factor in factors:
            clear_gradients(optim)
            scaler.scale(model.fc.weight.sum() * factor).backward()
            scaler.step(optim)
            scaler.update()
    torch.testing.assert_close(skipping.fc.weight, plain.fc.weight, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgds_steps_are_those_of_torchs_unfused(momentum):
    ours, theirs = net(), net()
    optims = [
        build_optim(OptimConfig(momentum=momentum), ours, ALL),
        torch.optim.SGD(theirs.parameters(), lr=0.1, weight_decay=0.01, momentum=momentum),
    ]
    for step in range(3):
        for model, optim in zip((ours, theirs), optims):
            torch.manual_seed(step)
            clear_gradients(optim)
            backward(model)
            optim.step()
    for one, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(one, other)


def test_clipping_bounds_the_common_norm():
    model = net()
    backward(model)
    optim = build_optim(OptimConfig(), model, ALL)
    clip_gradients(optim, 0.5)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)


def test_an_unknown_optimiser_lists_the_known():
    with pytest.raises(
        UserError, match="no optimiser 'lamb'; there are: sgd, adam, adamw, apex-sg"
    ):
        build_optim(OptimConfig("lamb"), net(), ALL)  # type: ignore[arg-type]


def test_apex_needs_a_gpu():
    with pytest.raises(UserError, match=r"--optim.name apex-sgd needs a GPU; take sgd"):
        build_optim(OptimConfig("apex-sgd"), net(), ALL)


@pytest.mark.parametrize("module", [None, types.ModuleType("apex")])
def test_apex_that_is_not_there_or_another_program_is_named(monkeypatch, module):
    # None in sys.modules makes an import fail; the bare module is the package index's `apex`.
    monkeypatch.setitem(sys.modules, "apex", module)
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    from train.optim import _apex

    with pytest.raises(UserError, match=r"NVIDIA apex is not installed.*take adam: torch's fused"):
        _apex("apex-adam", torch.device("cuda"))


def test_apexs_optimisers_are_taken_where_they_are(monkeypatch):
    made = []
    optimizers = types.ModuleType("apex.optimizers")
    for name in ("FusedSGD", "FusedAdam"):
        setattr(optimizers, name, lambda *a, made=made, name=name, **k: made.append((name, k)))
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    from train.optim import _apex

    for name in ("apex-sgd", "apex-adam"):
        _apex(name, torch.device("cuda"))([], lr=0.1)
    assert made == [("FusedSGD", {"lr": 0.1}), ("FusedAdam", {"lr": 0.1, "adam_w_mode": False})]


@pytest.mark.parametrize(
    ("trainable", "frozen_norm", "moves"),
    [("head", "train", True), ("head", "eval", False), ("all", "eval", True)],
)
def test_frozen_batch_norm_moves_as_the_phase_says(trainable, frozen_norm, moves):
    model = net()
    phase = Phase("p", 1, trainable, lr=0.1, frozen_norm=frozen_norm)
    set_trainable(model, phase)
    set_mode(model.eval(), phase)
    model(torch.randn(4, 3, 8, 8))
    assert model.training
    assert bool(model.norm.running_mean.any()) == moves


def test_the_average_follows_the_weights():
    model = net()
    ema = Ema(model, decay=0.75)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value += 4
    ema.update(model)
    for key, value in ema.model.state_dict().items():
        step = 4 if key.endswith("num_batches_tracked") else 1
        torch.testing.assert_close(value, start[key] + step)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_an_optimiser_has_the_settings_and_a_new_phase_no_old_gradient():
    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    phase = Phase("head", 1, "head", lr=0.03, weight_decay=0.02)
    set_trainable(model, phase)
    assert all(parameter.grad is None for parameter in model.parameters())
    (group,) = build_optim(OptimConfig("sgd", momentum=0.7), model, phase).param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.03, 0.02, 0.7)
