"""Golden images: both input backends against a slow numpy reference of the preprocessing contract,
at most 1 grey level on average and 6 at most, on every kind of image that a shard can hold."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shards.codec import encode
from shards.manifest import FILE_NAME, Manifest, SplitCounts
from shards.sample import Sample, SampleMeta
from shards.writer import write_shard
from train.load import load_store
from train.store import InputConfig

SIZE = 56
SHAPES = [(128, 128), (128, 161), (203, 128), (97, 131), (56, 56), (40, 51), (301, 33)]


def picture(number: int, height: int, width: int) -> np.ndarray:
    """(H, W) float in 0..1: soft ribs, sharp letters, noise."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = 0.5 + 0.3 * np.sin(20 * x + 3 * number) * np.cos(9 * y) + 0.1 * rng.random(y.shape)
    image[height // 8 : height // 4, width // 8 : width // 4] = 1.0
    image[-height // 4 :, ::7] = 0.0
    return image.clip(0, 1)


def colour(number: int, height: int, width: int) -> np.ndarray:
    planes = [picture(number + i, height, width) for i in range(3)]
    return (np.stack(planes, -1) * 255).astype(np.uint8)


def as_file(image: np.ndarray, kind: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def golden() -> list[tuple[str, bytes, np.ndarray]]:
    """(extension, file, its grey 8-bit pixels as the contract's step 1 gives them)."""
    found = []
    for number, shape in enumerate(SHAPES):
        grey = (picture(number, *shape) * 255).astype(np.uint8)
        found += [("jph", encode(grey, "htj2k"), grey), ("png", as_file(grey, "PNG"), grey)]
        rgb = colour(number, *shape)
        luma = (rgb @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
        found.append(("png", as_file(rgb, "PNG"), luma))
        deep = (picture(number, *shape) * 65535).astype(np.uint16)
        found.append(("png", as_file(deep, "PNG"), (deep >> 8).astype(np.uint8)))
        soft = np.asarray(Image.fromarray(grey).resize(shape[::-1]).convert("L"))
        data = as_file(soft, "JPEG", quality=95)
        found.append(("jpg", data, np.asarray(Image.open(io.BytesIO(data)))))
    return found


def triangle_weights(before: int, after: int) -> np.ndarray:
    """(after, before): the filter's support grows with the reduction."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    distances = np.abs(np.arange(before) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distances, 0, None)
    return weights / weights.sum(1, keepdims=True)


def reference(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    return triangle_weights(height, SIZE) @ grey @ triangle_weights(width, SIZE).T


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "golden"
    meta = SampleMeta("test", "file", "0" * 64, 1, 1)
    labels = np.array([1, 0], np.int8)
    samples = [
        Sample(f"image{i:03d}", data, extension, labels, meta)
        for i, (extension, data, _) in enumerate(golden())
    ]
    shard = write_shard(folder / "train" / "golden-train-000000.tar", "train", samples)
    manifest = Manifest(
        dataset="golden",
        labels=("a", "b"),
        exclusive=True,
        image_extension="jph;png;jpg",
        preprocessing_version=1,
        shorter_side=None,
        splits={"train": SplitCounts(len(samples), {"a": len(samples), "b": 0})},
        excluded={},
        settings={},
        shards=(shard,),
    )
    (folder / FILE_NAME).write_bytes(manifest.to_json())
    return folder


def images_of(dataset: Path, backend: str) -> np.ndarray:
    from shards.manifest import load_manifest

    config = InputConfig(backend=backend, threads=1)  # type: ignore[arg-type]
    store = load_store(
        dataset,
        load_manifest(dataset),
        "train",
        size=SIZE,
        config=config,
        device=torch.device("cpu"),
        shown=False,
    )
    return store.images.numpy().astype(float)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_backends_are_the_contract(dataset, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    for found, (extension, _, grey) in zip(images_of(dataset, backend), golden(), strict=True):
        difference = np.abs(found - reference(grey))
        what = f"{extension} {grey.shape}: mean {difference.mean():.2f}, max {difference.max():.2f}"
        assert difference.mean() <= 1.0, what
        assert difference.max() <= 6.0, what


def test_backends_agree(dataset):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    difference = np.abs(images_of(dataset, "torch") - images_of(dataset, "dali"))
    assert difference.mean(axis=(1, 2)).max() <= 1.0
    assert difference.max() <= 6.0
