"""The optimiser over what a phase trains: torch's fused ones, or NVIDIA apex's where it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shards.console import UserError
from train.models import head_parameters
from train.phases import Phase


@dataclass(frozen=True)
class OptimConfig:
    """name: torch's, or apex-sgd and apex-adam, NVIDIA apex's FusedSGD and FusedAdam (a GPU only);
    momentum: SGD's; clip_norm: the gradients' largest norm, None: not clipped."""

    name: Literal["sgd", "adam", "adamw", "apex-sgd", "apex-adam"] = "sgd"
    momentum: float = 0.9
    clip_norm: float | None = None


def set_trainable(model: nn.Module, phase: Phase) -> None:
    """Freeze the parameters that the phase does not train."""
    in_head = head_parameters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(phase.trainable == "all" or parameter in in_head)
        parameter.grad = None  # a zeroed gradient would still move weights through weight decay


def set_mode(model: nn.Module, phase: Phase) -> None:
    """Training mode, but inference mode for frozen batch norm where the phase wants that."""
    model.train()
    if phase.frozen_norm == "eval":
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
                module.eval()


def build_optim(config: OptimConfig, model: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """A fresh optimiser; built again at each phase, since it holds what the phase trains.

    UserError when apex is asked for and is not there.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    values: dict[str, Any] = {"lr": phase.lr, "weight_decay": phase.weight_decay}
    if config.name in ("sgd", "apex-sgd"):
        values["momentum"] = config.momentum
    if config.name.startswith("apex-"):
        return _apex(config.name, parameters[0].device)(parameters, **values)
    builders: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    if config.name not in builders:
        known = ", ".join([*builders, "apex-sgd", "apex-adam"])
        raise UserError(f"no optimiser {config.name!r}; there are: {known}")
    optim = builders[config.name](parameters, fused=True, **values)
    if config.name == "sgd" and config.momentum:
        # torch's fused SGD has memory that nobody wrote for momentum where fp16's scaler skips the
        # first step, and the next one adds it to the weights. From zero the first step is the same.
        for parameter in parameters:
            optim.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optim


def check_optim(config: OptimConfig, device: torch.device) -> None:
    """UserError when apex is asked for and is not there."""
    if config.name.startswith("apex-"):
        _apex(config.name, device)


def _apex(name: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    if device.type != "cuda":
        raise UserError(f"--optim.name {name} needs a GPU; take {name.removeprefix('apex-')}")
    try:
        from apex.optimizers import FusedAdam, FusedSGD
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--optim.name {name}, but NVIDIA apex is not installed ({error}); build it from "
            "github.com/NVIDIA/apex (the package index's `apex` is another program), or take "
            f"{name.removeprefix('apex-')}: torch's fused one"
        ) from error
    if name == "apex-sgd":
        return FusedSGD
    return lambda parameters, **values: FusedAdam(parameters, adam_w_mode=False, **values)


def set_lr(optim: torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next steps."""
    for group in optim.param_groups:
        group["lr"] = lr


def clear_gradients(optim: torch.optim.Optimizer) -> None:
    """No gradients at all. Not optim.zero_grad: apex's takes other arguments than torch's."""
    for group in optim.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def clip_gradients(optim: torch.optim.Optimizer, max_norm: float) -> None:
    """Scale the gradients so that their common norm is at most `max_norm`."""
    parameters = [p for group in optim.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, max_norm)
