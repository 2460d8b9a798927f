"""serve.explain.rules, serve.explain.canonise: each rule against dense matrices and zennit's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zennit.rules import Epsilon, ZPlus

from serve.explain.canonise import Clamp, canonical
from serve.explain.lrp import EPSILON, Lrp
from serve.explain.rules import Arithmetic, Dense, Plus

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
