"""train.weights: the starts, public checkpoints in their old form, and files that are refused."""

import hashlib
import os
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model_weights

from shards.console import UserError
from shards.labels import CHESTXRAY14, COVID
from train.models import build_model, head
from train.runs import ModelSpec, save_model
from train.torch_file import read_torch_file
from train.weights import (
    CHEXNET,
    IMAGENET,
    IMAGENET_URLS,
    StartConfig,
    modern_key,
    start_model,
)

FILE_121 = "densenet121-a639ec97.pth"


def old_key(key: str) -> str:
    """torchvision's name as the files of 2017 have it: norm1 -> norm.1 inside dense layers."""
    return re.sub(r"(denselayer\d+\.)(norm|conv)(\d)\.", r"\1\2.\3.", key)


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def chexnet_weights() -> dict[str, Tensor]:
    """A densenet121 with 14 outputs whose batch norm statistics are not those of a fresh one."""
    torch.manual_seed(3)
    model = build_model("densenet121", 14)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.state_dict()


@pytest.fixture(scope="module", params=["zip", "legacy"])
def chexnet_file(request, chexnet_weights, tmp_path_factory) -> Path:
    """As arnoweng's CheXNet is: no counters, keys of 2017, in both of torch's file formats."""
    state = OrderedDict()
    for key, value in without_counters(chexnet_weights).items():
        name = key.replace("classifier.", "classifier.0.")
        state[f"module.densenet121.{old_key(name)}"] = value
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in state
    path = tmp_path_factory.mktemp("chexnet") / "model.pth.tar"
    content = {"epoch": 3, "best_loss": 0.1, "state_dict": state}
    torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    a, b = without_counters(state), without_counters(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_modern_key_inverts_the_old_names(chexnet_weights):
    assert all(modern_key(old_key(key)) == key for key in chexnet_weights)
    assert all(modern_key(key) == key for key in chexnet_weights)


def test_random_starts_with_the_vocabulary():
    torch.manual_seed(0)
    model, vocabulary = start_model(StartConfig("random"), "densenet121", COVID)
    assert vocabulary == COVID
    assert head(model).out_features == 3
    torch.manual_seed(0)
    again, _ = start_model(StartConfig("random"), "densenet121", COVID)
    assert equal(model.state_dict(), again.state_dict())


def test_chexnet_loads_identically(chexnet_file, chexnet_weights):
    model, vocabulary = start_model(StartConfig("chexnet", chexnet_file), "densenet121", COVID)
    assert vocabulary == CHEXNET
    assert vocabulary.names == CHESTXRAY14.names[:14]
    assert equal(model.state_dict(), chexnet_weights)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("names", ["of 2018", "modern"])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_reproduce_chexnets_whole_module_loads_identically(
    chexnet_weights, tmp_path, form, names, monkeypatch
):
    """{'model': the module itself, ...}: a sigmoid behind the classifier, perhaps old names."""
    module = build_model("densenet121", 14)
    module.load_state_dict(chexnet_weights)
    module.classifier = torch.nn.Sequential(module.classifier, torch.nn.Sigmoid())
    if names == "of 2018":
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                del part._buffers["num_batches_tracked"]  # before torch 0.4.1
            for old in [name for name in part._modules if re.fullmatch(r"(norm|conv)[12]", name)]:
                part._modules[f"{old[:-1]}.{old[-1]}"] = part._modules.pop(old)
    path = tmp_path / "checkpoint"
    content = {"model": module, "best_loss": 0.2, "epoch": 6, "rng_state": torch.get_rng_state()}
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    monkeypatch.setattr(
        "torch.nn.Module.__setstate__", lambda *_: pytest.fail("a module was unpickled")
    )
    model, vocabulary = start_model(StartConfig("chexnet", path), "densenet121", COVID)
    assert vocabulary == CHEXNET
    assert equal(model.state_dict(), chexnet_weights)


def test_chexnet_is_a_densenet121(chexnet_file):
    with pytest.raises(UserError, match="densenet121, the recipe trains a densenet201"):
        start_model(StartConfig("chexnet", chexnet_file), "densenet201", COVID)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": torch.nn.Linear(3, 3).state_dict()}, path)
    with pytest.raises(UserError, match="another architecture"):
        start_model(StartConfig("chexnet", path), "densenet121", COVID)


def test_other_shapes_are_refused(chexnet_weights, tmp_path):
    path = tmp_path / "other.pth"
    torch.save(
        {"state_dict": {**chexnet_weights, "classifier.weight": torch.zeros(15, 1024)}}, path
    )
    with pytest.raises(UserError, match=r"1 of another shape \(the first: classifier.weight\)"):
        start_model(StartConfig("chexnet", path), "densenet121", COVID)


class Hostile:
    """Unpickling this would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_hostile_file_is_refused_and_not_executed(tmp_path, new_format):
    path, target = tmp_path / "hostile.pth", tmp_path / "executed"
    torch.save({"state_dict": Hostile(target)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="more than weights, or is damaged") as refused:
        start_model(StartConfig("chexnet", path), "densenet121", COVID)
    assert not target.exists()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.pth"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [1, 2], {"state_dict": {"a": 1}}, {"a": torch.zeros(3), "b": "text"}, {}],
)
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="expected"):
        start_model(StartConfig("chexnet", path), "densenet121", COVID)


def test_imagenet_folder_without_the_file_is_named(tmp_path):
    for architecture, url in IMAGENET_URLS.items():
        file, digest = url.rsplit("/", 1)[-1], url.rsplit("-", 1)[-1].removesuffix(".pth")
        with pytest.raises(UserError, match=f"no {file} in {re.escape(str(tmp_path))}") as missing:
            start_model(StartConfig("imagenet", weights_dir=tmp_path), architecture, COVID)
        assert f"fetch {url} (SHA-256 begins with {digest})" in str(missing.value)


def test_the_imagenet_files_are_torchvisions_and_timms():
    for architecture, url in IMAGENET_URLS.items():
        if architecture == "xception":
            from timm.models import get_pretrained_cfg

            assert url == get_pretrained_cfg("legacy_xception").url
        else:
            assert url == get_model_weights(architecture).IMAGENET1K_V1.url


def test_imagenet_of_another_hash_is_refused(tmp_path):
    (tmp_path / FILE_121).write_bytes(b"other")
    with pytest.raises(UserError, match=r"has the SHA-256 d9298a10d1b07358.*begins with a639ec97"):
        start_model(StartConfig("imagenet", weights_dir=tmp_path), "densenet121", COVID)


def test_a_download_is_compared_with_its_hash_and_read_without_pickle(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights, asked = build_model("resnet18", 1000).state_dict(), {}

    def give(url, **options):
        asked.update(options, url=url)
        return weights

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", give)
    model, _ = start_model(StartConfig("imagenet"), "resnet18", COVID)
    assert equal(model.state_dict(), weights)
    assert asked == {"url": IMAGENET_URLS["resnet18"], "check_hash": True, "weights_only": True}


@pytest.mark.parametrize("content", [b"", b"<html>a proxy's page"])
def test_a_download_that_was_damaged_since_is_named(monkeypatch, tmp_path, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints" / FILE_121
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()[:16]
    with pytest.raises(UserError, match=f"{FILE_121} has the SHA-256 {digest}.*; delete it, and"):
        start_model(StartConfig("imagenet"), "densenet121", COVID)


def test_a_failed_download_names_file_and_hash(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match=f"could not download {FILE_121}.*a639ec97.*weights-dir"):
        start_model(StartConfig("imagenet"), "densenet121", COVID)


def put_file(folder: Path, architecture: str, state: dict, monkeypatch) -> StartConfig:
    """The state as an ImageNet file whose name tells its hash."""
    path = folder / "weights"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path.rename(folder / f"made-{digest}.pth")
    monkeypatch.setitem(IMAGENET_URLS, architecture, f"https://example.org/made-{digest}.pth")
    return StartConfig("imagenet", weights_dir=folder)


def test_imagenet_from_a_folder(tmp_path, monkeypatch):
    weights = build_model("densenet121", 1000).state_dict()
    old = {old_key(key): value for key, value in without_counters(weights).items()}
    start = put_file(tmp_path, "densenet121", old, monkeypatch)
    model, vocabulary = start_model(start, "densenet121", COVID)
    assert vocabulary == IMAGENET
    assert equal(model.state_dict(), weights)


def test_the_soares_base_is_imagenets(tmp_path, monkeypatch):
    plain = build_model("resnet18", 1000)
    start = put_file(tmp_path, "resnet18", plain.state_dict(), monkeypatch)
    model, vocabulary = start_model(start, "resnet18", COVID, head="soares", size=64)
    assert vocabulary == COVID
    assert head(model).out_features == 3
    assert equal(model.features.conv1.state_dict(), plain.conv1.state_dict())
    assert equal(model.features.layer4.state_dict(), plain.layer4.state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StartConfig("nope"), "no start 'nope'; there are: random, imagenet, chexnet, checkpoint"),
        (StartConfig("chexnet"), "needs --start.path"),
        (StartConfig("checkpoint"), "needs --start.path"),
        (StartConfig("chexnet", Path("/nonexistent/file")), "no /nonexistent/file"),
    ],
)
def test_wrong_requests_are_named(config, message):
    with pytest.raises(UserError, match=re.escape(message)):
        start_model(config, "densenet121", COVID)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """A run folder with one finished stage: densenet121 on the 15 labels."""
    run = tmp_path_factory.mktemp("run")
    (run / "settings.json").write_text('{"config": {"stages": [{"name": "first"}]}}')
    values = dict.fromkeys(("dataset", "manifest_hash", "recipe", "stage"), "first")
    spec = ModelSpec(
        architecture="densenet121",
        labels=CHESTXRAY14.names,
        exclusive=False,
        size=32,
        shorter_side=None,
        preprocessing_version=1,
        synthetic=True,
        **values,
    )
    save_model(run / "first", build_model("densenet121", 15), spec)
    return run


def test_another_runs_last_stage(finished_run):
    model, vocabulary = start_model(StartConfig("checkpoint", finished_run), "densenet121", COVID)
    assert vocabulary == CHESTXRAY14
    assert head(model).out_features == 15


def test_another_runs_architecture_must_be_the_recipes(finished_run):
    with pytest.raises(UserError, match="holds a densenet121, the recipe trains a densenet201"):
        start_model(StartConfig("checkpoint", finished_run), "densenet201", COVID)


def test_one_changed_bit_of_a_runs_weights_is_noticed(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    path = run / "first" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # inside a tensor, where safetensors itself sees nothing
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"safetensors is damaged \(its SHA-256 is not the one in"):
        start_model(StartConfig("checkpoint", run), "densenet121", COVID)
