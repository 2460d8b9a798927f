"""Learning rate schedules: a pure function of the epoch and of the validation losses so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# As torch's ReduceLROnPlateau: smaller gains than this share of the loss are none.
_THRESHOLD = 1e-4


@dataclass(frozen=True)
class Schedule:
    """kind: constant; plateau (times `factor` after more than `patience` epochs without a better
    validation loss, as torch's ReduceLROnPlateau); step (times `factor` every `every` epochs, as
    torch's StepLR)."""

    kind: Literal["constant", "plateau", "step"] = "constant"
    factor: float = 0.1
    patience: int = 5
    every: int = 7


def learning_rate(lr: float, schedule: Schedule, val_losses: Sequence[float]) -> float:
    """The rate of the epoch that follows len(val_losses) finished ones of this phase."""
    if schedule.kind == "step":
        return lr * schedule.factor ** (len(val_losses) // schedule.every)
    if schedule.kind == "plateau":
        return lr * schedule.factor ** _plateaus(val_losses, schedule.patience)
    return lr


def _plateaus(losses: Sequence[float], patience: int) -> int:
    """How often the losses failed to fall for more than `patience` epochs in a row."""
    best, waited, count = float("inf"), 0, 0
    for loss in losses:
        if loss < best * (1 - _THRESHOLD):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            waited, count = 0, count + 1
    return count
