"""The LRP rules that cost time, as zennit hooks that compute no more than they must.

Each hook takes the place of its module's forward while it is registered; its backward hands on
relevance in the place of a gradient. What they compute is what zennit's rules of the same name
compute (tests compare them); zennit runs a layer's forward and backward twice for each of them,
clones every layer's input, and keeps a graph for each.

x: a layer's input, w: its weight; x+ and w+: positive parts, x- and w-: negative parts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from zennit.core import Hook, RemovableHandle, RemovableHandleList

STABILIZER = 1e-6  # zennit's


class Replacement(Hook):
    """A hook that stands in for its module's forward."""

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """The module's output, with the rule as its backward."""
        raise NotImplementedError

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Take the forward's place until the handles are removed."""
        self.module = module
        module.forward = lambda *inputs: self.run(module, *inputs)
        return RemovableHandleList([RemovableHandle(self)])

    def remove(self) -> None:
        """Give the module its own forward back."""
        vars(self.module).pop("forward", None)
        super().remove()


@dataclass(frozen=True)
class Arithmetic:
    """dtype: of the convolution. nonnegative: no input is below 0 (behind a ReLU), which halves the
    work. by_sign: an output below zero is explained by the products below zero instead: for a
    convolution that another one reads directly (Xception's depthwise ones), where an output may
    have no positive product at all, and its relevance, a fifth of all, would be lost.

    Between the layers all is float32: with bf16 there, 1 to 6 % of the relevance got lost."""

    dtype: torch.dtype = torch.float32
    nonnegative: bool = False
    by_sign: bool = False


class Plus(Replacement):
    """alpha 1, beta 0 for convolutions (zennit's ZPlus without the bias): relevance goes where the
    products x w are positive, in proportion. The bias gets none."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.arithmetic = arithmetic

    def copy(self) -> "Plus":
        return Plus(self.arithmetic)

    def register(self, module: nn.Module) -> RemovableHandleList:
        assert isinstance(module, nn.Conv2d)
        dtype = self.arithmetic.dtype
        self.weight = module.weight.detach().to(dtype)
        self.bias = None if module.bias is None else module.bias.detach().to(dtype)
        self.positive, self.negative = self.weight.clamp(min=0), self.weight.clamp(max=0)
        return super().register(module)

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        return _PlusFunction.apply(inputs[0], module, self)


class _PlusFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d, rule: Plus) -> Tensor:
        x = x.to(rule.arithmetic.dtype)
        ctx.save_for_backward(x)
        ctx.conv, ctx.rule = conv, rule
        return _convolve(x, rule.weight, conv, rule.bias).float()

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        conv, rule = ctx.conv, ctx.rule
        if not rule.arithmetic.by_sign:
            return _share_out(upper[0], x, rule, conv), None, None
        above = _convolve(x, rule.weight, conv) > 0
        speaking = _share_out(upper[0] * above, x, rule, conv)
        return speaking + _share_out(upper[0] * ~above, x, rule, conv, against=True), None, None


def _share_out(
    upper: Tensor, x: Tensor, rule: Plus, conv: nn.Conv2d, *, against: bool = False
) -> Tensor:
    """Relevance in proportion to the products x w above 0, or, against, below 0."""
    like, unlike = (rule.negative, rule.positive) if against else (rule.positive, rule.negative)
    parts = [(x, like)]
    if not rule.arithmetic.nonnegative:
        parts = [(x.clamp(min=0), like), (x.clamp(max=0), unlike)]
    total = _convolve(*parts[0], conv)
    for part in parts[1:]:
        total += _convolve(*part, conv)
    total += -STABILIZER if against else STABILIZER
    share = (upper / total).to(x.dtype)
    relevance = _back(share, *parts[0], conv).mul_(parts[0][0])
    for part in parts[1:]:
        relevance.addcmul_(_back(share, *part, conv), part[0])
    return relevance.float()


def _convolve(x: Tensor, weight: Tensor, conv: nn.Conv2d, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _back(upper: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution's backward for its input: (N, C, H, W)."""
    made, _, _ = torch.ops.aten.convolution_backward(
        *(upper, x, weight, None, conv.stride, conv.padding, conv.dilation),
        *(False, (0, 0), conv.groups, (True, False, False)),
    )
    return made


def _stable(value: Tensor) -> Tensor:
    return value + torch.where(value >= 0, STABILIZER, -STABILIZER)


class PassThrough(Replacement):
    """ReLU and clamp hand relevance on as it is (zennit's Pass)."""

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        return _PassFunction.apply(inputs[0], type(module).forward, module)


class _PassFunction(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, forward: Any, module: nn.Module) -> Tensor:
        return forward(module, x)

    @staticmethod
    def backward(ctx: FunctionCtx, *upper: Tensor) -> tuple[Tensor, None, None]:
        return upper[0], None, None


class Sum(Replacement):
    """The Z rule for an addition: each summand gets its share of the sum."""

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        return _SumFunction.apply(*inputs)


class _SumFunction(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, one: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(one, other)
        return one + other

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> tuple[Tensor, Tensor]:
        one, other = ctx.saved_tensors
        share = upper[0] / _stable(one + other)
        return one * share, other * share


class Output(Replacement):
    """The dense layer that gives the logits. Relevance starts here, from the logits.

    Where one logit starts, epsilon would only shrink the whole map, by z / (z + 0.1): it is left
    out, so that the map adds up to the logit. z, the logit without its bias, is what the image
    gives; where the bias alone turns its sign, the map adds up to z, since red must stay for the
    class.
    """

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        return _OutputFunction.apply(inputs[0], module)


class _OutputFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: nn.Linear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.linear = linear
        return F.linear(x.float(), linear.weight, linear.bias)

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> tuple[Tensor, None]:
        x = ctx.saved_tensors[0].float()
        z = F.linear(x, ctx.linear.weight)
        turned = z * upper[0] <= 0
        start = torch.where(turned & (upper[0] != 0), torch.ones_like(z), upper[0] / _stable(z))
        return x * (start @ ctx.linear.weight), None
