"""A network in the form that relevance propagation needs: the same function, built otherwise.

`canonical(model)` traces the model (torch.fx) and rebuilds it: every operation is a module of its
own, and no batch norm is left. Behind a convolution it is merged into that convolution. Before a
ReLU and a convolution (DenseNet) the two become one clamp, and scale and shift go into the
convolution, as arXiv 2211.17174 does it: with s > 0, relu(s x + t) = s max(x, -t/s) + t. Before
DenseNet's last pool and dense layer it stays, as a layer of one input per output: with its shift in
the logit's bias, that bias would decide one logit in four, and no map can add up to such a logit.

The model itself is never touched: unchanged weights are shared, changed ones are copies.
"""

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shards.console import UserError
from train.models import UnitInput


class Add(nn.Module):
    """The sum of two branches."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class Concat(nn.Module):
    """Tensors side by side along the channels."""

    def forward(self, tensors: list[Tensor], dim: int = 1) -> Tensor:
        return torch.cat(tensors, dim)


class Clamp(nn.Module):
    """min(max(x, low), high) per channel: a ReLU whose corner lies elsewhere. low, high: (C,)."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low[:, None, None].contiguous())
        self.register_buffer("high", high[:, None, None].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)


class Affine(nn.Module):
    """s x + t per channel: what a batch norm is in eval mode. scale, shift: (C,)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None, None].contiguous())
        self.register_buffer("shift", shift[:, None, None].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class Mean(nn.Module):
    """(N, C, H, W) -> (N, C) or (N, C, 1, 1): the average over the places."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=self.keep)


POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, Mean)
_ADDS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_DROPOUTS = (F.dropout, F.dropout2d)
_THROUGH = (nn.Dropout, nn.Dropout2d, nn.Identity)
_MINIMUM_SCALE = 1e-12  # of a batch norm: below it the channel is a constant


def canonical(model: nn.Module) -> fx.GraphModule:
    """The same function without batch norms, every operation a module; in eval mode.

    UserError when the network holds what has no rule here (a batch norm that stands alone, an
    operation that is no layer).
    """
    traced = as_modules(model)
    graph = _Graph(traced)
    graph.merge_backwards()
    graph.pool_first()
    graph.merge_forwards()
    left = [node for node, _ in graph.nodes_of(nn.BatchNorm2d, nn.BatchNorm1d)]
    if left:
        raise UserError(
            f"no relevance propagation for {type(model).__name__}: its batch norm {left[0].target} "
            "neither follows a convolution nor stands before a ReLU and one; take gradcam"
        )
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.eval()


def as_modules(model: nn.Module) -> fx.GraphModule:
    """The same function as a graph whose every operation is a module that is called once, changes
    nothing in place and is shared with nothing; its tensors are the model's own. In eval mode.

    UserError when the forward cannot be traced, or has an operation that is no layer.
    """
    if model.training:
        raise ValueError("the model is in training mode; call eval() first")
    tensors = [*model.parameters(), *model.buffers()]
    own = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    try:
        traced = fx.GraphModule(own, _Tracer().trace(own))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{type(model).__name__} is no network that can be taken apart: its forward depends on "
            f"its data ({error}); take occlusion"
        ) from error
    graph = _Graph(traced)
    graph.functions_to_modules()
    graph.drop_identities()
    traced.graph.lint()
    traced.recompile()
    return traced.eval()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, UnitInput) or super().is_leaf_module(module, name)


class _Graph:
    """The rewriting steps, each over a traced network."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.names = 0

    def module_of(self, node: object) -> nn.Module | None:
        """The module that a node calls."""
        if isinstance(node, fx.Node) and node.op == "call_module":
            return self.traced.get_submodule(str(node.target))
        return None

    def nodes_of(self, *kinds: type[nn.Module]) -> Iterator[tuple[fx.Node, Any]]:
        """(node, module) of every call of such a module, in order."""
        for node in list(self.traced.graph.nodes):
            module = self.module_of(node)
            if isinstance(module, kinds):
                yield node, module

    def put(self, node: fx.Node, module: nn.Module) -> None:
        """Let a node call this module, under a name of its own."""
        while hasattr(self.traced, name := f"canonical_{self.names}"):
            self.names += 1
        self.traced.add_submodule(name, module)
        node.op, node.target = "call_module", name

    def skip(self, node: fx.Node) -> None:
        """Take a node out; its first argument stands in its place."""
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        self.traced.graph.erase_node(node)

    def functions_to_modules(self) -> None:
        """Every function becomes a module; every module is called once, and not in place."""
        for node in list(self.traced.graph.nodes):
            if node.op in ("call_function", "call_method"):
                self._function_to_module(node)
        for node, module in self.nodes_of(nn.Module):
            if isinstance(module, nn.ReLU):
                self.put(node, nn.ReLU())
            else:
                self.put(node, _shallow(module))

    def _function_to_module(self, node: fx.Node) -> None:
        made = _module_for(node)
        if made is not None:
            module, arguments = made
            node.args, node.kwargs = arguments, {}
            self.put(node, module)
        elif node.target not in (torch.flatten, "flatten"):
            raise UserError(
                f"the network has an operation that is no layer: "
                f"{getattr(node.target, '__name__', node.target)}; take occlusion"
            )

    def drop_identities(self) -> None:
        """In eval mode a dropout does nothing."""
        for node, _ in self.nodes_of(*_THROUGH):
            self.skip(node)

    def merge_backwards(self) -> None:
        """Convolution, batch norm -> one convolution."""
        for node, norm in self.nodes_of(nn.BatchNorm2d):
            before = node.args[0]
            conv = self.module_of(before)
            if isinstance(before, fx.Node) and isinstance(conv, nn.Conv2d) and _alone(before):
                self.put(before, fuse_conv_bn_eval(conv, norm))
                self.skip(node)

    def pool_first(self) -> None:
        """1x1 convolution, average pool -> average pool, convolution (DenseNet's transitions).

        The two commute. Pooling the convolution's output, whose signs are mixed, by the Z rule
        divides by sums near zero; pooling its input shares out what is proportional to that sum.
        """
        for node, pool in self.nodes_of(nn.AvgPool2d):
            before = node.args[0]
            conv = self.module_of(before)
            if not (isinstance(before, fx.Node) and isinstance(conv, nn.Conv2d)):
                continue
            if _alone(before) and _is_pointwise(conv) and pool.padding == 0:
                before.target, node.target = node.target, before.target

    def merge_forwards(self) -> None:
        """Batch norm, ReLU, (average pool,) convolution -> clamp, (pool,) convolution."""
        for node, norm in self.nodes_of(nn.BatchNorm2d):
            relu = _only_user(node)
            target = self._layer_after(relu)
            if relu is None or target is None or not isinstance(self.module_of(relu), nn.ReLU):
                continue
            scale, shift = _scale_and_shift(norm)
            layer = self.module_of(target)
            if isinstance(layer, nn.Conv2d):
                low, high = _corners(scale, shift)
                self.put(node, Clamp(low, high))
                self.skip(relu)
                self.put(target, _with_affine_input(layer, scale, shift))
            else:
                self.put(node, Affine(scale, shift))

    def _layer_after(self, node: fx.Node | None) -> fx.Node | None:
        """The one layer that reads a node, perhaps through average pools and a flatten."""
        while node is not None:
            node = _only_user(node)
            module = self.module_of(node)
            if isinstance(module, nn.Linear):
                return node
            if isinstance(module, nn.Conv2d):
                # A padded zero would have to become -t/s: not the case in any DenseNet.
                return node if set(module.padding) == {0} and module.groups == 1 else None
            passed = isinstance(module, (*POOLS, nn.Flatten))
            if node is not None and not (passed or _is_flatten(node)):
                return None
        return None


def _module_for(node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]] | None:
    """The module in the place of a function, and its arguments; None where there is none."""
    target, first = node.target, node.args[0]
    if target in _ADDS and len(node.args) == 2 and isinstance(node.args[1], fx.Node):
        return Add(), node.args
    if target is torch.cat:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return Concat(), (first, dim)
    if target in _RELUS or target in ("relu", "relu_"):
        return nn.ReLU(), (first,)
    if target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
        return nn.AdaptiveAvgPool2d(size), (first,)  # type: ignore[arg-type]
    if target in ("mean", torch.mean):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if dims in ((2, 3), [2, 3], (-1, -2), (-2, -1), [-1, -2], [-2, -1]):
            return Mean(bool(node.kwargs.get("keepdim", False))), (first,)
    if target in _DROPOUTS:
        return nn.Identity(), (first,)
    return None


def _is_flatten(node: fx.Node) -> bool:
    return node.op != "call_module" and node.target in (torch.flatten, "flatten")


def _alone(node: fx.Node) -> bool:
    return len(node.users) == 1


def _only_user(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and _alone(node) else None


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)


def _shallow(module: nn.Module) -> nn.Module:
    """A module of its own that shares its tensors with the given one."""
    own = copy.copy(module)
    own._parameters, own._buffers = dict(module._parameters), dict(module._buffers)
    return own


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as s x + t, each (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def _corners(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Where relu(s x + t) bends: low for s > 0, high for s < 0. A channel without scale is a
    constant, which the convolution behind it gets as its shift."""
    tiny = scale.abs() < _MINIMUM_SCALE
    corner = -shift / torch.where(tiny, torch.ones_like(scale), scale)
    infinite = torch.full_like(scale, torch.inf)
    low = torch.where(scale > 0, corner, -infinite)
    high = torch.where(scale < 0, corner, infinite)
    return torch.where(tiny, 0.0, low), torch.where(tiny, 0.0, high)


def _with_affine_input(layer: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """The convolution that gives for x what `layer`, which pads nothing, gives for s x + t."""
    shift = torch.where(scale.abs() < _MINIMUM_SCALE, shift.relu(), shift)
    weight = layer.weight.detach()
    moved = (weight * shift[:, None, None]).flatten(1).sum(1)
    merged = _shallow(layer)
    assert isinstance(merged, nn.Conv2d)
    merged.weight = nn.Parameter(weight * scale[:, None, None])
    merged.bias = nn.Parameter(moved if layer.bias is None else layer.bias.detach() + moved)
    return merged
