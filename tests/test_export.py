"""A run becomes one file that a stranger's ONNX Runtime loads, behind the gate, with its papers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_triton import parse
from tiny_model import model_info

import serve.export as module
from serve.__main__ import closing_lines
from serve.export import ExportConfig, Exported, Scorer, export, to_onnx
from serve.inspect import InspectConfig, inspect
from serve.providers import read_model_info
from serve.quantise import to_fp16, to_int8
from serve.split_images import SplitImages, spread
from serve.taps import add_cam, add_features
from serve.thresholds import choose
from shards.console import RunFailed, UserError
from shards.manifest import load_manifest, manifest_hash
from train.models import ARCHITECTURES, build_model, head
from train.runs import ModelSpec, load_run_model, save_model

COVID = "covid-radiography"
SIZE = 64


def warmed(architecture: str, outputs: int, **options) -> torch.nn.Module:
    """Random weights, and batch norm that has seen images: then activations are of usual size."""
    torch.manual_seed(0)
    model = build_model(architecture, outputs, size=SIZE, **options).train()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 0.5
        for _ in range(3):
            model(torch.randn(4, 3, SIZE, SIZE))
    return model.eval()


def make_run(folder: Path, shards: Path, architecture: str = "densenet121") -> Path:
    """A finished run's folder as training leaves it, with random weights."""
    manifest = load_manifest(shards / COVID)
    spec = ModelSpec(
        architecture=architecture,
        labels=manifest.labels,
        exclusive=True,
        size=SIZE,
        shorter_side=manifest.shorter_side,
        preprocessing_version=1,
        dataset=COVID,
        manifest_hash=manifest_hash(shards / COVID),
        recipe="demo",
        stage="covid",
        synthetic=True,
    )
    save_model(folder / "covid", warmed(architecture, len(manifest.labels)), spec)
    settings = {"shards": str(shards), "config": {"stages": [{"name": "covid"}]}}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_run(tmp_path_factory.mktemp("run"), tiny_shards)


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[ExportConfig, Exported]:
    """DenseNet121 in fp32 with everything that can be asked for."""
    settings = ExportConfig(run, run / "m.onnx", features=True, cam=True, triton=run / "triton")
    return settings, export(settings)


@pytest.fixture
def quick(exported, monkeypatch: pytest.MonkeyPatch) -> ExportConfig:
    """Exports of the same run without tracing the network again."""
    graph = onnx.load(exported[0].out)
    del graph.graph.output[2:]
    monkeypatch.setattr(module, "to_onnx", lambda *_: onnx.ModelProto.FromString(bytes_of(graph)))
    return ExportConfig(exported[0].run, exported[0].run / "quick" / "q.onnx")


def bytes_of(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString()


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def validation(run: Path, shards: Path) -> tuple[np.ndarray, np.ndarray]:
    manifest = load_manifest(shards / COVID)
    parts = list(SplitImages(shards / COVID, manifest, SIZE, manifest.labels).batches("val"))
    return tuple(np.concatenate(part) for part in zip(*parts))


def test_a_fresh_onnxruntime_gives_what_torch_gives(exported, run, tiny_shards, tmp_path):
    images, _ = validation(run, tiny_shards)
    model, spec = load_run_model(run)
    with torch.inference_mode():
        expected = Scorer(model, spec.output)(torch.from_numpy(images))[1].numpy()
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np, onnxruntime as o\n"
        "s = o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "x = np.load('images.npy')\n"
        "one = np.concatenate([s.run(['probabilities'], {'images': i[None]})[0] for i in x])\n"
        "assert np.abs(one - s.run(['probabilities'], {'images': x})[0]).max() < 1e-5\n"
        "assert not {'torch', 'serve', 'train', 'onnx'} & set(sys.modules)\n"
        "np.save('out.npy', one)"
    )
    words = [sys.executable, "-c", code, str(exported[0].out)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_the_taps_explain_the_logits(exported, run, tiny_shards):
    layer = head(load_run_model(run)[0])
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    images, _ = validation(run, tiny_shards)
    names = ["logits", "features", "cam"]
    logits, features, cam = session_of(exported[0].out).run(names, {"images": images})
    np.testing.assert_allclose(features @ weight.T + bias, logits, atol=1e-4)
    np.testing.assert_allclose(cam.mean(axis=(2, 3)) + bias, logits, atol=1e-4)


def test_the_file_says_what_it_is(exported, run, tiny_shards):
    settings, result = exported
    session = session_of(settings.out)
    info = read_model_info(session, "m.onnx")
    images, targets = validation(run, tiny_shards)
    found = session.run(["probabilities"], {"images": images})[0]
    assert info.thresholds == choose(found, targets, info.labels)
    assert info.parity == result.parity
    assert result.parity.images == len(images)
    assert result.parity.max_probability_difference < 1e-5
    assert info.manifest_hash == manifest_hash(tiny_shards / COVID)
    assert (info.run, info.recipe, info.precision) == (run.name, "demo", "fp32")
    splits = load_manifest(tiny_shards / COVID).splits
    assert info.splits == {name: counts.samples for name, counts in splits.items()}
    assert list(info.splits) == ["train", "val", "test"]


def test_a_stage_with_some_of_the_labels_is_judged_by_these(run, tiny_shards):
    """As 14 of ChestX-ray14's 15: each output was compared with the data set's label there."""
    labels = ("COVID-19", "Normal")
    spec = replace(load_run_model(run)[1], labels=labels)
    images = module._split_images(ExportConfig(run, run / "m.onnx"), spec)
    found = np.concatenate([targets for _, targets in images.batches("val")])
    columns = [load_manifest(tiny_shards / COVID).labels.index(label) for label in labels]
    np.testing.assert_array_equal(found, validation(run, tiny_shards)[1][:, columns])


def test_the_card_says_it_aloud(exported):
    text = exported[1].card.read_text()
    assert exported[1].card.name == "m.md"
    for words in ("not a medical device", "synthetic", "Viral Pneumonia", "sensitivity98", "fp32"):
        assert words in text
    assert all(f"| {name} |" in text for name in ("train", "val", "test"))
    assert "No test metrics" in text
    for told in ("`probabilities` (sigmoid) float32 (N, 3)", "`cam` float32 (N, 3, any, any)"):
        assert f"| output | {told} |" in text


def test_the_triton_repository_fits_the_model(exported):
    found, _ = parse((exported[1].triton / "config.pbtxt").read_text())
    session = session_of(exported[1].triton / "1" / "model.onnx")
    assert found.name == exported[1].triton.name == "m"
    assert [list(i.dims) for i in found.input] == [i.shape[1:] for i in session.get_inputs()]
    assert {o.type for o in session.get_outputs()} == {"tensor(float)"}
    told = {o.name: list(o.dims) for o in found.output}
    assert told.keys() == {o.name for o in session.get_outputs()}
    for output in session.get_outputs():
        pairs = zip(told[output.name], output.shape[1:], strict=True)
        assert all(side in (-1, real) for side, real in pairs)


def test_inspect_prints_all_of_it(exported, capsys):
    rows = inspect(InspectConfig(exported[0].out))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: {value}" for name, value in rows]
    names = {name for name, _ in rows}
    assert {"labels", "precision", "parity", "licence", "intended use", "data set"} <= names
    assert {"split", "synthetic", "youden COVID-19", "sensitivity98 Normal"} <= names
    assert sum(name == "output" for name, _ in rows) == 4


def test_closing_lines_name_every_file(exported):
    text = "\n".join(closing_lines("export", *exported))
    assert all(name in text for name in ("m.onnx", "m.md", "triton/m"))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_pass_their_gate(quick, tmp_path, precision):
    settings = replace(quick, out=tmp_path / "q.onnx", precision=precision, calibration=8)
    # Random weights order the few images by noise: what int8 may do to that is no matter here.
    loose = replace(settings, max_auroc_loss=1.0)
    result = export(loose)
    assert result.precision == precision
    assert 1e-6 < result.parity.max_probability_difference < 0.1
    info = read_model_info(session_of(settings.out), "q.onnx")
    assert (info.precision, info.parity) == (precision, result.parity)
    assert settings.out.stat().st_size < 0.6 * (quick.run / "m.onnx").stat().st_size
    assert precision in result.card.read_text()
    assert "The gate allows a loss of 1." in result.card.read_text()
    assert ("allowed loss of AUROC", "1") in inspect(InspectConfig(settings.out))


def test_beyond_the_gate_no_file_is_written(quick, tmp_path, monkeypatch):
    settings = replace(quick, out=tmp_path / "q.onnx", triton=tmp_path / "triton")
    right = module.score_batch
    monkeypatch.setattr(module, "score_batch", lambda *given: right(*given) * 0.99)
    with pytest.raises(RunFailed, match=r"differ by 0\.0.* in probability") as error:
        export(settings)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_probability_that_is_no_number_behind_the_gates_images_is_found(
    quick, tmp_path, monkeypatch
):
    """Its thresholds would be none, and the file one that nothing reads."""
    settings = replace(quick, out=tmp_path / "q.onnx", parity_images=1)
    settings.out.write_bytes(b"the model before")
    right, seen = module.score_batch, []

    def spoilt(session, images):
        seen.append(len(images))
        assert settings.out.read_bytes() == b"the model before"
        return right(session, images) * (np.nan if len(seen) > 1 else 1)

    monkeypatch.setattr(module, "score_batch", spoilt)
    with pytest.raises(RunFailed, match="of a validation image is not finite"):
        export(settings)
    assert len(seen) > 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the model before"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": Path("m.md")}, "--out names the model"),
        ({"out": Path("nowhere/m.onnx")}, "no folder .*nowhere"),
        ({"run": Path("none"), "out": Path("none/m.onnx")}, "no settings.json in none"),
        ({"calibration": 0}, "calibration must be at least 1"),
        ({"max_auroc_loss": 2.0}, "from 0 to 1"),
        ({"precision": "int8", "calibration_split": "other"}, "no split 'other'"),
        ({"precision": "int8", "calibration_split": "test"}, "no setting may know the test split"),
        ({"triton": Path("t"), "out": Path("a b.onnx")}, "would be called 'a b'"),
        ({"triton": Path("file")}, "--triton file is a file"),
        ({"out": Path("folder.onnx")}, "--out names the model"),
        ({"out": Path("locked/m.onnx")}, "no permission to write into .*locked"),
    ],
)
def test_wrong_requests(quick, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("folder.onnx", "locked"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module.os, "access", lambda path, _: path.name != "locked")  # as not root
    before = sorted(tmp_path.rglob("*"))
    settings = replace(quick, out=tmp_path / "q.onnx")
    with pytest.raises(UserError, match=message):
        export(replace(settings, **changes))
    assert sorted(tmp_path.rglob("*")) == before


def test_some_images_are_taken_evenly():
    assert spread(10, None) == spread(10, 10) == spread(10, 99) == set(range(10))
    assert spread(100, 4) == {0, 25, 50, 75}
    for total, at_most in [(7, 3), (1000, 999), (5, 1)]:
        assert len(spread(total, at_most)) == at_most
        assert max(spread(total, at_most)) < total


CASES = [(name, "linear") for name in ARCHITECTURES] + [("resnet18", "soares")]


@pytest.mark.soak
@pytest.mark.parametrize(("architecture", "end"), CASES)
def test_every_network_makes_the_round_trip(architecture, end, tmp_path):
    model = warmed(architecture, 3, head=end)
    scorer = Scorer(model, "softmax").eval()
    graph = to_onnx(scorer, SIZE, model_info(architecture=architecture, size=SIZE))
    add_features(graph)
    if architecture != "vgg16" and end == "linear":
        add_cam(graph)
    onnx.save(graph, tmp_path / "m.onnx")
    images = np.random.default_rng(0).integers(0, 256, (6, 1, SIZE, SIZE), np.uint8)
    with torch.inference_mode():
        expected = [part.numpy() for part in scorer(torch.from_numpy(images))]
    names = ["logits", "probabilities"]
    for count in (1, 6):
        found = session_of(tmp_path / "m.onnx").run(names, {"images": images[:count]})
        for ours, theirs in zip(expected, found):
            np.testing.assert_allclose(theirs, ours[:count], atol=1e-4, rtol=1e-4)
    if architecture in ("vgg16", "densenet201"):
        return  # large, and made of what the others are made of
    for make, tolerance in ((to_fp16, 0.01), (lambda g: to_int8(g, [images]), 0.1)):
        onnx.save(make(onnx.load(tmp_path / "m.onnx")), tmp_path / "less.onnx")
        (less,) = session_of(tmp_path / "less.onnx").run(names[1:], {"images": images})
        assert np.abs(less - expected[1]).max() < tolerance
