"""train.input_torch: the fast resize is Pillow's to its rounding, whatever is beside an image."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.console import UserError
from shards.preprocess import resize
from train.decoding import choose_backend
from train.input_torch import decode_images, resize_group

SIDE = st.integers(1, 160)


def noise(seed: int, count: int, height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width), np.uint8) for _ in range(count)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), SIDE, SIDE, st.integers(1, 100), st.integers(0, 9))
def test_it_is_pillows_but_for_the_rounding_of_two_passes(count, height, width, size, seed):
    images = noise(seed, count, height, width)
    found = resize_group(images, size)
    assert found.shape == (count, size, size)
    for ours, image in zip(found, images):
        difference = np.abs(ours.astype(int) - resize(image, size))
        assert difference.max() <= 2
        assert difference.mean() <= 0.5
        assert np.array_equal(ours, resize_group([image], size)[0])


@pytest.mark.parametrize("shape", [(512, 512), (224, 224)])
def test_square_radiographs_are_pillows_exactly(shape):
    images = noise(0, 4, *shape)
    for ours, image in zip(resize_group(images, 224), images):
        assert np.array_equal(ours, resize(image, 224))


def test_auto_without_dali_takes_torch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "train.input_dali", None)  # as if DALI were not installed
    name, decoder = choose_backend("auto", torch.device("cuda"))
    assert (name, decoder) == ("torch", decode_images)
    assert "torch's threads decode" in capsys.readouterr().err
    with pytest.raises(UserError, match="dali input is not there"):
        choose_backend("dali", torch.device("cuda"))
