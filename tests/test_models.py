"""train.models: every architecture's ends, the soares head, and what batch norm can train on."""

import pytest
import torch
from torch import nn

from shards.console import UserError
from shards.labels import Vocabulary
from shards.preprocess import MEAN, STD
from train.models import (
    ARCHITECTURES,
    SoaresNet,
    UnitInput,
    build_model,
    fails_on_one_image,
    head,
    head_parameters,
    replace_head,
)
from train.transfer import transfer_head

OUTPUT_KEYS = {
    "densenet121": "classifier",
    "densenet201": "classifier",
    "resnet18": "fc",
    "resnet50": "fc",
    "vgg16": "classifier.6",
    "squeezenet1_0": "classifier.1",
    "squeezenet1_1": "classifier.1",
    "xception": "fc",
}
# densenet201, resnet50 and vgg16 cost seconds and are built as resnet18 and densenet121 are.
QUICK = ("densenet121", "resnet18", "squeezenet1_0", "xception")
OLD = Vocabulary(("a", "b", "c"), exclusive=False)
NEW = Vocabulary(("x", "y"), exclusive=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_layer_is_torchvisions(architecture):
    with torch.device("meta"):
        model = build_model(architecture, 5)
    key = OUTPUT_KEYS[architecture]
    assert head(model) is model.get_submodule(key)
    assert head_parameters(model) == set(model.get_submodule(key).parameters())
    old = replace_head(model, 7)
    assert head(model) is not old
    weight = model.state_dict()[f"{key}.weight"]
    assert (len(weight), weight.shape[1]) == (7, old.weight.shape[1])


@pytest.mark.parametrize("end", ["linear", "soares"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_is_in_channels_last(architecture, end):
    with torch.device("meta"):
        model = build_model(architecture, 5, head=end, size=96)
        replace_head(model, 7)
    kernels = [weight for weight in model.parameters() if weight.ndim == 4]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


@pytest.mark.parametrize("architecture", QUICK)
def test_a_network_gives_logits_and_keeps_neurons(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, 3).eval()
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    assert before.shape == (2, 3)
    transfer_head(model, OLD, NEW, {"y": "b"})
    after = model(images)
    assert after.shape == (2, 2)
    torch.testing.assert_close(after[:, 1], before[:, 1])


def test_unknown_names_list_the_known():
    with pytest.raises(UserError, match="no architecture 'vgg7'; there are: densenet121"):
        build_model("vgg7", 2)
    with pytest.raises(UserError, match="no head 'none'; there are: linear, soares"):
        build_model("resnet18", 2, head="none")


def test_unit_input_undoes_the_normalisation():
    grey = torch.rand(2, 1, 4, 4)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(UnitInput()((grey - mean) / std), grey.expand(-1, 3, -1, -1))
    assert not UnitInput().state_dict()


def test_the_soares_head_is_the_papers():
    torch.manual_seed(0)
    model = build_model("resnet18", 3, head="soares", size=96).eval()
    assert isinstance(model, SoaresNet)
    kinds = [type(layer) for layer in model.classifier]
    assert kinds == [nn.AvgPool2d, nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert model.classifier[2].in_features == 512  # maps of 3 x 3, pooled to 1 x 1
    assert (model.classifier[2].out_features, model.classifier[4].p) == (20, 0.2)
    assert head(model) is model.classifier[5]
    assert head_parameters(model) == set(model.classifier.parameters())
    images = torch.randn(2, 3, 96, 96)
    maps = model.features(model.unit(images))
    assert torch.equal(model(images), model.classifier(maps))


@pytest.mark.parametrize(
    ("architecture", "inputs"), [("vgg16", 4608), ("resnet50", 32768), ("xception", 32768)]
)
def test_the_soares_heads_inputs_at_237_pixels(architecture, inputs):
    with torch.device("meta"):
        model = build_model(architecture, 3, head="soares", size=237)
    assert model.classifier[2].in_features == inputs


def test_a_size_that_the_soares_head_cannot_pool_is_named():
    with pytest.raises(UserError, match=r"size is 32: the maps are 1 x 1.*take 64 or more"):
        build_model("resnet18", 3, head="soares", size=32)


def test_one_image_trains_only_where_maps_have_several_places():
    assert fails_on_one_image("densenet121", 32)
    assert not fails_on_one_image("densenet121", 64)
    assert not fails_on_one_image("squeezenet1_0", 32)  # no batch norm at all
    model = build_model("resnet18", 2).train()
    with pytest.raises(ValueError, match="more than 1 value"):
        model(torch.zeros(1, 3, 32, 32))
    assert fails_on_one_image("resnet18", 32)
