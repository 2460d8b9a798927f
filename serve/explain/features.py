"""Feature vectors in the plane, two ways, as the DD2424 project shows them: t-SNE (scikit-learn)
and a self-organising map (minisom). Both give the same for the same vectors and seed."""

from dataclasses import dataclass

import numpy as np

PERPLEXITY = 25
GRID, EPOCHS = 15, 100
FIRST_RATE, LAST_RATE = 0.8, 0.05
RADIUS = 10  # of the neighbourhood at first; it shrinks to 1 (DD2424 leaves the end open)


@dataclass(frozen=True)
class SomMap:
    """places: (N, 2) int64, row and column of each vector's cell; majority: (GRID, GRID) int64, the
    most frequent class of a cell, -1 where it is empty; counts: (GRID, GRID) int64, its vectors."""

    places: np.ndarray
    majority: np.ndarray
    counts: np.ndarray


def at_most(classes: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """(N,) class numbers -> positions of at most `per_class` of each, drawn at random, in order."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(classes):
        members = np.flatnonzero(classes == number)
        chosen.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))


def standardise(vectors: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, D) float64 of mean 0 and deviation 1 per column; constant columns become 0."""
    wide = vectors.astype(np.float64)  # a mean in float32 would be off by its rounding
    centred = wide - wide.mean(0)
    deviation = centred.std(0)
    return centred / np.where(deviation > 0, deviation, 1)


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """(N, D) -> (N, 2), starting from the first two principal components. N: at least 4.

    The perplexity is lowered to (N - 1) / 3 where there are fewer vectors than 76."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    made = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return made.fit_transform(vectors.astype(np.float32)).astype(np.float64)


def self_organising_map(vectors: np.ndarray, classes: np.ndarray, seed: int) -> SomMap:
    """(N, D) standardised vectors and their (N,) class numbers -> a map of GRID x GRID cells."""
    from minisom import MiniSom

    som = MiniSom(
        GRID,
        GRID,
        vectors.shape[1],
        sigma=RADIUS,
        learning_rate=FIRST_RATE,
        neighborhood_function="gaussian",
        decay_function=lambda _, step, steps: fade(FIRST_RATE, LAST_RATE, step, steps),
        sigma_decay_function="linear_decay_to_one",
        random_seed=seed,
    )
    som.random_weights_init(vectors)
    som.train(vectors, EPOCHS, random_order=True, use_epochs=True)
    places = np.array([som.winner(vector) for vector in vectors], np.int64)
    votes = np.zeros((GRID, GRID, int(classes.max()) + 1), np.int64)
    np.add.at(votes, (places[:, 0], places[:, 1], classes), 1)
    counts = votes.sum(-1)
    return SomMap(places, np.where(counts > 0, votes.argmax(-1), -1), counts)


def fade(first: float, last: float, step: int, steps: int) -> float:
    """From `first` to `last` in equal steps."""
    return first + (last - first) * step / max(1, steps)
