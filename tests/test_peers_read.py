"""Others read the shards too: plain webdataset, and DALI on the CPU through its index."""

from pathlib import Path

import numpy as np
import pytest

from shards.codec import decode_grey
from shards.manifest import load_manifest, shard_path
from shards.reader import read_shard


def first_shard(tiny_shards: Path) -> Path:
    folder = tiny_shards / "covid-radiography"
    return shard_path(folder, load_manifest(folder).of_split("train")[0])


def test_webdataset(tiny_shards: Path):
    webdataset = pytest.importorskip("webdataset")
    path = first_shard(tiny_shards)
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    ours = list(read_shard(path))
    assert [sample["__key__"] for sample in theirs] == [sample.key for sample in ours]
    for sample, other in zip(theirs, ours):
        assert sample["jph"] == other.image
        assert np.array_equal(np.frombuffer(sample["lab"], np.int8), other.labels)
        assert sample["json"] == other.meta.to_json()


def test_dali(tiny_shards: Path):
    fn = pytest.importorskip("nvidia.dali.fn")
    dali = pytest.importorskip("nvidia.dali")
    path = first_shard(tiny_shards)
    ours = list(read_shard(path))

    @dali.pipeline_def(batch_size=len(ours), num_threads=1, device_id=None)
    def pipeline():
        images, labels = fn.readers.webdataset(
            paths=[str(path)],
            index_paths=[str(path.with_suffix(".idx"))],
            ext=["jph", "lab"],
            dtypes=[dali.types.UINT8, dali.types.INT8],
        )
        return fn.decoders.image(images, device="cpu", output_type=dali.types.GRAY), labels

    built = pipeline()
    built.build()
    images, labels = built.run()
    for i, sample in enumerate(ours):
        assert np.array_equal(np.array(labels.at(i)), sample.labels)
        assert np.array_equal(np.array(images.at(i))[..., 0], decode_grey(sample.image))
