"""Grad-CAM (Selvaraju et al., ICCV 2017) and CAM (Zhou et al., CVPR 2016) on the last maps.

torchvision ends features with ReLUs in place, which overwrite what a hook has stored: so nothing is
hooked; the network is cut at its last maps (serve/explain/split.py). Where one linear layer follows
the average of the maps, Grad-CAM equals the positive part of CAM up to a constant.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve.explain.canonise import POOLS
from serve.explain.split import split
from shards.console import UserError


class GradCam:
    """The gradient of the logit, averaged over the places, weighs the maps; positive part."""

    def __init__(self, model: nn.Module) -> None:
        """model: in eval mode; it stays as it is."""
        self.parts = split(model)

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """images: (N, 3, S, S) float32, normalised; classes: (N,) int64, to be explained.

        Returns (N, S, S) float32 in [0, 1]; a map's largest value is 1, unless nothing speaks for
        the class (0).
        """
        with torch.no_grad():
            maps = self.parts.body(images)
        with torch.enable_grad():
            maps = maps.detach().requires_grad_()
            chosen = self.parts.head(maps).gather(1, classes[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), maps)
        weights = gradient.float().mean((2, 3), keepdim=True)
        coarse = F.relu((weights * maps.detach()).sum(1, keepdim=True))
        return to_peak(_enlarge(coarse, images))


class Cam:
    """As the DD2424 project shows it: |sum of classifier weight x ReLU(features)| / maximum."""

    def __init__(self, model: nn.Module) -> None:
        """UserError when more than one layer stands between the maps and the logits."""
        self.parts = split(model)
        layer = self.parts.output
        self.weight = layer.weight.detach().flatten(1)
        pooled = any(isinstance(m, POOLS) for m in self.parts.head.modules())
        if not (self.parts.single and pooled):
            raise UserError(
                f"no CAM for {type(model).__name__}: it needs one output layer right behind the "
                "average of the maps; take gradcam"
            )

    def __call__(self, images: Tensor, classes: Tensor) -> Tensor:
        """As GradCam, with the absolute value of what speaks for or against the class."""
        with torch.no_grad():
            maps = self.parts.body(images).float()
            coarse = torch.einsum("nc,nchw->nhw", self.weight[classes], F.relu(maps))
            return to_peak(_enlarge(coarse[:, None].abs(), images))


def _enlarge(coarse: Tensor, images: Tensor) -> Tensor:
    """(N, 1, h, w) -> (N, S, S) of the images."""
    size = images.shape[-2:]
    return F.interpolate(coarse.float(), size, mode="bilinear", align_corners=False)[:, 0]


def to_peak(maps: Tensor) -> Tensor:
    """Divide each map by its largest value, where that is above 0."""
    peak = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(peak > 0, peak, torch.ones_like(peak))
