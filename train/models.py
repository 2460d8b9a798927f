"""The networks: torchvision's, with one Linear layer at the end. (N, 3, S, S) -> logits (N, L)."""

import torch
import torchvision
from torch import Tensor, nn

from shards.console import UserError

ARCHITECTURES = ("densenet121", "densenet201")


def build_model(architecture: str, outputs: int) -> nn.Module:
    """An untrained network in channels_last. UserError for an unknown architecture."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"no architecture {architecture!r}; there are: {known}")
    model = getattr(torchvision.models, architecture)(weights=None, num_classes=outputs)
    return model.to(memory_format=torch.channels_last)


def head(model: nn.Module) -> nn.Linear:
    """The output layer."""
    classifier = model.classifier
    assert isinstance(classifier, nn.Linear)
    return classifier


def replace_head(model: nn.Module, outputs: int) -> nn.Linear:
    """Put a fresh output layer in the place of the old one, which is returned."""
    old = head(model)
    model.classifier = nn.Linear(old.in_features, outputs)
    return old


def head_parameters(model: nn.Module) -> set[Tensor]:
    """The output layer's weight and bias."""
    return set(head(model).parameters())


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit exactly. UserError that names the first difference."""
    own = model.state_dict()
    # The CheXNet file of 2017 has no num_batches_tracked: a counter that no network output uses.
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    extra = [k for k in weights if k not in own]
    shapes = [k for k in weights if k in own and weights[k].shape != own[k].shape]
    if missing or extra or shapes:
        first = (missing or extra or shapes)[0]
        raise UserError(
            f"{source} is a checkpoint of another architecture: {len(missing)} tensors missing, "
            f"{len(extra)} unknown, {len(shapes)} of another shape (the first: {first})"
        )
    model.load_state_dict(weights, strict=False)
