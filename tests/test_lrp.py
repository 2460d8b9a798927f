"""LRP: conserved on every architecture, and the model is left untouched."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet
from zennit.composites import EpsilonPlusFlat

from serve.explain.canonise import canonical
from serve.explain.lrp import EPSILON, Lrp
from shards.console import UserError
from train.models import build_model, head
from train.recipes import RECIPES


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after a training, of both signs; and no bias that could turn a logit."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.6)
            nn.init.normal_(layer.bias, 0, 0.3)
    nn.init.zeros_(head(model).bias)
    return model.eval()


def toy_densenet(seed: int = 0) -> DenseNet:
    torch.manual_seed(seed)
    return DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16, num_classes=3)


def inputs(count: int = 3, size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 3


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


# Each network of the recipes; the large ones are slow.
NETWORKS = sorted({(c.architecture, c.head) for c in (r.build() for r in RECIPES.values())})
_QUICK = {"densenet121", "resnet18", "squeezenet1_0"}


@pytest.mark.parametrize(
    ("architecture", "top"),
    [
        pytest.param(*one, marks=() if one[0] in _QUICK else pytest.mark.soak)
        for one in [*NETWORKS, ("resnet18", "soares"), ("vgg16", "linear")]
    ],
)
def test_relevance_is_conserved_and_the_canonical_form_is_the_same_function(architecture, top):
    """With the settings that serve explain takes, in the arithmetic of every machine."""
    torch.manual_seed(0)
    model = randomise(build_model(architecture, 3, head=top, size=64))
    if architecture.startswith("squeezenet"):
        nn.init.constant_(head(model).bias, 0.5)  # it ends in a ReLU: else a logit may be 0
    images, classes = inputs()
    with torch.no_grad():
        expected = model(images)[range(3), classes]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in canonical(model).modules())
    largest = float(expected.abs().max())
    found = Lrp(model)(images, classes)
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-4 * largest)
    torch.testing.assert_close(found.maps.sum((1, 2)), expected, rtol=0.01, atol=1e-4 * largest)
    # One image in bf16: a CPU without it takes ten times as long as in float32.
    rounded = Lrp(model, dtype=torch.bfloat16)
    found = rounded(images[:1], classes[:1], expected[:1])
    torch.testing.assert_close(found.maps.sum((1, 2)), expected[:1], rtol=0.01, atol=1e-6)
    own = rounded(images[:1], classes[:1])
    torch.testing.assert_close(own.logits, expected[:1], rtol=0, atol=0.05 * largest)


def test_relevance_of_a_trained_network_is_conserved_and_points_at_the_pattern():
    model = toy_densenet().train()
    optim = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        images, labels = patterns(generator)
        optim.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optim.step()
    model.eval()
    images, labels = patterns(generator)
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    assert right.float().mean() > 0.9
    nn.init.zeros_(model.classifier.bias)
    found = Lrp(model)(images, labels)
    torch.testing.assert_close(found.maps.sum((1, 2)), found.logits, rtol=0.01, atol=1e-6)


def patterns(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """16 noisy images of 32 pixels; the class says which third of the rows is bright."""
    labels = torch.randint(0, 3, (16,), generator=generator)
    images = 0.3 * torch.randn(16, 3, 32, 32, generator=generator)
    for image, label in zip(images, labels.tolist()):
        image[:, 10 * label : 10 * label + 10] += 1
    return images, labels


def test_uncanonised_maps_differ_and_lose_relevance():
    """Why the canonical form. serve/README.md has the figures of trained networks."""
    torch.manual_seed(0)
    model = randomise(build_model("densenet121", 3))
    images, classes = inputs()
    ours = Lrp(model)(images, classes)
    plain = images.clone().requires_grad_()
    with EpsilonPlusFlat(epsilon=EPSILON, zero_params="bias").context(model) as hooked:
        logits = hooked(plain)
        start = F.one_hot(classes, 3) * logits.detach()
        (relevance,) = torch.autograd.grad(logits, plain, start)
    totals = relevance.sum((1, 2, 3)) / ours.logits
    assert (ours.maps.sum((1, 2)) / ours.logits - 1).abs().max() < 0.01
    assert (totals - 1).abs().min() > 0.02
    likeness = [correlation(a, b) for a, b in zip(ours.maps, relevance.sum(1))]
    assert max(likeness) < 0.9


def test_the_model_comes_out_as_it_went_in():
    model = randomise(toy_densenet())
    before = copy.deepcopy(model.state_dict())
    modules = {name: (type(m), m.training) for name, m in model.named_modules()}
    images, classes = inputs()
    with torch.no_grad():
        expected = model(images)
    lrp = Lrp(model)
    lrp(images, classes)
    assert {name: (type(m), m.training) for name, m in model.named_modules()} == modules
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(model(images), expected)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    lrp.composite.remove()
    assert all("forward" not in vars(m) for m in lrp.network.modules() if m is not lrp.network)


def test_bf16_maps_are_those_of_fp32():
    model = randomise(build_model("densenet121", 3))
    images, classes = inputs()
    with torch.no_grad():
        logits = model(images)[range(3), classes]
    exact = Lrp(model)(images, classes)
    rough = Lrp(model, dtype=torch.bfloat16)(images, classes, logits)
    torch.testing.assert_close(rough.maps.sum((1, 2)), logits, rtol=0.01, atol=1e-6)
    assert min(correlation(a, b) for a, b in zip(exact.maps, rough.maps)) > 0.99


def test_where_the_bias_turns_the_logit_red_stays_for_the_class():
    model = randomise(toy_densenet())
    images, classes = inputs()
    without = Lrp(model)(images, classes)
    model.classifier.bias.data = torch.full((3,), 100.0)
    found = Lrp(model)(images, classes)
    assert (found.logits > 0).all()
    negative = without.logits < 0
    assert negative.any()
    torch.testing.assert_close(found.maps[negative], without.maps[negative], rtol=1e-3, atol=1e-6)


class LoneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x).relu()).mean((2, 3))


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [(LoneNorm(), "batch norm"), (Odd(), "no layer: "), (Branching(), "depends on its data")],
)
def test_a_network_without_rules_is_refused_in_one_line(model, message):
    with pytest.raises(UserError, match=message):
        Lrp(model.eval())
