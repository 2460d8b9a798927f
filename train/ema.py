"""The moving average of a network's weights, which is what is validated and kept when it is on."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """`model` is the averaged network, in eval mode. After each step: average = decay * average +
    (1 - decay) * network; batch norm statistics too, counters are copied. It starts as the network
    itself, at the beginning of each phase.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model`, which has just made a step."""
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
