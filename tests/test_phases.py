"""train.phases: early stopping as a property of any course of validation losses."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from train.phases import Phase, Progress, finished
from train.position import Position

LOSSES = st.lists(st.integers(0, 6).map(float) | st.just(math.nan), min_size=60, max_size=60)
EPOCHS = st.integers(1, 50)
PATIENCE = st.none() | st.integers(1, 10)


def run_phase(phase: Phase, losses: list[float]) -> Progress:
    progress = Progress()
    while not finished(phase, progress):
        progress = progress.after_epoch(losses[progress.epoch])
    return progress


def best_of(losses: list[float]) -> int:
    """The epoch (from 1) of the first smallest loss; 0 when none is a number."""
    numbers = [(loss, i) for i, loss in enumerate(losses, 1) if not math.isnan(loss)]
    return min(numbers)[1] if numbers else 0


@given(EPOCHS, PATIENCE, LOSSES)
def test_a_phase_stops_when_nothing_was_gained_for_patience_epochs(epochs, patience, losses):
    end = run_phase(Phase("p", epochs, "all", 0.1, patience=patience), losses)
    expected = epochs
    for epoch in range(1, epochs + 1):
        if patience is not None and epoch - best_of(losses[:epoch]) >= patience:
            expected = epoch
            break
    assert end.epoch == expected
    assert end.best_epoch == best_of(losses[:expected])
    seen = [loss for loss in losses[:expected] if not math.isnan(loss)]
    assert end.best_val_loss == min(seen, default=math.inf)


@given(EPOCHS, LOSSES)
def test_without_patience_every_epoch_is_trained(epochs, losses):
    assert run_phase(Phase("p", epochs, "head", 0.1), losses).epoch == epochs


@given(LOSSES)
def test_improved_is_said_after_each_new_best_epoch_only(losses):
    progress = Progress()
    assert not progress.improved
    for epoch in range(1, len(losses) + 1):
        progress = progress.after_epoch(losses[epoch - 1])
        assert progress.improved == (best_of(losses[:epoch]) == epoch)


@given(LOSSES)
def test_what_is_kept_is_the_last_or_the_most_accurate(accuracies):
    last = accurate = Progress()
    for epoch, accuracy in enumerate(accuracies[:20], 1):
        last = last.after_epoch(1.0 / epoch, accuracy, "last")
        accurate = accurate.after_epoch(float(epoch), accuracy, "best accuracy")
        assert last.improved
        assert accurate.best_epoch == best_of([-a for a in accuracies[:epoch]])
        assert accurate.epoch == len(accurate.val_losses) == epoch
        assert accurate.best_val_loss == (accurate.best_epoch or math.inf)


def test_an_epoch_begins_with_nothing_counted():
    """The first one too, whose loss the log tells."""
    begun = {"step": 0, "loss_sum": 0, "loss_count": 0, "copies": 0, "seconds": 0}
    begun |= {"step_seconds": 0, "energy_j": 0}
    assert Position().to_json().items() >= {**begun, "stage": 0, "phase": 0, "lines": 0}.items()
    at = Position(**dict.fromkeys(begun, 7), stage=1, phase=2, lines=9)
    assert at.train_loss == 1
    at.end_epoch(0.5)
    assert at.to_json().items() >= {**begun, "stage": 1, "phase": 2, "lines": 9}.items()
    at.end_phase({"epochs": 1})
    assert (at.phase, at.progress, at.epoch) == (3, Progress(), 1)
    at.end_stage()
    assert (at.stage, at.phase, at.phases, at.epoch) == (2, 0, [], 0)


@given(LOSSES, st.integers(0, 60), st.integers(0, 5))
def test_a_position_survives_json(losses, count, step):
    at = Position(step=step, lines=count, phases=[{"name": "x", "epochs": 3}])
    for loss in losses[:count]:
        if not math.isnan(loss):
            at.end_epoch(loss)
    again = Position.from_json(json.loads(json.dumps(at.to_json())))
    assert again == at
    assert again.epoch == 3 + at.progress.epoch
