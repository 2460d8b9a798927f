"""Grad-CAM against CAM and against plain loops; overlays; the explain command."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import stand_in
from torch.nn import functional as F
from torchvision.models import DenseNet

from serve.explain.command import ExplainConfig, explain, load
from serve.explain.gradcam import Cam, GradCam
from serve.explain.overlay import colour, encode, overlay, strip
from serve.explain.subjects import Where, from_files, parse_where
from serve.score_inputs import find_archives
from serve.truth import read_label_table
from shards.codec import decode_grey
from shards.codec import encode as encode_grey
from shards.console import RunFailed, UserError
from shards.preprocess import prepare
from train.models import build_model, head
from train.warp import normalise


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


def grad_cam(model: torch.nn.Module, images: torch.Tensor, label) -> torch.Tensor:
    return GradCam(model)(images, torch.as_tensor(label).expand(len(images)))


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


@pytest.mark.parametrize("label", [0, 2])
def test_cam_is_the_absolute_value_over_its_maximum(model, images, label):
    with torch.no_grad():
        maps = F.relu(model.features(images))
        coarse = torch.einsum("c,nchw->nhw", model.classifier.weight[label], maps).abs()
    fine = F.interpolate(coarse[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    ours = Cam(model)(images, torch.full((4,), label))
    torch.testing.assert_close(ours, fine / fine.amax((1, 2), keepdim=True), rtol=1e-4, atol=1e-5)


ARCHITECTURES = ("resnet18", "squeezenet1_1", "xception")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradcam_equals_hooks_on_the_last_maps_of_every_build(architecture, images):
    torch.manual_seed(0)
    net = build_model(architecture, 3).eval()
    torch.nn.init.ones_(head(net).bias)  # SqueezeNet ends in a ReLU
    layer = {"resnet18": "layer4", "squeezenet1_1": "features", "xception": "act4"}[architecture]
    kept = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m, i, out: kept.append(out))
    logits = net(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    coarse = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    fine = F.interpolate(coarse, images.shape[-2:], mode="bilinear")[:, 0].detach()
    expected = fine / fine.amax((1, 2), keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(grad_cam(net, images, 1), expected, rtol=1e-3, atol=1e-4)
    assert Cam(net)(images, torch.ones(4, dtype=torch.long)).shape == (4, 96, 96)


def test_networks_without_maps_or_a_single_layer_are_refused(images):
    flat = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 96), torch.nn.Flatten()).eval()
    with pytest.raises(UserError, match="no feature maps in Sequential"):
        grad_cam(flat, images, 0)
    soares = build_model("resnet18", 3, head="soares", size=64).eval()
    with pytest.raises(UserError, match="no CAM for SoaresNet"):
        Cam(soares)


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


def test_signed_maps_are_red_above_and_blue_below():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0], heat[1, 1] = 2.0, -1.0
    colours = colour(heat, signed=True)
    assert colours[0, 0].tolist() == [255, 0, 0]
    assert colours[3, 3].tolist() == [255, 255, 255]
    red, green, blue = colours[1, 1].tolist()
    assert blue == 255
    assert red == green < 255
    image = np.full((4, 4), 100, np.uint8)
    over = overlay(image, heat, signed=True)
    assert (over[3, 3] == 100).all()
    assert over[0, 0, 0] > 200 > 50 > over[0, 0, 2]
    assert (colour(np.zeros((4, 4), np.float32), signed=True) == 255).all()


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
    stand_in(monkeypatch, model, size=64)


def run_explain(images, out, **settings):
    explain(ExplainConfig(run=Path("run"), out=out, images=images, **settings))
    return json.loads((out / "explanations.json").read_bytes())


def test_explain_writes_strips_maps_and_a_list(files, trained, tmp_path, capsys):
    images = (files / "a.png", files / "b b.png")
    out = tmp_path / "out"
    told = run_explain(images, out, label="Viral Pneumonia", method="gradcam,lrp")
    assert len(list(out.iterdir())) == 2 * 2 * 3 + 1
    assert told["methods"] == ["gradcam", "lrp"]
    first, second = [item for item in told["items"] if item["key"] == "a"]
    assert first["map"] == "a-gradcam-Viral_Pneumonia.npy"
    assert (first["truth"], first["wrong"]) == (None, None)
    heat = np.load(out / first["map"], allow_pickle=False)
    assert heat.shape == (64, 64)
    assert heat.dtype == np.float32
    assert 0 <= heat.min() <= heat.max() <= 1
    assert decode_grey((out / first["strip"]).read_bytes()).shape == (64, 192)
    assert decode_grey((out / first["overlay"]).read_bytes()).shape == (64, 64)
    relevance = np.load(out / second["map"], allow_pickle=False)
    assert relevance.sum() == pytest.approx(second["relevance_sum"], rel=1e-4)
    if not second["bias_decides"]:
        assert second["relevance_sum"] == pytest.approx(second["logit"], rel=0.02)
    assert capsys.readouterr().out.count("Viral Pneumonia 0.") == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_map_adds_up_to_the_logit_whose_probability_stands_beside_it(
    files, trained, model, tmp_path, precision
):
    """The pass in bf16 has a logit of its own, which no number of the list comes from."""
    more = {} if precision == "fp32" else {"precision": precision}  # fp32 is the default
    told = run_explain((files / "a.png",), tmp_path / "out", method="lrp", **more)
    (item,) = told["items"]
    assert told["precision"] == precision
    image = prepare(decode_grey((files / "a.png").read_bytes()), None, 64)
    with torch.inference_mode():
        logits = model(normalise(torch.tensor(image[None])))[0]
    assert item["logit"] == pytest.approx(float(logits.max()), rel=1e-5)
    assert item["probability"] == pytest.approx(1 / (1 + np.exp(-item["logit"])), rel=1e-5)
    assert item["relevance_sum"] == pytest.approx(item["logit"], rel=0.01)


def test_an_explanation_on_a_gpu_is_in_fp32_proper(trained, monkeypatch):
    said = []
    monkeypatch.setattr("train.precision.set_cuda", lambda device, **how: said.append(how))
    load(Path("run"), None, ["occlusion"])
    assert said == [{"tf32": False, "few_shapes": False}]


def test_an_old_list_does_not_name_the_maps_of_another_network(files, trained, tmp_path):
    """The report takes maps by the list; a killed run writes none."""
    out = tmp_path / "out"
    run_explain((files / "a.png",), out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.explain.command.strip", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_explain((files / "a.png",), out)
    assert not (out / "explanations.json").exists()


def test_explain_takes_rows_of_a_score_file(trained, tiny_shards, tmp_path):
    folder = tiny_shards / "covid-radiography"
    truth = read_label_table(folder, "test")
    names = truth.names
    rows = [["key", *names]]
    for key, labels in zip(truth.keys, truth.labels):
        called = labels == 1 if len(rows) % 2 else np.roll(labels == 1, 1)
        rows.append([key, *np.where(called, 0.9, 0.1)])
    scores = tmp_path / "scores.csv"
    scores.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    settings = {"shards": folder, "scores": scores}
    wrong = run_explain((), tmp_path / "a", where="error", **settings)
    assert {item["key"] for item in wrong["items"]} == set(truth.keys[1::2])
    positives = run_explain((), tmp_path / "b", where=f"true={names[2]}", limit=2, **settings)
    assert len(positives["items"]) == 2
    assert all(item["truth"] == [names[2]] for item in positives["items"])
    both = f"true={names[0]},predicted={names[0]}"
    right = run_explain((), tmp_path / "c", where=both, **settings)
    assert {item["key"] for item in right["items"]} <= set(truth.keys[::2])
    with pytest.raises(UserError, match="no such label"):
        run_explain((), tmp_path / "d", where="true=Measles", **settings)
    with pytest.raises(UserError, match="no split 'tes'"):
        run_explain((), tmp_path / "d", split="tes", shards=folder)


def test_explain_takes_the_positives_of_scored_archives(files, trained, tmp_path, capsys):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("a.png", "b b.png", "broken.png"):
            tar.add(files / name, f"sub/{name}")
    keys = [entry.key for entry in find_archives([archive])[0].entries()]
    scores = tmp_path / "scores.csv"
    rows = [f"{key},{value},{1 - value},0" for key, value in zip(keys, (0.9, 0.2, 0.8))]
    head = "key,Normal,Viral Pneumonia,COVID-19"
    scores.write_text("\n".join([head, *rows[:2], "gone,1,0,0"]) + "\n")
    settings = {"scores": scores, "where": "predicted=Normal"}
    with pytest.raises(RunFailed, match="1 of 2 images"):
        run_explain((archive,), tmp_path / "a", **settings)
    assert (
        "1 of the 2 chosen images cannot be read from these archives, the first"
        in capsys.readouterr().err
    )
    told = json.loads((tmp_path / "a" / "explanations.json").read_bytes())
    assert [item["key"] for item in told["items"]] == keys[:1]
    words = ["--scores", str(scores), "--where", "predicted=Normal"]
    assert told["options"] == [*words, "IMAGE..."]  # its name may be a patient's
    assert told["failed"] == [{"key": "gone", "reason": "not in these archives as they are now"}]
    scores.write_text("\n".join([head, *rows]) + "\n")
    with pytest.raises(RunFailed, match="1 of 2 images"):  # the broken one
        run_explain((archive,), tmp_path / "b", **settings)
    viral = run_explain(
        (archive,), tmp_path / "c", **settings | {"where": "predicted=Viral Pneumonia"}
    )
    assert [item["key"] for item in viral["items"]] == keys[1:2]
    for where, message in (("error", "need the truth"), ("predicted=COVID-19", "no row of")):
        with pytest.raises(UserError, match=message):
            run_explain((archive,), tmp_path / "d", **settings | {"where": where})
    scores.write_text("\n".join([head, rows[0], rows[0]]) + "\n")
    with pytest.raises(UserError, match="stands twice"):
        run_explain((archive,), tmp_path / "d", **settings)


def test_a_dicom_files_name_is_no_key(tmp_path):
    path = tmp_path / "DOE^JANE.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM")
    (subject,) = from_files([path])
    assert subject.key.startswith("dicom-")
    assert "JANE" not in subject.key


@pytest.mark.parametrize(
    "text", ["true", "error=1", "wrong", "true=a,true=b", "predicted=", "truth=a"]
)
def test_where_refuses_what_it_does_not_understand(text):
    with pytest.raises(UserError, match="--where"):
        parse_where(text)


def test_where_reads_its_terms():
    assert parse_where("") == Where()
    assert parse_where("true=No Finding, error") == Where("No Finding", None, True)


def test_explain_does_the_others_and_fails_when_an_image_is_broken(
    files, trained, tmp_path, capsys
):
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match="1 of 2 images could not be read"):
        run_explain((files / "broken.png", files / "a.png"), out)
    assert len(list(out.glob("a-gradcam-*.png"))) == 2
    assert "broken.png: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gradcam,magic"}, "no method 'magic'; there are: lrp, gradcam, cam"),
        ({"method": "cam", "limit": 0}, "--limit is 0"),
        ({"where": "error"}, "chooses among the images of --scores or --shards"),
        ({"shards": Path("x")}, "take one of them"),
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
        run_explain((files / "a.png", files / "c" / "a.png"), tmp_path)
