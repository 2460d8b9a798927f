"""The samples of a finished data set, one after the other or one by its key.

Run: python -m shards ls DIR | show DIR KEY
"""

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shards.codec import BadImage, decode_doubtful, encode
from shards.console import UserError
from shards.fetched import local_shard
from shards.index import Component
from shards.labels import UNKNOWN, YES
from shards.manifest import Manifest, ShardInfo, load_manifest
from shards.reader import damaged, member, read_component, read_index, read_meta
from shards.sample import LABELS_EXTENSION, Sample
from shards.stats import split_names


@dataclass(frozen=True)
class Place:
    """Where a sample lies: its shard and its members in it."""

    path: Path
    shard: ShardInfo
    components: tuple[Component, ...]

    @property
    def key(self) -> str:
        return self.components[0].key

    def read(self) -> Sample:
        """The sample. RunFailed when the shard does not match its index, or is damaged."""
        image = self.components[0]
        with self.path.open("rb") as file:
            data = self._part(file.fileno(), image)
            meta = read_meta(file.fileno(), self.components, self.path)
        return Sample(self.key, data, image.extension, self.read_labels(), meta)

    def read_pixels(self) -> np.ndarray:
        """(H, W) uint8, by decoders that survive damage. RunFailed when it does not decode."""
        image = self.components[0]
        with self.path.open("rb") as file:
            data = self._part(file.fileno(), image)
        try:
            return decode_doubtful(data)
        except BadImage as error:
            raise damaged(self.path, image.name, error) from error

    def read_labels(self) -> np.ndarray:
        """(L,) int8, without reading the image."""
        found = member(self.components, LABELS_EXTENSION, self.path)
        with self.path.open("rb") as file:
            return np.frombuffer(self._part(file.fileno(), found), np.int8)

    def _part(self, fd: int, component: Component) -> bytes:
        return read_component(fd, component, self.path)


def places(folder: Path, manifest: Manifest) -> Iterator[Place]:
    """Every sample of a data set, split after split, in the order of its shards. Where the folder
    is a URL, a place can be read only until the next one is taken."""
    for split in split_names(manifest):
        for shard in manifest.of_split(split):
            with local_shard(folder, shard) as path:
                for components in read_index(path):
                    yield Place(path, shard, tuple(components))


def find(folder: Path, key: str) -> tuple[Manifest, Place]:
    """The sample of this key. UserError when there is none, with keys that look alike."""
    manifest = load_manifest(folder)
    keys = []
    for place in places(folder, manifest):
        if place.key == key:
            return manifest, place
        keys.append(place.key)
    alike = difflib.get_close_matches(key, keys[:20_000], 3) or keys[:3]
    raise UserError(f"no sample {key!r} in {folder}; there are, for example: {', '.join(alike)}")


def print_list(folder: Path, manifest: Manifest) -> None:
    """A line for each sample: key, split, labels, separated by tabs."""
    for place in places(folder, manifest):
        labels = manifest.vocabulary.decode(place.read_labels())
        print(place.key, place.shard.split, "|".join(labels), sep="\t")


def print_sample(manifest: Manifest, place: Place) -> None:
    """What is known of a sample, a line for each thing."""
    sample = place.read()
    height, width = place.read_pixels().shape
    names = {YES: "yes", UNKNOWN: "unknown"}
    lines = {
        "key": sample.key,
        "shard": f"{place.shard.split}/{place.shard.name}",
        "image": f".{sample.extension}, {width} x {height}, {len(sample.image)} bytes",
    }
    for name, value in zip(manifest.labels, sample.labels):
        lines[f"label {name}"] = names.get(int(value), "no")
    for name, value in asdict(sample.meta).items():
        lines[name] = "not known" if value is None else str(value)
    for name, text in lines.items():
        print(f"{name}: {printable(text)}")


def printable(text: str) -> str:
    """The text without control characters: names in archives may hold any."""
    return "".join(c if c.isprintable() else "?" for c in text)


def picture(place: Place) -> bytes:
    """The image as PNG. RunFailed when it is damaged."""
    return encode(place.read_pixels(), "png")
