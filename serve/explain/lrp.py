"""Layer-wise relevance propagation with the preset of Bassi & Attux (arXiv 2005.01578).

iNNvestigate's "LRP-PresetAFlat": dense layers epsilon 0.1; convolutions alpha 1, beta 0; Flat at
the input; batch norm alpha 2, beta 1; average pooling and addition by the Z rule; ReLU passes
relevance on; concatenation and max pooling follow the gradient. Relevance starts from the logit.
Three decisions of ours: biases get no relevance (in the original they take theirs
along, and what is left for the image does not add up to the logit); what epsilon keeps of one sum
goes to the others (serve/explain/rules.py); and the network is brought into canonical form first
(serve/explain/canonise.py), so that no batch norm is left to need the preset's alpha 2, beta 1: it
is in a convolution and has that one's rule, or (DenseNet's last) hands relevance on as it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from zennit.core import Composite, Hook
from zennit.rules import Flat, Norm

from serve.explain.canonise import POOLS, Add, Affine, Clamp, Concat, canonical
from serve.explain.rules import Arithmetic, Dense, Output, PassThrough, Plus, Sum
from train.models import UnitInput

EPSILON = 0.1


@dataclass(frozen=True)
class Relevance:
    """maps: (N, S, S) float32, signed, in units of the logit; logits: (N,), that the relevance
    starts from."""

    maps: Tensor
    logits: Tensor


class Lrp:
    """One network made ready: canonical form and rules, registered once for all batches."""

    def __init__(
        self, model: nn.Module, *, epsilon: float = EPSILON, dtype: torch.dtype = torch.float32
    ) -> None:
        """model: in eval mode; it stays as it is. dtype: of the convolutions' arithmetic.
        UserError when there is no rule for a part of it."""
        self.network = canonical(model)
        self.composite = preset(self.network, epsilon, dtype)
        self.composite.register(self.network)

    def __call__(self, images: Tensor, classes: Tensor, logits: Tensor | None = None) -> Relevance:
        """images: (N, 3, S, S) float32, normalised; classes: (N,) int64; logits: (N,) float32, of
        these classes, which the maps shall add up to; by default those of this pass, which are
        rounded where its arithmetic is."""
        inputs = images.detach().requires_grad_()
        with torch.enable_grad():
            found = self.network(inputs)
            if logits is None:
                logits = found.detach().gather(1, classes[:, None])[:, 0]
            start = torch.zeros_like(found).scatter_(1, classes[:, None], logits[:, None])
            (relevance,) = torch.autograd.grad(found, inputs, start)
        return Relevance(relevance.sum(1), logits)


def preset(network: fx.GraphModule, epsilon: float, dtype: torch.dtype) -> Composite:
    """Which rule each module of a canonical network has."""
    calls = {
        node: network.get_submodule(str(node.target))
        for node in network.graph.nodes
        if node.op == "call_module"
    }
    layers = [m for m in calls.values() if isinstance(m, nn.Conv2d | nn.Linear)]
    arithmetic = {
        module: Arithmetic(
            dtype,
            nonnegative=_is_nonnegative(node.args[0], calls),
            by_sign=all(calls.get(user) in layers for user in node.users),
        )
        for node, module in calls.items()
        if isinstance(module, nn.Conv2d)
    }

    def rule(context: dict[str, object], name: str, module: nn.Module) -> Hook | None:
        if module is layers[0]:
            return Flat()
        if isinstance(module, nn.Conv2d):
            return Plus(arithmetic[module])
        if isinstance(module, nn.Linear):
            return Output() if module is layers[-1] else Dense(epsilon)
        if isinstance(module, nn.ReLU | Clamp | Affine | UnitInput):
            return PassThrough()
        if isinstance(module, Add):
            return Sum()
        return Norm() if isinstance(module, POOLS) else None

    return Composite(module_map=rule)


def _is_nonnegative(node: object, calls: dict[fx.Node, nn.Module]) -> bool:
    """Whether no value of a node is below 0, as far as its build tells."""
    module = calls.get(node) if isinstance(node, fx.Node) else None
    if not isinstance(node, fx.Node) or module is None:
        return False
    if isinstance(module, Clamp):
        return bool((module.low >= 0).all())
    if isinstance(module, (*POOLS, nn.MaxPool2d, Add, Concat)):
        return all(_is_nonnegative(one, calls) for one in node.all_input_nodes)
    return isinstance(module, nn.ReLU)
