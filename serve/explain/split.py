"""A network cut in two: up to its last feature maps, and from there to the logits.

The maps are those of the last convolution but the output layer, with its batch norm and ReLU:
relu(features) of DenseNet, layer4 of ResNet, the last ReLU of VGG before its max pool.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from serve.explain.canonise import Add, Concat, as_modules
from shards.console import UserError

_BEHIND = (nn.BatchNorm2d, nn.ReLU, Add, Concat)  # what still belongs to the maps


@dataclass(frozen=True)
class Split:
    """body: images (N, 3, S, S) -> maps (N, C, h, w); head: maps -> logits (N, L); vectors: maps ->
    (N, D), what the output layer reads; output: that layer; single: the head has no other one."""

    body: fx.GraphModule
    head: fx.GraphModule
    vectors: fx.GraphModule
    output: nn.Linear | nn.Conv2d
    single: bool


def split(model: nn.Module) -> Split:
    """Cut a network in eval mode; it stays as it is. UserError when it has no convolution before
    its output layer."""
    traced = as_modules(model)
    modules = dict(traced.named_modules())
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    kinds = {node: modules[str(node.target)] for node in calls}
    layers = [node for node in calls if isinstance(kinds[node], nn.Conv2d | nn.Linear)]
    convolutions = [node for node in layers[:-1] if isinstance(kinds[node], nn.Conv2d)]
    if not convolutions:
        raise UserError(
            f"no feature maps in {type(model).__name__}: it has no convolution before its output "
            "layer; take occlusion"
        )
    maps = convolutions[-1]
    while len(maps.users) == 1 and isinstance(kinds.get(user := next(iter(maps.users))), _BEHIND):
        maps = user
    output = kinds[layers[-1]]
    assert isinstance(output, nn.Linear | nn.Conv2d)
    end = next(node for node in traced.graph.nodes if node.op == "output")
    logits, before = end.args[0], layers[-1].args[0]
    assert isinstance(logits, fx.Node)
    assert isinstance(before, fx.Node)
    return Split(
        body=_cut(traced, None, maps),
        head=_cut(traced, maps, logits),
        vectors=_cut(traced, maps, before),
        output=output,
        single=layers.index(layers[-1]) - layers.index(convolutions[-1]) == 1,
    )


def feature_vectors(parts: Split, images: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, D): the features before the output layer, averaged over the places where
    that layer is a convolution (SqueezeNet)."""
    with torch.inference_mode():
        found = parts.vectors(parts.body(images))
        return found.mean((2, 3)) if found.ndim == 4 else found


def _cut(traced: fx.GraphModule, start: fx.Node | None, end: fx.Node) -> fx.GraphModule:
    """The part of a graph behind `start` (None: from the images), up to and with `end`."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    began = start is None
    if start is not None:
        made[start] = graph.placeholder("maps")
    for node in traced.graph.nodes:
        if began and node.op != "output" and end not in made:
            made[node] = graph.node_copy(node, made.__getitem__)
        began = began or node is start
    graph.output(made[end])
    part = fx.GraphModule(traced, graph)
    part.delete_all_unused_submodules()
    return part.eval()
