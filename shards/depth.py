"""Grey values of up to 16 bits -> 8 bits: how many of their bits count is the image's depth.

A detector gives 10 to 16 bits, and files hold 16 whatever it gives. In this order:
1. the depth that the file declares: less than 16 bits a value, a PNG's sBIT, a PGM's maximum. 16
   bits declare nothing: they are the least that formats have above 8. Nor does TIFF's
   MaxSampleValue, the largest value in use, which is "not to be used to affect the visual
   appearance" (TIFF 6.0);
2. else one depth for all such images of a data set, so that they stay comparable: the smallest of
   DEPTHS that holds every value of them. Ingest finds it, or is told it by --depth; the manifest
   and the models trained on it hand it on to scoring, which --depth overrules;
3. else, for a file alone, 16 where its values need 15 or 16 bits. Where they need fewer, it may be
   a dark image of more bits, so it is refused: a wrong guess is a picture of 16 grey levels.
The grey level is then the highest 8 of the bits that count.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from shards.bad_image import BadImage

Depth = Literal[8, 10, 12, 14, 16]
DEPTHS: tuple[Depth, ...] = get_args(Depth)
UNSETTLED = 0  # bits, which hold no image: each without a declared depth is refused with its own
_SURELY_16 = 15  # bits: no detector of 14 gives more


class BeyondDepth(BadImage):
    """An image without a declared depth that does not fit the given one, or has none. bits: that
    its values need."""

    def __init__(self, reason: str, bits: int) -> None:
        super().__init__(reason)
        self.bits = bits


@dataclass(frozen=True)
class Values:
    """What a decoder gives. array: (H, W) uint8 grey levels, or uint16 values; declared: how many
    bits of those count, None where the file does not say."""

    array: np.ndarray
    declared: int | None = None

    @property
    def deep(self) -> bool:
        """Whether they have more than 8 bits."""
        return self.array.dtype != np.uint8

    @property
    def undeclared_bits(self) -> int:
        """That values without a declared depth need, at least 1; 0 of other images."""
        return bits_of(int(self.array.max())) if self.deep and self.declared is None else 0

    def grey(self, depth: int | None) -> np.ndarray:
        """(H, W) uint8. depth: for values without a declared one; None: of a file alone.
        BeyondDepth when they do not fit it, or when it is not known."""
        if not self.deep:
            return self.array
        bits = self.declared or _checked(self.undeclared_bits, depth)
        return (self.array >> (bits - 8)).astype(np.uint8)


def bits_of(largest: int) -> int:
    """That values from 0 to `largest` need, at least 1."""
    return max(1, largest.bit_length())


def depth_holding(bits: int) -> Depth:
    """The smallest of DEPTHS with at least so many bits."""
    return next(depth for depth in DEPTHS if depth >= bits)


def _checked(bits: int, depth: int | None) -> int:
    used = f"16-bit image without a declared depth uses {bits} bits"
    if depth is None:
        if bits >= _SURELY_16:
            return 16
        raise BeyondDepth(f"{used}, of how many is not known: give {_options(bits)}", bits)
    if bits > depth:
        raise BeyondDepth(f"{used}, over the depth of {depth}: {_options(bits)} holds it", bits)
    return depth


def _options(bits: int) -> str:
    *most, last = [str(depth) for depth in DEPTHS if depth >= bits]
    return f"--depth {', '.join(most)} or {last}" if most else f"--depth {last}"
