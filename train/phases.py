"""Phases as data: what is trainable, for how long, at which rate, when to stop. Decisions only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from train.schedule import Schedule

Keep = Literal["best loss", "best accuracy", "last"]


@dataclass(frozen=True)
class Phase:
    """One phase of a stage. patience: epochs without a better validation before it stops; keep:
    which epoch's weights go on (of the validation's, the best); frozen_norm: whether batch norm
    whose weights are frozen trains its statistics on, as PyTorch does, or is left in inference
    mode."""

    name: str
    epochs: int
    trainable: Literal["head", "all"]
    lr: float
    weight_decay: float = 0.0
    patience: int | None = None
    schedule: Schedule = field(default_factory=Schedule)
    keep: Keep = "best loss"
    frozen_norm: Literal["train", "eval"] = "train"


@dataclass(frozen=True)
class Progress:
    """How far a phase is. Epochs count from 1; 0: none finished. best: the measure to go below;
    best_val_loss: of the best epoch; val_losses: of every epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best_val_loss: float = float("inf")
    best: float = float("inf")
    val_losses: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        return cls(**{**state, "val_losses": tuple(state["val_losses"])})

    def after_epoch(
        self, val_loss: float, accuracy: float | None = None, keep: Keep = "best loss"
    ) -> "Progress":
        """The progress after one more epoch with this validation."""
        epoch, losses = self.epoch + 1, (*self.val_losses, val_loss)
        measure = _measure(epoch, val_loss, accuracy, keep)
        if measure < self.best:
            return Progress(epoch, epoch, val_loss, measure, losses)
        return Progress(epoch, self.best_epoch, self.best_val_loss, self.best, losses)

    @property
    def improved(self) -> bool:
        """Whether the last epoch is the best one."""
        return self.epoch > 0 and self.epoch == self.best_epoch


def _measure(epoch: int, val_loss: float, accuracy: float | None, keep: Keep) -> float:
    """What is to become smaller."""
    if keep == "last":
        return -float(epoch)
    if keep == "best accuracy":
        return float("inf") if accuracy is None else -accuracy
    return val_loss


def finished(phase: Phase, progress: Progress) -> bool:
    """Whether a phase ends here: all epochs done, or no gain for `patience` epochs."""
    if progress.epoch >= phase.epochs:
        return True
    waited = progress.epoch - progress.best_epoch
    return phase.patience is not None and waited >= phase.patience


def total_epochs(phases: Sequence[Phase]) -> int:
    """Epochs when nothing stops early."""
    return sum(phase.epochs for phase in phases)
