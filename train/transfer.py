"""Output neuron keeping: a new output layer starts with the neurons that both tasks share.

Bassi & Attux (arXiv 2005.01578): when the last layer is replaced, weight row and bias of the
neurons whose classes exist in both tasks are copied, matched by the labels' names.
"""

from collections.abc import Mapping

import torch
from torch import nn

from shards.labels import Vocabulary
from train.models import head, replace_head


def transfer_head(
    model: nn.Module, old: Vocabulary, new: Vocabulary, keep: Mapping[str, str]
) -> None:
    """Replace the output layer of `model`, trained on `old`, by one for `new`.

    keep: new label -> old label. UserError when a vocabulary lacks one of them. The other neurons
    start as a new Linear layer does.
    """
    rows = [(new.index(to), old.index(source)) for to, source in keep.items()]
    previous = replace_head(model, len(new))
    pairs = zip(head(model).parameters(), previous.parameters())  # the weights, then the biases
    with torch.no_grad():
        for fresh, kept in pairs:
            for to, source in rows:
                fresh[to] = kept[source]
