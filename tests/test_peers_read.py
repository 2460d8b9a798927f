"""Others read the shards too: plain webdataset, and DALI on the CPU through its index."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.codec import decode_grey
from shards.console import RunFailed, UserError
from shards.manifest import check_shards, load_manifest, shard_path
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


@pytest.mark.parametrize("stale", ["another shard's", "one sample fewer", "shifted by a block"])
def test_a_stale_index_is_refused_before_anybody_reads(
    tiny_shards: Path, tmp_path: Path, stale: str
):
    """DALI would silently take other bytes for images and labels."""
    name = "covid-radiography"
    folder = Path(shutil.copytree(tiny_shards / name, tmp_path / name))
    manifest = load_manifest(folder)
    path = shard_path(folder, manifest.of_split("train")[0])
    index = path.with_suffix(".idx")
    head, *rows = index.read_text().splitlines()
    if stale == "another shard's":
        other = shard_path(folder, manifest.of_split("test")[0]).with_suffix(".idx")
        index.write_bytes(other.read_bytes())
    elif stale == "one sample fewer":
        index.write_text("\n".join([f"v1.2 {len(rows) - 1}", *rows[1:]]) + "\n")
    else:
        moved = [row.split() for row in rows]
        for words in moved:
            words[1::4] = [str(int(offset) + 512) for offset in words[1::4]]
        index.write_text("\n".join([head, *map(" ".join, moved)]) + "\n")
    with pytest.raises(UserError, match="is not the index of"):
        check_shards(folder, manifest, ("train",))
    if stale != "one sample fewer":
        with pytest.raises(RunFailed, match="ingest again"):
            list(read_shard(path))
