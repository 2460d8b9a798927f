"""The explanation methods behind one call: prepared images and classes -> maps.

| method | what a map says | values |
| --- | --- | --- |
| lrp | relevance for (above 0) and against the class; adds up to the logit | signed |
| gradcam | where the last maps speak for the class | 0 to 1 |
| cam | how strongly they speak, for or against (DD2424) | 0 to 1 |
| occlusion | share of black windows over a pixel that flip the call (Deep-COVID) | 0 to 1 |
| occlusion-drop | mean fall of the probability under these windows | signed |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serve.explain.gradcam import Cam, GradCam
from serve.explain.lrp import Lrp
from serve.explain.occlusion import Occluded, Occlusion, Outputs
from shards.console import RunFailed, UserError
from train.memory_limit import is_out_of_memory, what_it_says
from train.precision import Precision
from train.warp import normalise

METHODS = ("lrp", "gradcam", "cam", "occlusion", "occlusion-drop")
SIGNED = ("lrp", "occlusion-drop")
# Images of one pass. 1 core, bf16, LRP of DenseNet121 at 224: 2 at a time 0.12 s each, 4 0.09 s,
# 8 0.10 s.
BATCH = {"cpu": 4, "cuda": 32}


@dataclass(frozen=True)
class Explained:
    """maps: (N, S, S) float32; notes: per image, further figures of the method."""

    maps: np.ndarray
    notes: list[dict[str, Any]] = field(default_factory=list)


class Explainer:
    """One method made ready for one network; the set-up is paid once."""

    def __init__(
        self, method: str, model: nn.Module, size: int, outputs: Outputs, precision: str = "fp32"
    ) -> None:
        """model: in eval mode; it stays as it is. precision: fp32 or bf16, of LRP and
        occlusion-drop. UserError when the method is unknown or the network has no such explanation,
        or the device no such arithmetic."""
        check_methods([method])
        self.device = next(model.parameters()).device
        self.step = BATCH.get(self.device.type, BATCH["cpu"])
        self.explain = self._make(method, model, size, outputs, precision)

    def __call__(
        self, images: np.ndarray, targets: Sequence[int], logits: np.ndarray | None = None
    ) -> Explained:
        """images: (N, S, S) uint8, prepared; targets: the class to explain of each image; logits:
        (N,) float32, the network's for them, which LRP's maps add up to; by default those of its
        own pass. RunFailed where the memory is too small for a single image."""
        maps: list[np.ndarray] = []
        notes: list[dict[str, Any]] = []
        while len(notes) < len(images):
            part = slice(len(notes), len(notes) + self.step)
            found = self._tried(
                images[part], targets[part], None if logits is None else logits[part]
            )
            if found is None:
                continue  # with fewer at once
            maps.append(found.maps)
            notes += found.notes
        return Explained(np.concatenate(maps), notes)

    def _tried(
        self, images: np.ndarray, targets: Sequence[int], logits: np.ndarray | None
    ) -> Explained | None:
        """None where memory ran out, and the next try takes half as many."""
        try:
            return self.explain(images, targets, logits)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = what_it_says(error)
        # Behind the handler, whose traceback holds the activations.
        if self.step == 1:
            way_out = (
                "CUDA_VISIBLE_DEVICES= hides the GPU, so that the CPU explains"
                if self.device.type == "cuda"
                else "end what else takes memory, or explain on a machine with more"
            )
            raise RunFailed(f"out of memory with a single image ({reason}); {way_out}")
        self.step //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _make(
        self, method: str, model: nn.Module, size: int, outputs: Outputs, precision: str
    ) -> Callable[[np.ndarray, Sequence[int], np.ndarray | None], Explained]:
        if method == "lrp":
            rounded = Precision(precision, self.device).name == "bf16"
            lrp = Lrp(model, dtype=torch.bfloat16 if rounded else torch.float32)
            return lambda images, targets, logits: _relevance(
                lrp,
                *self._tensors(images, targets),
                None if logits is None else torch.tensor(logits, device=self.device),
            )
        if method in ("gradcam", "cam"):
            draw = GradCam(model) if method == "gradcam" else Cam(model)
            return lambda images, targets, _: Explained(
                draw(*self._tensors(images, targets)).cpu().numpy(), [{} for _ in targets]
            )
        flips = method == "occlusion"  # whose calls are those of fp32 in any arithmetic
        occlusion = Occlusion(model, outputs, size, self.device, "auto" if flips else precision)
        return lambda images, targets, _: _occluded(
            [occlusion(image, target) for image, target in zip(images, targets)], flips
        )

    def _tensors(self, images: np.ndarray, targets: Sequence[int]) -> tuple[Tensor, Tensor]:
        batch = normalise(torch.tensor(images).to(self.device))
        return batch, torch.tensor(list(targets), device=self.device)


def _relevance(lrp: Lrp, images: Tensor, classes: Tensor, logits: Tensor | None) -> Explained:
    found = lrp(images, classes, logits)
    maps = found.maps.cpu().numpy()
    notes = [
        {
            "logit": float(logit),
            "relevance_sum": float(one.sum()),
            # Without its bias the logit has the other sign: the image speaks against the class.
            "bias_decides": bool(float(logit) * one.sum() < 0),
        }
        for logit, one in zip(found.logits.tolist(), maps)
    ]
    return Explained(maps, notes)


def _occluded(found: list[Occluded], flips: bool) -> Explained:
    notes = [{"called": f.called, "windows": f.windows, "flipped": f.flipped} for f in found]
    return Explained(np.stack([f.flips if flips else f.drops for f in found]), notes)


def check_methods(methods: Sequence[str]) -> None:
    """UserError that names the first unknown one."""
    for method in methods:
        if method not in METHODS:
            raise UserError(f"no method {method!r}; there are: {', '.join(METHODS)}")
