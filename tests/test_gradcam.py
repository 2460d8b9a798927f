"""Grad-CAM against CAM and against plain loops; overlays; the explain command."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models import DenseNet

from serve.explain.command import ExplainConfig, explain
from serve.explain.gradcam import grad_cam
from serve.explain.overlay import colour, encode, overlay, strip
from shards.codec import decode_grey
from shards.codec import encode as encode_grey
from shards.console import RunFailed, UserError


@pytest.fixture(scope="module")
def model() -> DenseNet:
    torch.manual_seed(0)
    net = DenseNet(growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16, num_classes=3)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def cam(model: DenseNet, images: torch.Tensor, label: int) -> torch.Tensor:
    """Zhou et al.: the classifier's weights over the last maps, positive part, upsampled."""
    with torch.no_grad():
        maps = F.relu(model.features(images))
        coarse = torch.einsum("c,nchw->nhw", model.classifier.weight[label], maps).relu()
    return F.interpolate(coarse[:, None], images.shape[-2:], mode="bilinear")[:, 0]


def slow_grad_cam(model: DenseNet, image: torch.Tensor, label: int) -> torch.Tensor:
    """One image (1, 3, S, S), one channel at a time, through the network's own graph."""
    maps = F.relu(model.features(image))
    logit = model.classifier(maps.mean((2, 3)))[0, label]
    (gradient,) = torch.autograd.grad(logit, maps)
    coarse = torch.zeros(maps.shape[-2:])
    for channel in range(maps.shape[1]):
        coarse += gradient[0, channel].mean() * maps[0, channel].detach()
    fine = F.interpolate(coarse.relu()[None, None], image.shape[-2:], mode="bilinear")[0, 0]
    return fine / fine.max() if fine.max() > 0 else fine


@pytest.mark.parametrize("label", [0, 1, 2])
def test_gradcam_equals_cam_up_to_a_constant(model, images, label):
    ours, theirs = grad_cam(model, images, label), cam(model, images, label)
    assert ours.shape == (4, 96, 96)
    assert ours.dtype == torch.float32
    for one, other in zip(ours, theirs):
        if other.max() == 0:
            assert one.max() == 0
        else:
            assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.999
            assert one.max() == 1
            assert one.min() >= 0


def test_gradcam_equals_plain_loops_with_a_class_per_image(model, images):
    labels = torch.tensor([2, 0, 1, 0])
    ours = grad_cam(model, images, labels)
    for i, label in enumerate(labels.tolist()):
        slow = slow_grad_cam(model, images[i : i + 1], label)
        torch.testing.assert_close(ours[i], slow, rtol=1e-4, atol=1e-5)


def test_gradcam_works_under_no_grad_and_leaves_no_gradients(model, images):
    with torch.no_grad():
        grad_cam(model, images[:1], 0)
    assert all(p.grad is None for p in model.parameters())


def test_gradcam_of_nothing_is_zero(model, images):
    bias_only = DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=2)
    torch.nn.init.zeros_(bias_only.classifier.weight)
    assert grad_cam(bias_only.eval(), images[:1], 0).max() == 0


def test_gradcam_refuses_another_build(images):
    with pytest.raises(UserError, match="no Grad-CAM for Conv2d"):
        grad_cam(torch.nn.Conv2d(3, 3, 1), images, 0)


def test_overlay_is_half_heat_half_image():
    image = np.full((4, 4), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1.0
    colours = colour(heat)
    assert colours[0, 0, 0] > colours[0, 0, 2]  # red is high
    assert colours[3, 3, 2] > colours[3, 3, 0]  # blue is low
    expected = np.rint(0.5 * colours.astype(float) + 50)
    assert np.abs(overlay(image, heat).astype(float) - expected).max() <= 1
    assert strip(image, heat).shape == (4, 12, 3)
    assert (strip(image, heat)[:, :4] == 100).all()
    assert encode(strip(image, heat), ".png").startswith(b"\x89PNG")


@pytest.fixture
def files(tmp_path):
    """Two images of 80 x 60 pixels, and a file that is none."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b b.png"):
        (tmp_path / name).write_bytes(encode_grey(rng.integers(0, 255, (60, 80), np.uint8), "png"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return tmp_path


@pytest.fixture
def trained(model, monkeypatch):
    """What stands for a run folder: the small network, with names for its outputs."""
    labels = ("Normal", "Viral Pneumonia", "COVID-19")
    spec = SimpleNamespace(labels=labels, exclusive=True, size=64, shorter_side=None)
    monkeypatch.setattr("train.runs.load_run_model", lambda run, stage: (model, spec))


def test_explain_writes_strips_and_maps(files, trained, tmp_path, capsys):
    images = (files / "a.png", files / "b b.png")
    out = tmp_path / "out"
    explain(ExplainConfig(images, Path("run"), out, label="Viral Pneumonia"))
    names = sorted(path.name for path in out.iterdir())
    assert names[:2] == ["a-gradcam-Viral_Pneumonia.npy", "a-gradcam-Viral_Pneumonia.png"]
    assert len(names) == 4
    heat = np.load(out / names[0], allow_pickle=False)
    assert heat.shape == (64, 64)
    assert heat.dtype == np.float32
    assert 0 <= heat.min() <= heat.max() <= 1
    assert decode_grey((out / names[1]).read_bytes()).shape == (64, 192)
    assert capsys.readouterr().out.count("Viral Pneumonia 0.") == 2


def test_explain_does_the_others_and_fails_when_an_image_is_broken(
    files, trained, tmp_path, capsys
):
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match="1 of 2 images could not be read"):
        explain(ExplainConfig((files / "broken.png", files / "a.png"), Path("run"), out))
    assert len(list(out.glob("a-gradcam-*.png"))) == 1
    assert "broken.png: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "no method 'magic'; there are: gradcam"),
        ({"label": "Covid"}, "no label 'Covid' .* Normal, Viral Pneumonia, COVID-19"),
        ({"images": ()}, "no image named"),
        ({"images": (Path("none.png"),)}, r"no file none\.png"),
    ],
)
def test_explain_refuses_in_one_line(files, trained, tmp_path, change, message):
    settings = {"images": (files / "a.png",), "run": Path("run"), "out": tmp_path / "out"} | change
    with pytest.raises(UserError, match=message):
        explain(ExplainConfig(**settings))


def test_explain_refuses_two_images_of_one_name(files, trained, tmp_path):
    (files / "c").mkdir()
    (files / "c" / "a.png").write_bytes((files / "a.png").read_bytes())
    with pytest.raises(UserError, match="the same file"):
        explain(ExplainConfig((files / "a.png", files / "c" / "a.png"), Path("run"), tmp_path))
