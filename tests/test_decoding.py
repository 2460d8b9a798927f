"""train.decoding, train.input_torch: what is checked is decoded, in order, in any portions."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.codec import decode_grey
from shards.console import RunFailed
from shards.manifest import load_manifest
from shards.split_reader import SplitReader
from train.decoding import CHUNK, checked_chunks
from train.input_torch import decode_images, resize_group


class Shards:
    """Eight shards of 50 samples, whose check takes a moment; that of `bad` fails."""

    def __init__(self, bad: int = -1) -> None:
        self.starts, self.bad = np.arange(9) * 50, bad
        self.begun: list[int] = []
        self.checked: list[int] = []
        self._lock = threading.Lock()

    shards_of = SplitReader.shards_of
    shards = range(8)

    def scan(self, number: int) -> None:
        with self._lock:
            self.begun.append(number)
        time.sleep(0.005)
        if number == self.bad:
            raise RunFailed(f"shard {number} does not match")
        with self._lock:
            self.checked.append(number)


@pytest.mark.parametrize("threads", [1, 7, 8, 40])
@pytest.mark.parametrize(("start", "stop"), [(0, 400), (75, 320), (60, 61), (50, 100)])
def test_a_shard_is_handed_on_when_it_is_checked(threads, start, stop):
    reader, seen = Shards(), []
    for chunk in checked_chunks(reader, start, stop, threads):  # type: ignore[arg-type]
        assert len(chunk) <= CHUNK
        (number,) = set((chunk // 50).tolist())
        assert number in reader.checked
        assert len(reader.begun) <= number - start // 50 + 2 + threads // 8  # a few are read ahead
        seen.extend(chunk.tolist())
    assert seen == list(range(start, stop))
    assert sorted(reader.begun) == list(range(start // 50, -(-stop // 50)))


@pytest.mark.parametrize("threads", [1, 40])
def test_of_a_damaged_shard_and_behind_it_nothing_comes(threads):
    seen = []
    chunks = checked_chunks(Shards(bad=2), 0, 400, threads)  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="shard 2 does not match"):
        seen.extend(position for chunk in chunks for position in chunk.tolist())
    assert seen == list(range(100))


@pytest.fixture
def reader(tiny_shards: Path) -> SplitReader:
    folder = tiny_shards / "chestxray14"
    reader = SplitReader(folder, load_manifest(folder), "train")
    for number in range(len(reader.shards)):
        reader.scan(number)
    return reader


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_of_any_size_are_decoded_in_order(reader, threads):
    order = np.random.default_rng(0).permutation(len(reader))
    chunks = np.split(order, [1, 9, 9, 17])
    found = list(decode_images(reader, chunks, 32, threads))
    assert [len(images) for images in found] == [len(chunk) for chunk in chunks]
    for images, chunk in zip(found, chunks):
        for image, position in zip(images.numpy(), chunk.tolist()):
            expected = resize_group([decode_grey(reader.read(position))], 32)[0]
            assert np.array_equal(image, expected)


def test_an_image_that_changes_is_named_whatever_its_place_in_a_chunk(reader):
    reader.checksums[11] += 1
    with pytest.raises(RunFailed, match=f"has changed under the run .image {reader.keys[11]}"):
        list(decode_images(reader, [np.arange(20)], 32, 2))


class Nothing:
    """Stands for a pipeline that has no more images."""

    def build(self) -> None: ...

    def run(self) -> None:
        raise StopIteration


@pytest.mark.parametrize(("device", "number"), [("cuda:1", 1), ("cuda", 0), ("cpu", None)])
def test_the_thread_that_dali_decodes_in_is_on_its_own_gpu(monkeypatch, device, number):
    input_dali = pytest.importorskip("train.input_dali", reason="DALI is not installed")
    done: list[object] = []

    def pipeline(encoded, gpu, *, num_threads, device_id):
        done.append((gpu, device_id))
        return Nothing()

    monkeypatch.setattr(input_dali, "_pipeline", pipeline)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    assert list(input_dali.decoder_for(torch.device(device))(Shards(), [], 32, 2)) == []
    assert done == ([(False, None)] if number is None else [number, (True, number)])
