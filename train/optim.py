"""The optimiser: torch's fused SGD over what a phase trains."""

from dataclasses import dataclass

import torch
from torch import nn

from train.models import head_parameters
from train.phases import Phase


@dataclass(frozen=True)
class OptimConfig:
    """SGD with momentum, as Bassi & Attux train."""

    momentum: float = 0.9


def set_trainable(model: nn.Module, phase: Phase) -> None:
    """Freeze what the phase does not train: parameters only, batch norm statistics go on moving."""
    in_head = head_parameters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(phase.trainable == "all" or parameter in in_head)
        parameter.grad = None  # a zeroed gradient would still move weights through weight decay


def build_optim(config: OptimConfig, model: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """A fresh optimiser; built again at each phase, since it holds what the phase trains."""
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=phase.lr,
        momentum=config.momentum,
        weight_decay=phase.weight_decay,
        fused=True,
    )
