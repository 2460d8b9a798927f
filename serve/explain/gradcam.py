"""Grad-CAM (Selvaraju et al., ICCV 2017) for networks of `features`, average pool, `classifier`.

torchvision's DenseNet ends its features with a ReLU in place, which overwrites what a hook has
stored: so the last ReLU, the pool and the classifier are applied here, and nothing is hooked. For
such a network Grad-CAM equals CAM (Zhou et al., CVPR 2016) up to a constant.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.console import UserError


def grad_cam(model: nn.Module, images: Tensor, target_class: int | Tensor) -> Tensor:
    """How much each place speaks for a class: (N, S, S) float32 in [0, 1].

    model: in eval mode. images: (N, 3, S, S) float32, normalised. target_class: one class for all
    images, or (N,) int64. Each map's largest value is 1, unless nothing speaks for the class (0).
    UserError when the network has another build.
    """
    parts = dict(model.named_children())
    features, classifier = parts.get("features"), parts.get("classifier")
    if features is None or not isinstance(classifier, nn.Linear):
        raise UserError(
            f"no Grad-CAM for {type(model).__name__}: it needs `features` and a linear `classifier`"
        )
    targets = torch.as_tensor(target_class, device=images.device).expand(len(images))
    with torch.no_grad():
        maps = F.relu(features(images))
    with torch.enable_grad():
        maps = maps.requires_grad_()
        logits = classifier(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        chosen = logits.gather(1, targets[:, None])
        (gradient,) = torch.autograd.grad(chosen.sum(), maps)
    weights = gradient.mean((2, 3), keepdim=True)
    coarse = F.relu((weights * maps.detach()).sum(1, keepdim=True))
    fine = F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    peak = fine.amax((1, 2), keepdim=True)
    return fine / torch.where(peak > 0, peak, torch.ones_like(peak))
