"""train.step: what a rank trains on, in both units of a batch, on any number of ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from shards.order import copy_order, epoch_order, global_batch, steps_per_epoch
from train.augment import EIGHT, NONE, Expansion
from train.dist import World
from train.ema import Ema
from train.expand import Copies, Expander
from train.precision import Precision
from train.step import Stepper
from train.store import Store

SIZE, N, EPOCH = 32, 13, 5


class Spy(nn.Module):
    """A linear network without batch norm that notes how many images it saw at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * 16, 2))
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(images))
        return self.net(images)


def make_store() -> Store:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (N, SIZE, SIZE), np.uint8))
    labels = np.eye(2, dtype=np.int8)[np.arange(N) % 2]
    return Store(tuple(f"k{i}" for i in range(N)), images, labels)


def stepper_of(rank: int, world_size: int, micro_batch: int = 8) -> Stepper:
    world, model = World("cpu"), Spy()
    world.rank, world.size = rank, world_size
    return Stepper(
        model=model,
        optim=torch.optim.SGD(model.parameters(), lr=0.1),
        store=make_store(),
        expander=Expander({0: EIGHT, 1: Expansion(rotations=3)}, NONE, 1, SIZE),
        precision=Precision("fp32", world.device),
        world=world,
        micro_batch=micro_batch,
    )


def order_of(stepper: Stepper, unit: str) -> np.ndarray:
    order = epoch_order(N, seed=1, epoch=EPOCH)
    if unit == "source":
        return order
    factors = stepper.expander.factors(stepper.store.labels[order])
    return copy_order(order, factors, seed=1, epoch=EPOCH)


def rows(copies: Copies) -> list[tuple[float, ...]]:
    flat = copies.matrices.reshape(len(copies), 6)
    return [(int(s), *m) for s, m in zip(copies.sample, flat.tolist())]


@pytest.mark.parametrize("unit", ["source", "augmented"])
def test_any_world_trains_on_the_same_copies(unit):
    order, batch = order_of(stepper_of(0, 1), unit), 6
    everything = []
    for step in range(steps_per_epoch(len(order), batch, "drop")):
        part = global_batch(order, step, batch, "drop")
        by_world = [
            sorted(
                row
                for rank in range(world)
                for row in rows(stepper_of(rank, world)._copies(part[rank::world], EPOCH))
            )
            for world in (1, 2, 4)
        ]
        assert by_world[0] == by_world[1] == by_world[2]
        assert unit == "source" or len(by_world[0]) == batch
        everything += by_world[0]
    assert len(set(everything)) == len(everything)


def test_a_named_copy_is_that_copy():
    stepper = stepper_of(0, 1)
    share = np.array([[4, 7], [0, 0], [5, 2], [4, 1]])
    found = rows(stepper._copies(share, EPOCH))
    for row, (sample, copy) in zip(found, share.tolist()):
        alone = stepper.expander.copies(stepper.store, np.array([sample]), EPOCH)
        assert row == rows(alone)[copy]


def test_the_gradient_is_the_mean_over_the_named_copies():
    order = order_of(stepper_of(0, 1), "augmented")[:12]
    whole = stepper_of(0, 1, micro_batch=64)
    loss, terms, copies = whole.accumulate(order, EPOCH)
    assert (terms, copies) == (24, 12)
    parts = [stepper_of(rank, 2) for rank in range(2)]
    losses = [stepper.accumulate(order, EPOCH)[0] for stepper in parts]
    assert sum(losses) == pytest.approx(loss, rel=1e-5)
    gradients = [[p.grad for p in s.model.parameters()] for s in (whole, *parts)]
    for one, first, second in zip(*gradients):
        torch.testing.assert_close((first + second) / 2, one)  # as DDP averages them


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_step_is_clipped_whatever_its_scale(scale):
    """lr 0.1: clipped to 0.01 the weights move by 0.001. The scaler's factor is no gradient."""
    moved = []
    for clip_norm in (0.01, None):
        stepper = replace(stepper_of(0, 1), clip_norm=clip_norm)
        stepper.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = [p.detach().clone() for p in stepper.model.parameters()]
        stepper.accumulate(np.arange(6), EPOCH)
        stepper.update()
        steps = [p.detach() - old for p, old in zip(stepper.model.parameters(), before)]
        moved.append(float(torch.cat([step.flatten() for step in steps]).norm()))
    assert moved[0] == pytest.approx(0.001, rel=1e-3)
    assert moved[1] > 0.002


def test_micro_batches_have_the_fixed_size():
    stepper = stepper_of(0, 1, micro_batch=16)
    stepper.accumulate(np.array([0, 2, 4, 6, 8, 1]), EPOCH)  # 5 x 8 + 3 copies
    assert stepper.model.seen == [16, 16, 11]


@pytest.mark.parametrize("unit", ["source", "augmented"])
def test_what_is_expected_is_what_is_taken(unit):
    expected, taken = [], []

    stepper = stepper_of(1, 2)
    plain = stepper.store

    class Listening:
        device = plain.device

        def expect(self, positions):
            expected.extend(positions.tolist())

        def take(self, positions):
            taken.extend(positions.tolist())
            return plain.take(positions).images

        def close(self):
            """Holds nothing."""

    store = Store(plain.keys, plain.images[:0], plain.labels, Listening())
    object.__setattr__(stepper, "store", store)
    order = order_of(stepper, unit)
    steps = range(steps_per_epoch(len(order), 6, "wrap"))
    batches = [global_batch(order, step, 6, "wrap") for step in steps]
    stepper.expect(batches)
    for batch in batches:
        stepper.accumulate(batch, EPOCH)
    assert taken == expected


def test_each_step_has_its_own_gradients_and_the_average_follows():
    stepper = stepper_of(0, 1)
    stepper = replace(stepper, ema=Ema(stepper.model, 0.75))
    first, second = np.arange(4), np.arange(4, 9)
    stepper.accumulate(second, EPOCH)
    expected = [p.grad.clone() for p in stepper.model.parameters()]
    stepper.accumulate(first, EPOCH)
    stepper.accumulate(second, EPOCH)
    for parameter, gradient in zip(stepper.model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    before = [p.detach().clone() for p in stepper.model.parameters()]
    stepper.update()
    averages = stepper.ema.model.parameters()
    for old, new, average in zip(before, stepper.model.parameters(), averages, strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(average, 0.75 * old + 0.25 * new.detach())
