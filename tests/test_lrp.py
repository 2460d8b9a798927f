"""LRP: conserved on every architecture, each rule against dense matrices, the model untouched."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet
from zennit.composites import EpsilonPlusFlat
from zennit.rules import Epsilon, ZPlus

from serve.explain.canonise import Clamp, canonical
from serve.explain.lrp import EPSILON, Lrp
from serve.explain.rules import Arithmetic, Dense, Plus
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
    # One image in bf16: a CPU without it takes ten times as long as in float32.
    for dtype, count, tolerance in ((torch.float32, 3, 1e-4), (torch.bfloat16, 1, 0.05)):
        found = Lrp(model, dtype=dtype)(images[:count], classes[:count])
        torch.testing.assert_close(found.logits, expected[:count], rtol=0, atol=tolerance * largest)
        torch.testing.assert_close(found.maps.sum((1, 2)), found.logits, rtol=0.01, atol=1e-6)


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
    exact, rough = Lrp(model)(images, classes), Lrp(model, dtype=torch.bfloat16)(images, classes)
    torch.testing.assert_close(rough.maps.sum((1, 2)), rough.logits, rtol=0.01, atol=1e-6)
    assert min(correlation(a, b) for a, b in zip(exact.maps, rough.maps)) > 0.99


# The slow reference: each layer a dense matrix, (outputs, inputs), without its bias.


def matrix_of(layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """What a linear layer makes of each unit vector."""
    units = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape))
        return (layer(units) - zero).flatten(1).T.double().numpy()


def shares(products: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """products (outputs, inputs): each output's relevance in proportion to its products."""
    total = products.sum(1)
    return ((upper / (total + np.where(total >= 0, 1e-6, -1e-6)))[:, None] * products).sum(0)


def damped(products: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The relevance of a dense layer's outputs, less where their sums are small against epsilon,
    and as much in all as before of either sign."""
    total = np.abs(products.sum(1))
    left = upper * total / (total + EPSILON)
    for_it, against = upper > 0, upper < 0
    left[for_it] *= upper[for_it].sum() / left[for_it].sum()
    left[against] *= upper[against].sum() / left[against].sum()
    return left


def slow_lrp(layers: list[nn.Module], image: Tensor, target: int) -> np.ndarray:
    """Conv and ReLU, average and max pools, Flatten, Linear in a row: (S, S) relevance."""
    values = [image[None]]
    with torch.no_grad():
        for layer in layers:
            values.append(layer(values[-1]))
    relevance = np.zeros(values[-1].shape[1])
    relevance[target] = values[-1][0, target]
    for number, layer in reversed(list(enumerate(layers))):
        x, shape = values[number].flatten().double().numpy(), tuple(values[number].shape[1:])
        if isinstance(layer, nn.MaxPool2d):
            relevance = max_pool_winners(values[number], layer, relevance)
        elif isinstance(layer, nn.Linear):
            products = matrix_of(layer, shape) * x
            last = number == len(layers) - 1
            relevance = shares(products, relevance if last else damped(products, relevance))
        elif isinstance(layer, nn.Conv2d) and number == 0:
            reached = nn.Conv2d(
                *(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride),
                padding=layer.padding,
            )
            nn.init.ones_(reached.weight)
            relevance = shares(matrix_of(reached, shape), relevance)
        elif isinstance(layer, nn.Conv2d):
            relevance = shares(np.maximum(matrix_of(layer, shape) * x, 0), relevance)
        elif isinstance(layer, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            relevance = shares(matrix_of(layer, shape) * x, relevance)
    return relevance.reshape(3, *image.shape[1:]).sum(0)


def max_pool_winners(x: Tensor, layer: nn.MaxPool2d, upper: np.ndarray) -> np.ndarray:
    """The largest value of each window takes all."""
    _, places = F.max_pool2d(x, layer.kernel_size, layer.stride, return_indices=True)
    lower = np.zeros((x.shape[1], x.shape[2] * x.shape[3]))
    for channel, (chosen, values) in enumerate(
        zip(places[0].flatten(1).numpy(), upper.reshape(x.shape[1], -1))
    ):
        np.add.at(lower[channel], chosen, values)
    return lower.ravel()


class Row(nn.Module):
    """A network of layers in a row."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("seed", range(3))
def test_every_rule_matches_dense_matrices(seed):
    torch.manual_seed(seed)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    ]
    image = torch.randn(3, 16, 16)
    nn.init.zeros_(layers[-1].bias)
    with torch.no_grad():  # a bias that shrinks each logit by half, and turns none
        layers[-1].bias.data = -0.5 * Row(layers)(image[None])[0]
    found = Lrp(Row(layers).eval())(image[None], torch.tensor([seed]))
    slow = slow_lrp(layers, image, seed)
    np.testing.assert_allclose(found.maps[0].numpy(), slow, atol=2e-3 * np.abs(slow).max())


class Branches(nn.Module):
    """An addition of branches of both signs, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.two, self.top = nn.Conv2d(4, 3, 1), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.one(x) + x, self.two(x)], 1)
        return self.top(x.relu().mean((2, 3)))


def test_branches_match_dense_matrices():
    """A sum hands each branch its share of it, a concatenation each its own channels."""
    torch.manual_seed(0)
    net, image, side = Branches().eval(), torch.randn(3, 6, 6), (6, 6)
    nn.init.zeros_(net.top.bias)
    with torch.no_grad():
        stem = net.stem(image[None]).relu()
        one, two = net.one(stem), net.two(stem)
        together = torch.cat([one + stem, two], 1).relu()
        logit = float(net(image[None])[0, 1])
    weights = np.repeat(net.top.weight[1].detach().double().numpy(), 36) / 36
    flat = together.flatten().double().numpy()
    upper = shares((weights * flat)[None], np.array([logit])).reshape(7, 36)
    x, branch = stem.flatten().double().numpy(), one.flatten().double().numpy()
    whole = branch + x
    share = upper[:4].ravel() / (whole + np.where(whole >= 0, 1e-6, -1e-6))
    lower = share * x
    for layer, above in ((net.one, share * branch), (net.two, upper[4:].ravel())):
        lower += shares(np.maximum(matrix_of(layer, (4, *side)) * x, 0), above)
    reached = nn.Conv2d(3, 4, 3, padding=1)
    nn.init.ones_(reached.weight)
    slow = shares(matrix_of(reached, (3, *side)), lower).reshape(3, *side).sum(0)
    found = Lrp(net)(image[None], torch.tensor([1])).maps[0].numpy()
    np.testing.assert_allclose(found, slow, atol=2e-3 * np.abs(slow).max())


@pytest.mark.parametrize("groups", [1, 4])
def test_plus_is_zennits_rule_at_less_work(groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    x, upper = torch.randn(2, 4, 9, 9), torch.randn(2, 8, 5, 5)
    maps = []
    for rule in (ZPlus(zero_params="bias"), Plus(Arithmetic())):
        inputs = x.clone().requires_grad_()
        handles = rule.register(conv)
        maps.append(torch.autograd.grad(conv(inputs), inputs, upper)[0])
        handles.remove()
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-3, atol=1e-4)
    assert "forward" not in vars(conv)


def test_dense_is_zennits_epsilon_but_for_what_epsilon_keeps():
    torch.manual_seed(0)
    linear = nn.Linear(12, 8)
    x, upper = torch.rand(4, 12), torch.randn(4, 8)
    upper[0], upper[1] = upper[0].abs(), -upper[1].abs()
    upper[2] = 0
    maps = []
    for rule in (Epsilon(epsilon=1e-9, zero_params="bias"), Dense(1e-9), Dense(0.1)):
        inputs = x.clone().requires_grad_()
        handles = rule.register(linear)
        maps.append(torch.autograd.grad(linear(inputs), inputs, upper)[0])
        handles.remove()
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(maps[2], maps[0], rtol=0.05)
    torch.testing.assert_close(maps[2].sum(1), upper.sum(1), rtol=1e-4, atol=1e-5)
    assert (maps[2][2] == 0).all()


def test_by_sign_keeps_what_plain_alpha1_beta0_loses():
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([2.0, -3.0]).reshape(2, 1, 1, 1)
    x = torch.ones(1, 1, 4, 4)
    upper = torch.cat([torch.full((1, 1, 4, 4), v) for v in (1.0, 5.0)], 1)
    totals = []
    for by_sign in (False, True):
        inputs = x.clone().requires_grad_()
        handles = (rule := Plus(Arithmetic(by_sign=by_sign))).register(conv)
        totals.append(float(torch.autograd.grad(conv(inputs), inputs, upper)[0].sum()))
        handles.remove()
        del rule
    assert totals == pytest.approx([16, 96], rel=1e-4)


def test_clamp_is_batch_norm_and_relu_for_scales_of_both_signs_and_none():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1))
    for conv in model:
        nn.init.normal_(conv.bias)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.rest = model[0], model[1], layers

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(torch.cat([self.one(x), self.two(x)], 1))

    layers[0].weight.data = torch.tensor([1.5, -0.7, 0.0, 2.0])
    layers[0].bias.data = torch.tensor([0.3, 0.4, 0.9, -0.5])
    nn.init.normal_(layers[0].running_mean)
    net = Net().eval()
    other = canonical(net)
    assert sum(isinstance(m, Clamp) for m in other.modules()) == 1
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-5)


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
