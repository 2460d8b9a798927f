"""train.validate: every sample once, on any number of ranks, and the numbers of a single one."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.augment import EIGHT, NONE
from train.dist import World
from train.expand import Expander
from train.loss import Loss
from train.metrics import Metrics
from train.precision import Precision
from train.store import Store
from train.validate import validate

SIZE, N = 32, 13


class Seeing(nn.Module):
    """A linear network that notes the grey level in the middle of each image that it sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * 16, 2))
        self.seen: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += images[:, 0, SIZE // 2, SIZE // 2].tolist()
        return self.net(images)


def make_store() -> Store:
    """13 images, each of one grey level in the middle; a third of the labels is unknown."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (N, SIZE, SIZE), np.uint8))
    images[:, SIZE // 2, SIZE // 2] = torch.arange(N, dtype=torch.uint8) * 10
    labels = rng.integers(-1, 2, (N, 2)).astype(np.int8)
    return Store(tuple(f"k{i}" for i in range(N)), images, labels)


class Gathered(Exception):
    """A rank has given its rows to the others."""


def validated(model: nn.Module, expander: Expander, world: World) -> Metrics:
    return validate(
        model,
        make_store(),
        expander,
        exclusive=False,
        world=world,
        precision=Precision("fp32", world.device),
        micro_batch=4,
        loss=Loss(),
    )


def on_ranks(size: int, expander: Expander, monkeypatch) -> tuple[list[Metrics], list[float]]:
    """What each of so many ranks returns, and all that their networks saw: each rank runs to its
    exchange, then again with what all have given."""
    given: list[Tensor] = []
    seen: list[float] = []

    def give(parts: list[Tensor], own: Tensor) -> None:
        given.append(own)
        raise Gathered

    def receive(parts: list[Tensor], own: Tensor) -> None:
        for part, rows in zip(parts, given, strict=True):
            part.copy_(rows)

    def run(rank: int, model: Seeing) -> Metrics:
        world = World("cpu")
        world.rank, world.size = rank, size
        return validated(model, expander, world)

    monkeypatch.setattr("train.dist.dist.all_gather", give)
    for rank in range(size if size > 1 else 0):
        with pytest.raises(Gathered):
            run(rank, Seeing())
    monkeypatch.setattr("train.dist.dist.all_gather", receive)
    found = []
    for rank in range(size):
        model = Seeing()
        found.append(run(rank, model))
        seen += model.seen
    return found, seen


@pytest.mark.parametrize(
    "expander", [Expander({}, NONE, 0, SIZE), Expander({0: EIGHT}, NONE, 0, SIZE)]
)
def test_any_number_of_ranks_sees_each_image_once_and_finds_the_same(expander, monkeypatch):
    (alone,), once = on_ranks(1, expander, monkeypatch)
    assert len(once) == expander.factors(make_store().labels).sum()
    for size in range(2, 17):  # also more ranks than images
        found, seen = on_ranks(size, expander, monkeypatch)
        assert sorted(seen) == sorted(once), size
        for metrics in found:
            assert metrics.loss == pytest.approx(alone.loss, rel=1e-5)
            assert metrics.accuracy == pytest.approx(alone.accuracy)
            assert metrics.auroc == pytest.approx(alone.auroc, nan_ok=True)


class Shift(nn.Module):
    """Logits that no image changes."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return torch.tensor([[2.0, -1.0]]).expand(len(images), 2)


def test_the_loss_is_the_mean_over_all_copies_known_labels():
    found = validated(Shift().train(), Expander({0: EIGHT}, NONE, 0, SIZE), World("cpu"))
    losses = []
    for labels in make_store().labels.tolist():
        for label, logit in zip(labels, (2.0, -1.0)):
            own = [np.log1p(np.exp(-logit if label == 1 else logit))] if label != -1 else []
            losses += own * (8 if labels[0] == 1 else 1)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-6)
