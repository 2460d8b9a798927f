"""The network on both sides: ours (channels_last) and plain torchvision, with the same weights."""

import copy

import torch
from torch import nn
from torchvision.models import DenseNet

from train.models import build_model


def network_name(architecture: str, *, quick: bool) -> str:
    """What `build_pair` builds, for the reader."""
    return "a toy DenseNet" if quick else architecture


def build_pair(architecture: str, outputs: int, *, quick: bool) -> tuple[nn.Module, nn.Module]:
    """(ours, plain) with random weights; quick: a DenseNet of four layers instead."""
    torch.manual_seed(0)
    if quick:
        toy = DenseNet(8, (1, 1, 1, 1), 8, num_classes=outputs)
        ours: nn.Module = toy.to(memory_format=torch.channels_last)
    else:
        ours = build_model(architecture, outputs)
    plain = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    return ours, plain
