"""Occlusion (Minaee et al., "Deep-COVID", arXiv 2004.09363): black windows that flip the call.

A window of 32 x 32 pixels moves over the image in steps of 16 (at 224 pixels; in proportion at
other sizes) and is painted black. Where the image is then no longer called what it was, the window
is marked. Read as: the paper gives neither number; a pixel's value is the share of the windows over
it that are marked.

The windows of an image go through the network in batches. Where the arithmetic is bf16 or fp16,
those whose call is close go through it once more in fp32, so that the calls are those of fp32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from train.loss import probabilities
from train.precision import Precision
from train.warp import normalise

WINDOW, STRIDE, REFERENCE_SIZE = 32, 16, 224
# Windows of one pass. 1 core, DenseNet121 at 224: 4 at a time 0.019 s each, 8 0.019 to 0.026 s.
BATCH = {"cpu": 4, "cuda": 128}
# bf16 logits differed from those of fp32 by at most 0.023 (1 + |logit|): random ResNet50.
_CLOSE = 0.05


@dataclass(frozen=True)
class Outputs:
    """What a network's logits mean. exclusive: the call is the largest one, else all above 0;
    output: sigmoid or softmax."""

    exclusive: bool
    output: str = "sigmoid"

    def margins(self, logits: Tensor, target: int) -> Tensor:
        """(N, L) -> (N,): above 0 where the target is called."""
        if not self.exclusive or logits.shape[1] == 1:
            return logits[:, target]
        others = logits.clone()
        others[:, target] = -torch.inf
        return logits[:, target] - others.amax(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, L) -> (N, L)."""
        return probabilities(logits, self.output)


@dataclass(frozen=True)
class Occluded:
    """flips, drops: (S, S) float32, means over the windows that cover a pixel: of the flips of the
    call (0 or 1), and of the fall of the target's probability; called: the whole image is called
    the target, without which nothing can flip; windows: their number; flipped: of them."""

    flips: np.ndarray
    drops: np.ndarray
    called: bool
    windows: int
    flipped: int


class Occlusion:
    """One network, and the windows for its size of image."""

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs,
        size: int,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        """model: in eval mode, on the device, channels_last for speed; precision: see
        train.precision; only the drops are rounded by it."""
        self.model, self.outputs, self.device = model, outputs, device
        self.windows = list(windows(size))
        self.precision = Precision(precision, device)
        self.cover = np.zeros((size, size), np.float32)
        for place in self.windows:
            self.cover[place] += 1

    def __call__(self, image: np.ndarray, target: int) -> Occluded:
        """image: (S, S) uint8, prepared; target: the class whose call is watched."""
        with torch.inference_mode():
            whole = self.model(normalise(torch.tensor(image[None]).to(self.device))).float()
            called = bool(self.outputs.margins(whole, target)[0] > 0)
            logits = self._logits(image, target)
            kept = (self.outputs.margins(logits, target) > 0).cpu().numpy()
            before = self.outputs.probabilities(whole)[:, target]
            fall = (before - self.outputs.probabilities(logits)[:, target]).cpu().numpy()
        flipped = ~kept if called else np.zeros_like(kept)
        return Occluded(
            flips=self._spread(flipped.astype(np.float32)),
            drops=self._spread(fall),
            called=called,
            windows=len(self.windows),
            flipped=int(flipped.sum()),
        )

    def _logits(self, image: np.ndarray, target: int) -> Tensor:
        """(windows, L) float32: of the image with each window black."""
        with self.precision.autocast():
            logits = self._pass(image, range(len(self.windows)))
        if self.precision.name == "fp32":
            return logits
        margins = self.outputs.margins(logits, target).abs()
        close = torch.nonzero(margins < _CLOSE * (1 + logits.abs().amax(1))).flatten()
        if len(close):
            logits[close] = self._pass(image, close.tolist())
        return logits

    def _pass(self, image: np.ndarray, chosen: "range | list[int]") -> Tensor:
        step = BATCH.get(self.device.type, BATCH["cpu"])
        found = []
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            batch = np.repeat(image[None], len(part), axis=0)
            for row, window in enumerate(part):
                batch[row][self.windows[window]] = 0
            images = normalise(torch.from_numpy(batch).to(self.device))
            found.append(self.model(images).float())
        return torch.cat(found)

    def _spread(self, values: np.ndarray) -> np.ndarray:
        total = np.zeros_like(self.cover)
        for place, value in zip(self.windows, values):
            total[place] += value
        return total / self.cover


def windows(size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window; the last ones of a row and a column end with the image."""
    scaled = partial(_scaled, size=size)
    window, stride = scaled(WINDOW), scaled(STRIDE)
    starts = sorted({*range(0, size - window + 1, stride), size - window})
    for top in starts:
        for left in starts:
            yield slice(top, top + window), slice(left, left + window)


def _scaled(pixels: int, size: int) -> int:
    return max(1, min(size, round(pixels * size / REFERENCE_SIZE)))
