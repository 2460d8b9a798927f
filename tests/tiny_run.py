"""A small network that passes for the one of any run folder."""

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet

from train.runs import ModelSpec

LABELS = ("Normal", "Viral Pneumonia", "COVID-19")


def small_densenet(outputs: int = 3) -> DenseNet:
    torch.manual_seed(0)
    net = DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=outputs)
    return net.eval()


def stand_in(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **known) -> None:
    """Let every run folder have this network. known: of its ModelSpec, what matters."""
    values = {
        "architecture": "densenet121",
        "labels": LABELS,
        "exclusive": True,
        "size": 32,
        "shorter_side": None,
        "preprocessing_version": 1,
        "dataset": "covid-radiography",
        "manifest_hash": "0" * 64,
        "recipe": "test",
        "stage": "covid",
        "synthetic": True,
        "weights_sha256": "0" * 64,
    }
    spec = ModelSpec(**(values | known))
    monkeypatch.setattr("train.runs.load_run_model", lambda run, stage: (model, spec))
