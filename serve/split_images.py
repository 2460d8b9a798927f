"""Images of a data set's split as the network takes them, in batches: for parity, calibration and
thresholds. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.codec import BadImage, decode_grey
from shards.console import RunFailed, UserError
from shards.manifest import Manifest, shard_path
from shards.preprocess import resize
from shards.reader import read_shard
from shards.sample import Sample

BATCH = 16


@dataclass(frozen=True)
class SplitImages:
    """folder: of the data set's shards; size: S of the network's input; labels: of its L outputs,
    which may be some of the data set's, in another order."""

    folder: Path
    manifest: Manifest
    size: int
    labels: tuple[str, ...]

    def batches(
        self, split: str, at_most: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(n, 1, S, S) uint8 and (n, L) int8, n at most BATCH. `at_most` images are taken evenly
        over the split, which may be sorted by class. UserError when the split is not there."""
        self.manifest.of_split(split)
        wanted = spread(self.manifest.splits[split].samples, at_most)
        columns = [self.manifest.vocabulary.index(label) for label in self.labels]
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for position, (path, sample) in enumerate(self._samples(split)):
            if position not in wanted:
                continue
            grey = decode_stored(sample.image, path, sample.key)
            images.append(resize(grey, self.size)[None])
            labels.append(sample.labels[columns])
            if len(images) == BATCH:
                yield np.stack(images), np.stack(labels)
                images, labels = [], []
        if images:
            yield np.stack(images), np.stack(labels)

    def _samples(self, split: str) -> Iterator[tuple[Path, Sample]]:
        for shard in self.manifest.of_split(split):
            path = shard_path(self.folder, shard)
            yield from ((path, sample) for sample in read_shard(path))

    def count(self, split: str, at_most: int | None = None) -> int:
        """How many images `batches` gives. UserError when it is none."""
        self.manifest.of_split(split)
        found = len(spread(self.manifest.splits[split].samples, at_most))
        if not found:
            raise UserError(f"{self.folder} has no {split} images; the export needs some")
        return found


def decode_stored(data: bytes, shard: Path, key: str) -> np.ndarray:
    """A shard's image, (H, W) uint8. RunFailed when it does not decode: shards hold only images
    that were decoded once, so the shard is damaged."""
    try:
        return decode_grey(data)
    except BadImage as error:
        raise RunFailed(
            f"{shard}: sample {key} {error}; find the damage with: python -m shards verify"
        ) from error


def spread(total: int, at_most: int | None) -> set[int]:
    """Positions below total: all, or `at_most` of them at even distances."""
    if at_most is None or at_most >= total:
        return set(range(total))
    return {position * total // at_most for position in range(at_most)}
