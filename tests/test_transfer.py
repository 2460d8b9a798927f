"""train.transfer: output neuron keeping by the labels' names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shards.console import UserError
from shards.labels import CHESTXRAY14, COVID, Vocabulary
from train.models import head
from train.recipes.bassi import network_b, network_c, network_e
from train.transfer import transfer_head
from train.weights import CHEXNET

NAMES = [f"label{i}" for i in range(8)]


class Tiny(nn.Module):
    """Only what transfer needs of a network: its output layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(5, outputs)


def transferred(old: Vocabulary, new: Vocabulary, keep: dict[str, str]) -> tuple[nn.Linear, ...]:
    """(old head, head after the transfer, a new layer drawn with the same seed)."""
    model = Tiny(len(old))
    before = head(model)
    torch.manual_seed(7)
    transfer_head(model, old, new, keep)
    torch.manual_seed(7)
    return before, head(model), nn.Linear(5, len(new))


VOCABULARY = st.permutations(NAMES).flatmap(
    lambda names: st.integers(1, len(names)).map(lambda n: Vocabulary(tuple(names[:n]), False))
)


@settings(deadline=None)
@given(VOCABULARY, VOCABULARY, st.data())
def test_kept_rows_are_equal_by_name_and_the_others_fresh(old, new, data):
    keep = data.draw(
        st.dictionaries(st.sampled_from(new.names), st.sampled_from(old.names), max_size=4)
    )
    before, after, fresh = transferred(old, new, keep)
    assert after.weight.shape == (len(new), 5)
    for i, name in enumerate(new.names):
        source = before if name in keep else fresh
        row = old.index(keep[name]) if name in keep else i
        assert torch.equal(after.weight[i], source.weight[row])
        assert torch.equal(after.bias[i], source.bias[row])
    assert after.weight.requires_grad


@pytest.mark.parametrize("keep", [{"Nope": "Pneumonia"}, {"Normal": "Nope"}])
def test_an_unknown_label_is_named_and_nothing_is_changed(keep):
    model = Tiny(15)
    before = head(model)
    with pytest.raises(UserError, match="'Nope'"):
        transfer_head(model, CHESTXRAY14, COVID, keep)
    assert head(model) is before


def kept_pairs(stage) -> dict[str, str]:
    return {kept.label: kept.old_label for kept in stage.keep_neurons}


def test_network_c_keeps_two_neurons():
    keep = kept_pairs(network_c().stages[1])
    assert keep == {"Normal": "No Finding", "Viral Pneumonia": "Pneumonia"}
    before, after, fresh = transferred(CHESTXRAY14, COVID, keep)
    assert torch.equal(after.weight[0], before.weight[14])  # Normal <- No Finding
    assert torch.equal(after.weight[1], before.weight[6])  # Viral Pneumonia <- Pneumonia
    assert torch.equal(after.weight[2], fresh.weight[2])  # COVID-19
    assert torch.equal(after.bias, torch.stack([before.bias[14], before.bias[6], fresh.bias[2]]))


def test_network_b_keeps_none_and_e_one():
    assert [stage.keep_neurons for stage in network_b().stages] == [(), ()]
    keep = kept_pairs(network_e().stages[0])
    assert keep == {"Viral Pneumonia": "Pneumonia"}
    before, after, fresh = transferred(CHEXNET, COVID, keep)
    assert torch.equal(after.weight[1], before.weight[6])
    assert torch.equal(after.weight[[0, 2]], fresh.weight[[0, 2]])
