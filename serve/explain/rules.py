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
_ROUNDING = 2**-8  # of bf16's values: what is lost beyond it was not lost by rounding


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
        y = _convolve(x, rule.weight, conv, rule.bias)
        ctx.conv, ctx.rule = conv, rule
        signs: tuple[Tensor, ...] = ()
        if rule.arithmetic.by_sign:  # of the products' sums, without the bias
            signs = (y > (0 if rule.bias is None else rule.bias[:, None, None]),)
        ctx.save_for_backward(x, *signs)
        return y.float()

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> tuple[Tensor, None, None]:
        x, *signs = ctx.saved_tensors
        conv, rule = ctx.conv, ctx.rule
        if rule.arithmetic.by_sign:
            (above,) = signs
            relevance = _share_out(upper[0] * above, x, rule, conv)
            relevance += _share_out(upper[0] * ~above, x, rule, conv, against=True)
        else:
            relevance = _share_out(upper[0], x, rule, conv)
        rounded = rule.arithmetic.dtype != torch.float32
        return _made_whole(relevance, upper[0]) if rounded else relevance, None, None


def _made_whole(relevance: Tensor, upper: Tensor) -> Tensor:
    """Give back what rounding took (or take what it gave), in proportion to |relevance|.

    It is 2e-5 to 1e-4 of |relevance|; but at the last convolutions, where relevance for and against
    the class nearly cancels, |relevance| is up to a hundred times the logit.
    """
    places = (1, 2, 3)
    missing = upper.sum(places, keepdim=True) - relevance.sum(places, keepdim=True)
    size = relevance.abs()
    share = missing / (size.sum(places, keepdim=True) + STABILIZER**2)
    return relevance.addcmul_(size, share.clamp(-_ROUNDING, _ROUNDING))


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


class Dense(Replacement):
    """Epsilon for a dense layer between others: each of its sums z hands on the share
    |z| / (|z| + epsilon) of its relevance, so that weak ones say less.

    In zennit the rest is lost: up to half of a logit in the heads of VGG and of Soares. Here it
    goes to the other sums whose relevance has the same sign, so that none is.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def copy(self) -> "Dense":
        return Dense(self.epsilon)

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        return _DenseFunction.apply(inputs[0], module, self.epsilon)


class _DenseFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: nn.Linear, epsilon: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.linear, ctx.epsilon = linear, epsilon
        return F.linear(x, linear.weight, linear.bias)

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        z = F.linear(x, ctx.linear.weight)
        share = upper[0] / (z + torch.where(z >= 0, ctx.epsilon, -ctx.epsilon))
        handed = share * z  # of the sign of upper
        for_it, against = (_growth(sign * upper[0], sign * handed) for sign in (1, -1))
        share *= torch.where(upper[0] > 0, for_it, against)
        return x * (share @ ctx.linear.weight), None, None


def _growth(whole: Tensor, part: Tensor) -> Tensor:
    """(N, F) -> (N, 1): the sum of what is above 0 in `whole` over that in `part`; 1 where nothing
    is."""
    total, left = (values.clamp(min=0).sum(1, keepdim=True) for values in (whole, part))
    return torch.where(left > 0, total / left, torch.ones_like(left))


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
