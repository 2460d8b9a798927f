"""train.epoch: the rate that a step is made at, and what dropout's numbers are addressed by."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from test_engine import Meddler, newest_state, terminate, trained
from tiny_training import CONFIG, COVID

from train.epoch import PhaseRun
from train.log import read_metrics
from train.phases import Phase
from train.position import Position
from train.schedule import Schedule
from train.step import Stepper
from train.stop import Interrupted


@pytest.mark.usefixtures("tiny_network")
def test_steps_have_the_schedules_rate_also_after_a_stop(tiny_shards, tmp_path, monkeypatch):
    schedule = Schedule("step", factor=0.5, every=1)
    phases = (Phase("head", 1, "head", 0.08), Phase("all", 3, "all", 0.04, schedule=schedule))
    config = replace(CONFIG, stages=(replace(COVID, phases=phases),))
    rates: list[float] = []
    update = Stepper.update

    def noting(stepper: Stepper) -> None:
        update(stepper)
        (rate,) = {group["lr"] for group in stepper.optim.param_groups}
        rates.append(rate)
        if len(rates) == 14:  # the second step of the third epoch of the second phase
            terminate(torch.empty(0))

    speeds: list[float] = []
    end_epoch = Position.end_epoch

    def ending(at: Position, *words: object) -> None:
        speeds.append(at.copies / at.step_seconds)
        end_epoch(at, *words)

    monkeypatch.setattr(Position, "end_epoch", ending)
    monkeypatch.setattr(Stepper, "update", noting)
    with pytest.raises(Interrupted):
        trained(tiny_shards, tmp_path, config)
    trained(tiny_shards, tmp_path, config)
    expected = [0.08, 0.04, 0.02, 0.01]
    assert rates == [rate for rate in expected for _ in range(4)]
    lines = read_metrics(tmp_path)
    assert [line["lr"] for line in lines] == expected
    assert [line["img_s"] for line in lines] == speeds


@pytest.mark.usefixtures("tiny_network")
def test_stopped_in_a_validation_no_step_is_made_twice(tiny_shards, tmp_path, monkeypatch):
    Meddler(monkeypatch, 5, terminate)  # behind the four steps
    with pytest.raises(Interrupted):
        trained(tiny_shards, tmp_path)
    assert newest_state(tmp_path)["position"]["step"] == 4


def seed_of(stage: int, epoch: int, step: int, rank: int, seed: int) -> int:
    """What a rank draws dropout's numbers from in a step."""
    run = PhaseRun.__new__(PhaseRun)
    run.at = Position(stage=stage, step=step)
    run.stepper = SimpleNamespace(
        world=SimpleNamespace(rank=rank), expander=SimpleNamespace(seed=seed)
    )
    run._seed(epoch)
    return torch.initial_seed()


def test_dropouts_numbers_are_those_of_the_stage_epoch_step_rank_and_seed_alone():
    places = list(product(range(3), repeat=5))
    seeds = [seed_of(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert seeds == [seed_of(*place) for place in places]
    assert seed_of(1, 2, 3, 4, 5) == 7827519638657613264  # as in the versions before
