"""Explanations per second beside a training step, and beside one image at a time.

Run: python -m bench explain
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zennit.composites import EpsilonPlusFlat

from bench.config import NetworkBench, settle
from bench.images import network_inputs, raw_images
from bench.machine import synchronise
from bench.networks import build_pair, network_name
from bench.result import Rates, Result, Side, interleave
from serve.explain.lrp import EPSILON
from serve.explain.methods import Explainer
from serve.explain.occlusion import Occlusion, Outputs
from shards.labels import COVID
from train.config import TrainConfig
from train.device import choose_device
from train.precision import Precision, set_cuda
from train.warp import normalise

BAR = 0.6  # of the training step's rate


@dataclass(frozen=True)
class ExplainBench(NetworkBench):
    """How fast images are explained: LRP and Grad-CAM beside a training step of the same network
    (at least 60 % of its rate), and each beside the way it is usually written: zennit and hooks
    with one image at a time, occlusion with one window at a time."""

    number: int = 16
    """Images of one repetition; occlusion takes the first one."""
    repeats: int = 3
    """Repetitions of each side, in turns."""


def measure(config: ExplainBench) -> Result:
    """All sides run in this process on the same images, in turns."""
    config = settle(config)
    torch.set_num_threads(config.workers)
    network = network_name(config.architecture, quick=config.quick)
    device = choose_device("auto", 0)
    ours, plain = build_pair(config.architecture, len(COVID), quick=config.quick)
    ours, plain = ours.to(device).eval(), plain.to(device).eval()
    with tempfile.TemporaryDirectory(prefix="cxrstack-bench-") as folder:
        raw = raw_images(config, Path(folder, "raw"))
        images = network_inputs(raw, config, config.size)
    precision = Precision("auto", device)
    sides = _on_its_gpu(_sides(ours, plain, images, device, precision), device)
    rates = interleave("explain", sides, config.repeats)
    sides = _on_its_gpu(_windows(ours, plain, images[0], device), device)
    windows = interleave("occlusion", sides, config.repeats)
    medians = {name: side.median for name, side in {**rates, **windows}.items()}
    train = medians["train"]
    return Result(
        name="explain",
        what=(
            f"LRP of {network} at {config.size} x {config.size} with random weights, batched, in "
            f"{lrp_precision(precision)}, on {device}, beside a training step (forward, backward, "
            f"update) in {precision.name} of the same network, --workers {config.workers}"
        ),
        peer_name=f"a training step, all weights; the bar is a ratio of {BAR}",
        ours=rates["lrp"],
        peer=rates["train"],
        images=len(images),
        synthetic=raw.synthetic,
        quick=config.quick,
        extra={
            "architecture": network,
            "gradcam_to_training": round(medians["gradcam"] / train, 4),
            "lrp_fp32_to_training": round(medians["lrp fp32"] / train, 4),
            "lrp_to_zennit": round(medians["lrp"] / medians["zennit"], 4),
            "gradcam_to_hooks": round(medians["gradcam"] / medians["hooks"], 4),
            "occlusion_to_one_window": round(medians["occlusion"] / medians["one window"], 4),
            "img_s": _rounded(rates),
            "windows_s": _rounded(windows),
        },
    )


def lrp_precision(training: Precision) -> str:
    """The option of serve explain that is nearest to the training's arithmetic."""
    return "bf16" if training.name == "bf16" else "fp32"


def _rounded(rates: dict[str, Rates]) -> dict[str, float]:
    return {name: round(side.median, 3) for name, side in rates.items()}


def _on_its_gpu(sides: dict[str, Side], device: torch.device) -> dict[str, Side]:
    """The training step as train sets a GPU, all others as serve explain does: without TF32."""

    def run(side: Side, training: bool) -> int:
        set_cuda(device, tf32=training, few_shapes=training)
        return side()

    return {name: partial(run, side, name == "train") for name, side in sides.items()}


def _sides(
    ours: nn.Module,
    plain: nn.Module,
    images: np.ndarray,
    device: torch.device,
    precision: Precision,
) -> dict[str, Side]:
    """ours: channels_last; plain: contiguous, as torchvision builds it. images: (N, S, S) uint8."""
    targets = [i % len(COVID) for i in range(len(images))]
    outputs = Outputs(COVID.exclusive)
    made = {
        "lrp": Explainer("lrp", ours, images.shape[-1], outputs, lrp_precision(precision)),
        "lrp fp32": Explainer("lrp", ours, images.shape[-1], outputs),
        "gradcam": Explainer("gradcam", ours, images.shape[-1], outputs),
    }
    batch = normalise(torch.from_numpy(images).to(device))
    alone = [(one[None].contiguous(), target) for one, target in zip(batch, targets)]

    def one_by_one(explain: Callable[[nn.Module, Tensor, int], Tensor]) -> int:
        for image, target in alone:
            explain(plain, image, target)
        synchronise(device)
        return len(alone)

    def batched(explainer: Explainer) -> int:
        explainer(images, targets)
        return len(images)

    sides: dict[str, Side] = {name: partial(batched, one) for name, one in made.items()}
    return {
        "train": _training(ours, batch, targets, precision),
        **sides,
        "zennit": lambda: one_by_one(zennit_lrp),
        "hooks": lambda: one_by_one(hooked_grad_cam),
    }


def _training(model: nn.Module, images: Tensor, targets: list[int], precision: Precision) -> Side:
    """As training makes its steps: all images that a micro-batch takes, in mixed precision,
    channels_last, fused SGD."""
    trained, step_images = copy.deepcopy(model).train(), TrainConfig.micro_batch
    optim = torch.optim.SGD(trained.parameters(), lr=1e-4, momentum=0.9, fused=True)
    truth = F.one_hot(torch.tensor(targets), len(COVID)).float().to(images.device)

    def step() -> int:
        for part, labels in zip(images.split(step_images), truth.split(step_images)):
            optim.zero_grad()
            with precision.autocast():
                logits = trained(part)
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
            precision.scaler.scale(loss).backward()
            precision.scaler.step(optim)
            precision.scaler.update()
        synchronise(images.device)
        return len(images)

    return step


def _windows(
    ours: nn.Module, plain: nn.Module, image: np.ndarray, device: torch.device
) -> dict[str, Side]:
    """Windows per second over one image."""
    occlusion = Occlusion(ours, Outputs(COVID.exclusive), len(image), device, "auto")

    def batched() -> int:
        return occlusion(image, 0).windows

    def one_at_a_time() -> int:
        with torch.inference_mode():
            for window in occlusion.windows:
                black = image.copy()
                black[window] = 0
                plain(normalise(torch.from_numpy(black[None]).to(device)).contiguous()).argmax(
                    1
                ).cpu()
        return len(occlusion.windows)

    return {"occlusion": batched, "one window": one_at_a_time}


def zennit_lrp(model: nn.Module, image: Tensor, target: int) -> Tensor:
    """As zennit's documentation has it: the composite around one image; the network as it is."""
    inputs = image.clone().requires_grad_()
    composite = EpsilonPlusFlat(epsilon=EPSILON, zero_params="bias")
    with composite.context(model) as modified:
        logits = modified(inputs)
        start = torch.zeros_like(logits)
        start[:, target] = logits.detach()[:, target]
        (relevance,) = torch.autograd.grad(logits, inputs, start)
    return relevance.sum(1)


def hooked_grad_cam(model: nn.Module, image: Tensor, target: int) -> Tensor:
    """As the common packages do it: hooks on the last layer, a whole backward pass."""
    kept: list[Tensor] = []
    layer = model.get_submodule("features")
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(image)
    handle.remove()
    maps = kept[0].clone()
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), kept[0])
    weights = gradient.mean((2, 3), keepdim=True)
    coarse = F.relu((weights * F.relu(maps)).sum(1, keepdim=True))
    return F.interpolate(coarse, image.shape[-2:], mode="bilinear")[:, 0]
