"""train.config: settings that do not fit the data are named before anything is trained."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_recipes import TWO

from shards.console import UserError
from shards.labels import Vocabulary
from train.config import check_config, check_stage, loss_of, without_skipped
from train.recipes import recipe
from train.weights import StartConfig

STAGE = recipe("deepcovid-resnet18").stages[0]


@pytest.mark.parametrize(
    ("stage", "vocabulary", "processes", "message"),
    [
        (STAGE, Vocabulary(TWO.names, False), 1, "output softmax needs labels of which each image"),
        (replace(STAGE, batch=3), TWO, 4, "batch is 3, fewer than the 4 processes"),
        (replace(STAGE, batch=7), TWO, 4, "batch norm cannot train on one image of 32 pixels"),
        (replace(STAGE, class_weights=(("x", 1.0),)), TWO, 1, "no label 'x'"),
        (replace(STAGE, class_weights=(("Other", 0),)), TWO, 1, "must be over 0"),
        (replace(STAGE, class_weights=(("Other", 1), ("Other", 2))), TWO, 1, "and given once"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named(stage, vocabulary, processes, message):
    config = replace(recipe("deepcovid-resnet18"), size=32)
    with pytest.raises(UserError, match=message):
        check_stage(config, stage, vocabulary, processes)


@pytest.mark.parametrize(
    ("changes", "processes", "fits"),
    [
        ({"batch_unit": "source"}, 2, False),  # five copies of each COVID-19 image
        ({}, 2, True),
        ({}, 3, False),
        ({"batch_unit": "source", "variations": ()}, 2, True),
        ({"batch_unit": "source", "variations": (), "batch": 21}, 2, False),
    ],
)
def test_sync_norm_needs_as_many_copies_in_each_process(changes, processes, fits):
    config, stage = replace(recipe("deepcovid-resnet18"), sync_norm=True), replace(STAGE, **changes)
    check_stage(replace(config, sync_norm=False), stage, TWO, processes)
    refused = pytest.raises(
        UserError, match=r"--sync-norm waits .* take --stages\.covid\.batch-unit"
    )
    with nullcontext() if fits else refused:
        check_stage(config, stage, TWO, processes)


def test_the_least_and_the_most_that_is_allowed_is():
    config = replace(recipe("network-a"), checkpoint_every_s=0.0, size=32, micro_batch=3)
    check_config(replace(config, seed=0, keep_checkpoints=1))
    check_config(replace(config, seed=2**32 - 1))
    for changes in ({"seed": 2**32}, {"size": 31}, {"micro_batch": 2}, {"keep_checkpoints": 0}):
        (name,) = changes
        with pytest.raises(UserError, match=f"{name} is {changes[name]}"):
            check_config(replace(config, **changes))


def test_class_weights_stand_at_their_labels():
    loss = loss_of(replace(STAGE, class_weights=(("COVID-19", 2.5),)), TWO, torch.device("cpu"))
    assert loss.weights is not None
    assert (loss.output, loss.weights.tolist()) == ("softmax", [1.0, 2.5])
    assert loss_of(STAGE, TWO, torch.device("cpu")).weights is None


def test_stages_that_another_run_has_trained_are_left_out():
    config = replace(recipe("network-c"), skip_stages=1)
    with pytest.raises(
        UserError, match=r"skip_stages is 1, start.kind is imagenet; the recipe has"
    ):
        without_skipped(config)
    config = replace(config, start=StartConfig("checkpoint", Path("run")))
    assert without_skipped(config).stages == config.stages[1:]
    assert without_skipped(recipe("network-a")) == recipe("network-a")
    with pytest.raises(UserError, match="at least one is trained"):
        without_skipped(replace(config, skip_stages=2))
