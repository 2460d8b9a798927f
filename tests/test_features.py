"""t-SNE and the self-organising map of features, and the command that draws them."""

import csv
import json
from pathlib import Path
from unittest.mock import patch

import minisom
import numpy as np
import pytest
import sklearn.manifold
import torch
from tiny_run import LABELS, small_densenet, stand_in
from torch.nn import functional as F

from serve.explain.features import at_most, fade, self_organising_map, standardise, tsne
from serve.explain.features_command import FeaturesConfig, _look, class_numbers, features
from serve.explain.split import feature_vectors, split
from shards.console import RunFailed, UserError
from train.models import build_model


def two_clusters(per_cluster: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2 * per_cluster, 6))
    vectors[per_cluster:] += 8
    return vectors, np.repeat([0, 1], per_cluster)


def test_at_most_takes_each_class_in_part_and_the_same_each_time():
    classes = np.array([0] * 10 + [1] * 3 + [4] * 7)
    chosen = at_most(classes, 5, seed=1)
    assert np.bincount(classes[chosen]).tolist() == [5, 3, 0, 0, 5]
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, at_most(classes, 5, seed=1))
    assert not np.array_equal(chosen, at_most(classes, 5, seed=2))


def test_classes_are_single_labels_several_or_none():
    labels = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0], [-1, 0, 1]], np.int8)
    assert class_numbers(labels).tolist() == [1, 3, 4, 2]


def test_standardise_leaves_constant_columns_at_zero():
    scaled = standardise(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    assert scaled.tolist() == [[-1, 0], [1, 0]]
    same = np.repeat(np.random.default_rng(0).random((1, 64), np.float32), 12, axis=0)
    assert not standardise(same).any()


@pytest.mark.parametrize(("value", "told"), [(0.0, "the same features"), (np.nan, "no numbers")])
def test_features_that_tell_nothing_are_one_line(tiny_shards, tmp_path, monkeypatch, value, told):
    """t-SNE ends the process on them."""
    net = small_densenet()
    stand_in(monkeypatch, net)
    for parameter in net.features.parameters():
        parameter.data.fill_(value)
    config = FeaturesConfig(Path("run"), tiny_shards / "covid-radiography", tmp_path, "train", 4)
    with pytest.raises(RunFailed, match=told):
        features(config)


def test_the_rate_fades_from_first_to_last():
    assert fade(0.8, 0.05, 0, 100) == 0.8
    assert fade(0.8, 0.05, 100, 100) == pytest.approx(0.05)


def test_tsne_keeps_clusters_apart_and_repeats_itself():
    vectors, classes = two_clusters()
    plane = tsne(vectors, seed=0)
    assert plane.shape == (40, 2)
    assert np.array_equal(plane, tsne(vectors, seed=0))
    centres = [plane[classes == c].mean(0) for c in (0, 1)]
    spread = max(plane[classes == c].std() for c in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread


def test_both_ways_have_the_projects_settings(monkeypatch):
    """DD2424: perplexity 25 from the principal components; 15 x 15 cells, 100 epochs, a Gaussian
    neighbourhood of radius 10, the rate from 0.8 to 0.05."""
    vectors, classes = two_clusters(40)
    with patch("sklearn.manifold.TSNE", wraps=sklearn.manifold.TSNE) as made:
        tsne(vectors, seed=3)
        tsne(vectors[:16], seed=3)
    first, second = (call.kwargs for call in made.call_args_list)
    assert first == {"perplexity": 25, "init": "pca", "random_state": 3}
    assert second["perplexity"] == 5  # of 16 vectors: (16 - 1) / 3
    rates, radii = [], []

    def update(som, x, win, t, steps):
        rates.append(som._learning_rate_decay_function(som._learning_rate, t, steps))
        radii.append(som._sigma_decay_function(som._sigma, t, steps))

    monkeypatch.setattr(minisom.MiniSom, "update", update)
    with patch("minisom.MiniSom", wraps=minisom.MiniSom) as made:
        found = self_organising_map(standardise(vectors), classes, seed=3)
    assert made.call_args.kwargs["neighborhood_function"] == "gaussian"
    assert found.counts.shape == (15, 15)
    assert len(rates) == 100 * len(vectors)
    assert (rates[0], radii[0]) == (0.8, 10)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)
    assert radii[-1] == pytest.approx(1, abs=0.1)


def test_the_map_gives_clusters_cells_of_their_own():
    vectors, classes = two_clusters()
    som = self_organising_map(standardise(vectors), classes, seed=0)
    assert som.counts.sum() == 40
    assert set(np.unique(som.majority)) == {-1, 0, 1}
    for place, number in zip(som.places, classes):
        assert som.majority[tuple(place)] == number
    again = self_organising_map(standardise(vectors), classes, seed=0)
    assert np.array_equal(som.places, again.places)


def test_feature_vectors_are_what_the_output_layer_reads():
    net = small_densenet()
    images = torch.randn(2, 3, 48, 48)
    found = feature_vectors(split(net), images)
    with torch.no_grad():
        expected = F.relu(net.features(images)).mean((2, 3))
    torch.testing.assert_close(found, expected)
    squeezenet = build_model("squeezenet1_1", 3).eval()
    assert feature_vectors(split(squeezenet), images).shape == (2, 512)


def test_the_command_writes_points_cells_and_pictures(tiny_shards, tmp_path, monkeypatch):
    stand_in(monkeypatch, small_densenet())
    folder, out = tiny_shards / "covid-radiography", tmp_path / "out"
    path = features(FeaturesConfig(Path("run"), folder, out, split="train", per_class=4))
    told = json.loads(path.read_bytes())
    assert told["options"] == ["--split", "train", "--per-class", "4"]
    assert len(told["points"]) == 12
    assert set(told["classes"]) == set(LABELS)
    assert (told["stage"], told["weights_sha256"]) == ("covid", "0" * 64)
    assert sum(cell["count"] for cell in told["cells"]) == 12
    assert sum(cell["share"] for cell in told["cells"]) == pytest.approx(1)
    with (out / "features.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [point["key"] for point in told["points"]]
    for name in ("tsne.png", "som.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="at least 5"):
        features(FeaturesConfig(Path("run"), folder, out, split="train", per_class=1))
    with pytest.raises(UserError, match="--per-class is 0"):
        features(FeaturesConfig(Path("run"), folder, out, per_class=0))


def test_no_two_classes_look_alike():
    assert len({_look(position) for position in range(56)}) == 56
