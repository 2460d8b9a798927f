"""Occlusion: the windows, what a flip is, and batches against one window at a time; and memory that
runs out in any explanation."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from serve.explain.methods import Explained, Explainer
from serve.explain.occlusion import Occlusion, Outputs, windows
from shards.console import RunFailed
from train.models import build_model
from train.warp import normalise

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Two logits: brighter than a threshold in the upper left quarter, and the contrary."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        value = images[:, :, :half, :half].mean((1, 2, 3)) - self.bias
        return torch.stack([value, -value], 1)


@pytest.mark.parametrize("size", [32, 64, 100, 224, 237])
def test_windows_cover_every_pixel_and_stay_inside(size):
    cover = np.zeros((size, size), int)
    for rows, columns in windows(size):
        assert 0 <= rows.start < rows.stop <= size
        assert rows.stop - rows.start == columns.stop - columns.start == round(32 * size / 224)
        cover[rows, columns] += 1
    assert cover.min() >= 1


def test_the_papers_windows_at_224():
    found = list(windows(224))
    assert len(found) == 13 * 13
    assert found[1] == (slice(0, 32), slice(16, 48))


def image_with_spot() -> np.ndarray:
    image = np.full((64, 64), 100, np.uint8)
    image[4:10, 4:10] = 255
    return image


def test_a_window_is_marked_where_the_call_flips():
    image = image_with_spot()
    with torch.no_grad():
        whole = Brightness(0.0)(normalise(torch.tensor(image[None])))[0, 0]
    # Just above: what covers the spot flips the call, and so does some more of the quarter.
    found = Occlusion(Brightness(float(whole) - 0.09), Outputs(True), 64, CPU)(image, 0)
    assert found.called
    assert 0 < found.flipped < found.windows
    assert found.flips[6, 6] == 1
    assert found.flips[:, 40:].max() == 0
    assert found.drops[6, 6] > found.drops[40, 40] == pytest.approx(0, abs=1e-6)


def test_nothing_flips_where_the_label_was_not_called():
    found = Occlusion(Brightness(100.0), Outputs(True), 64, CPU)(image_with_spot(), 0)
    assert not found.called
    assert found.flips.max() == 0


def test_calls_of_labels_that_do_not_exclude_each_other_are_from_one_half():
    logits = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert (Outputs(False).margins(logits, 0) > 0).tolist() == [True, False]
    assert (Outputs(True).margins(logits, 0) > 0).tolist() == [False, True]
    softmax = Outputs(True, "softmax").probabilities(logits)
    torch.testing.assert_close(softmax.sum(1), torch.ones(2))


@pytest.mark.parametrize("target", [1, 2])
def test_batches_give_the_calls_of_one_window_at_a_time(target):
    torch.manual_seed(0)
    net = DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=3).eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    outputs = Outputs(exclusive=True)
    with torch.inference_mode():
        # The bias makes the whole image a close call, so that windows flip it.
        logits = net(normalise(torch.tensor(image[None])))[0]
        net.classifier.bias[target] += logits.max() - logits[target] + 0.001
    found = Occlusion(net, outputs, 64, CPU)(image, target)
    rounded = Occlusion(net, outputs, 64, CPU, "bf16")(image, target)
    flips, drops, cover = np.zeros((64, 64)), np.zeros((64, 64)), np.zeros((64, 64))
    with torch.inference_mode():
        before = net(normalise(torch.tensor(image[None])))[0].sigmoid()[target]
        for place in windows(64):
            black = image.copy()
            black[place] = 0
            logits = net(normalise(torch.tensor(black[None])))[0]
            flips[place] += int(logits.argmax() != target)
            drops[place] += float(before - logits.sigmoid()[target])
            cover[place] += 1
    assert found.flipped > 0
    np.testing.assert_allclose(found.flips, flips / cover, atol=1e-6)
    np.testing.assert_array_equal(rounded.flips, found.flips)  # close calls are made in fp32
    np.testing.assert_allclose(found.drops, drops / cover, atol=1e-5)
    np.testing.assert_allclose(rounded.drops, drops / cover, atol=5e-3)
    explained = Explainer("occlusion", net, 64, outputs)(image[None], [target])
    np.testing.assert_array_equal(explained.maps[0], found.flips)
    assert explained.notes[0]["windows"] == found.windows


def test_memory_that_runs_out_halves_the_images_at_once(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64), np.uint8)
    model, classes = build_model("squeezenet1_1", 3).eval(), [0, 1, 2, 0, 1]
    made = Explainer("gradcam", model, 64, Outputs(exclusive=True))
    expected, real = made(images, classes), made.explain
    sizes, room = [], [2]

    def limited(part: np.ndarray, targets: list[int], logits: None) -> Explained:
        sizes.append(len(part))
        if len(part) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(part, targets, logits)

    monkeypatch.setattr(made, "explain", limited)
    np.testing.assert_allclose(made(images, classes).maps, expected.maps, atol=1e-5)
    assert sizes == [4, 2, 2, 1]
    room[0] = 0
    said = r"a single image \(CUDA out of memory\. Tried .*\)"
    for device, way_out in (("cuda", "; CUDA_VISIBLE_DEVICES= hides"), ("cpu", "; end what else")):
        monkeypatch.setattr(made, "device", torch.device(device))
        with pytest.raises(RunFailed, match=said + way_out):
            made(images, classes)
