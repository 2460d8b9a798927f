"""The networks: torchvision's and timm's, with one of two heads. (N, 3, S, S) -> logits (N, L).

Every network is fed the preprocessing contract's step 4 (ImageNet's normalisation).
"""

import copy
from collections import OrderedDict

import torch
import torchvision
from torch import Tensor, nn

from shards.console import UserError
from shards.preprocess import MEAN, STD

# squeezenet1_0 ends in ReLU and average pool: its logits are never negative, so it goes with
# softmax (as Minaee et al. train it), hardly with sigmoid.
ARCHITECTURES = (
    "densenet121",
    "densenet201",
    "resnet18",
    "resnet50",
    "vgg16",
    "squeezenet1_0",
    "squeezenet1_1",
    "xception",
)
HEADS = ("linear", "soares")
TIMM_NAMES = {"xception": "legacy_xception"}


def build_model(
    architecture: str, outputs: int, *, head: str = "linear", size: int = 224
) -> nn.Module:
    """An untrained network in channels_last. head: linear (torchvision's own end), or soares, which
    needs the input's `size`. UserError for an unknown architecture or head."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"no architecture {architecture!r}; there are: {known}")
    if head not in HEADS:
        raise UserError(f"no head {head!r}; there are: {', '.join(HEADS)}")
    model = _plain(architecture, outputs)
    if head == "soares":
        model = SoaresNet(model, outputs, size)
    return model.to(memory_format=torch.channels_last)


def _plain(architecture: str, outputs: int) -> nn.Module:
    if architecture in TIMM_NAMES:
        import timm

        return timm.create_model(TIMM_NAMES[architecture], num_classes=outputs)
    return getattr(torchvision.models, architecture)(weights=None, num_classes=outputs)


class UnitInput(nn.Module):
    """Step 4 of the preprocessing contract -> [0, 1]: undoes ImageNet's normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.std + self.mean


class SoaresNet(nn.Module):
    """Soares & Soares (2020): [0, 1] -> convolutional base -> average pool 2x2 -> flatten -> dense
    20, ReLU -> dropout 0.2 -> dense. The flatten makes it a network for one input size.

    UserError where the base's maps are smaller than 2x2.
    """

    def __init__(self, plain: nn.Module, outputs: int, size: int) -> None:
        super().__init__()
        self.unit = UnitInput()
        self.features = convolutional_base(plain)
        channels, side = _maps(self.features, size)
        if side < 2:
            raise UserError(
                f"size is {size}: the maps are {side} x {side}, and the soares head pools 2 x 2; "
                "take 64 or more (the paper: 237)"
            )
        self.classifier = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(channels * (side // 2) ** 2, 20),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(20, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(self.unit(images)))


def convolutional_base(plain: nn.Module) -> nn.Sequential:
    """What stands before the pool and the classifier: (N, 3, S, S) -> maps (N, C, s, s)."""
    if isinstance(features := plain._modules.get("features"), nn.Sequential):
        # DenseNet applies its last ReLU in forward; the others' features end in one.
        return features.append(nn.ReLU()) if hasattr(features, "denseblock1") else features
    ends = ("avgpool", "global_pool", "fc")
    parts = [(name, part) for name, part in plain.named_children() if name not in ends]
    return nn.Sequential(OrderedDict(parts))


def _maps(base: nn.Sequential, size: int) -> tuple[int, int]:
    """(channels, side) of the base's maps, without computing one."""
    on_meta = copy.deepcopy(base).to("meta").eval()
    try:
        shape = on_meta(torch.zeros(1, 3, size, size, device="meta")).shape
    except RuntimeError:  # a pooling or convolution has nothing left
        return 0, 0
    return shape[1], shape[2]


def _output_place(model: nn.Module) -> tuple[nn.Module, str]:
    """Where the output layer hangs: its parent and its name there."""
    name = "fc" if hasattr(model, "fc") else "classifier"
    part = model.get_submodule(name)
    if isinstance(part, nn.Linear | nn.Conv2d):
        return model, name
    layers = [k for k, layer in part.named_children() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return part, layers[-1]


def head(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """The output layer: one row of its weight, and one bias, per output."""
    parent, name = _output_place(model)
    layer = parent.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def replace_head(model: nn.Module, outputs: int) -> nn.Linear | nn.Conv2d:
    """Put a fresh output layer in the place of the old one, which is returned."""
    parent, name = _output_place(model)
    old = head(model)
    if isinstance(old, nn.Linear):
        fresh: nn.Module = nn.Linear(old.in_features, outputs)
    else:
        fresh = nn.Conv2d(old.in_channels, outputs, kernel_size=1)
    parent.register_module(name, fresh.to(memory_format=torch.channels_last))
    return old


def head_parameters(model: nn.Module) -> set[Tensor]:
    """What a phase that freezes the base trains: the output layer, or the whole soares head."""
    top = model.classifier if isinstance(model, SoaresNet) else head(model)
    assert isinstance(top, nn.Module)
    return set(top.parameters())


def fails_on_one_image(architecture: str, size: int, head: str = "linear") -> bool:
    """Whether training on a single image is impossible: batch norm has one value per channel."""
    with torch.device("meta"):
        model = build_model(architecture, 2, head=head, size=size).train()
    try:
        model(torch.zeros(1, 3, size, size, device="meta"))
    except ValueError:  # "Expected more than 1 value per channel when training"
        return True
    return False


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
