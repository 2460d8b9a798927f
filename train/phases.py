"""Phases as data: what is trainable, for how long, when to stop. Decisions only."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Phase:
    """One phase of a stage. patience: epochs without a better validation loss before it stops."""

    name: str
    epochs: int
    trainable: Literal["head", "all"]
    lr: float
    weight_decay: float = 0.0
    patience: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far a phase is, as the early stop sees it. Epochs count from 1; 0: none finished."""

    epoch: int = 0
    best_epoch: int = 0
    best_val_loss: float = float("inf")

    def after_epoch(self, val_loss: float) -> "Progress":
        """The progress after one more epoch with this validation loss."""
        epoch = self.epoch + 1
        if val_loss < self.best_val_loss:
            return Progress(epoch, epoch, val_loss)
        return replace(self, epoch=epoch)

    @property
    def improved(self) -> bool:
        """Whether the last epoch is the best one."""
        return self.epoch > 0 and self.epoch == self.best_epoch


def finished(phase: Phase, progress: Progress) -> bool:
    """Whether a phase ends here: all epochs done, or no gain for `patience` epochs."""
    if progress.epoch >= phase.epochs:
        return True
    waited = progress.epoch - progress.best_epoch
    return phase.patience is not None and waited >= phase.patience
