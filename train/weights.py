"""Where a training starts: random, ImageNet, CheXNet, or another run. No pickle is executed."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from shards.console import UserError
from shards.labels import CHESTXRAY14, Vocabulary
from train.models import SoaresNet, build_model, load_weights
from train.restricted_pickle import Opaque
from train.runs import load_run_model
from train.torch_file import module_weights, read_torch_file

# The 14 findings in CheXNet's order; it has no healthy neuron.
CHEXNET = Vocabulary(CHESTXRAY14.names[:14], exclusive=False)
IMAGENET = Vocabulary(tuple(f"imagenet-{i}" for i in range(1000)), exclusive=True)
STARTS = ("random", "imagenet", "chexnet", "checkpoint")

# The files of 2020, which the papers had. ResNet50 has newer ones (11ad3fa6), of another training.
_TORCHVISION = "https://download.pytorch.org/models/"
_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
IMAGENET_URLS = {
    "densenet121": _TORCHVISION + "densenet121-a639ec97.pth",
    "densenet201": _TORCHVISION + "densenet201-c1103571.pth",
    "resnet18": _TORCHVISION + "resnet18-f37072fd.pth",
    "resnet50": _TORCHVISION + "resnet50-0676ba61.pth",
    "vgg16": _TORCHVISION + "vgg16-397923af.pth",
    "squeezenet1_0": _TORCHVISION + "squeezenet1_0-b66bff10.pth",
    "squeezenet1_1": _TORCHVISION + "squeezenet1_1-b8a52dc0.pth",
    "xception": _TIMM + "xception-43020ad28.pth",
}


@dataclass(frozen=True)
class StartConfig:
    """kind: random, imagenet (torchvision's or timm's weights, downloaded), chexnet (a public
    CheXNet checkpoint), or checkpoint (the last stage of another run). path: CheXNet's file, or the
    run's folder. weights_dir: a folder that holds the ImageNet file, for machines without
    internet."""

    kind: Literal["random", "imagenet", "chexnet", "checkpoint"] = "imagenet"
    path: Path | None = None
    weights_dir: Path | None = None


def start_model(
    config: StartConfig,
    architecture: str,
    vocabulary: Vocabulary,
    *,
    head: str = "linear",
    size: int = 224,
) -> tuple[nn.Module, Vocabulary]:
    """The network to begin with, and what its outputs mean (`vocabulary` when they are new)."""
    if config.kind == "random":
        return build_model(architecture, len(vocabulary), head=head, size=size), vocabulary
    if config.kind == "imagenet":
        model = _imagenet(architecture, config.weights_dir)
        if head == "soares":
            model = SoaresNet(model, len(vocabulary), size)
            return model.to(memory_format=torch.channels_last), vocabulary
        return model, IMAGENET
    if config.kind == "chexnet":
        if head != "linear":
            raise UserError(f"CheXNet has a linear head, the recipe a {head} one")
        return _chexnet(architecture, _needs_path(config)), CHEXNET
    if config.kind == "checkpoint":
        return _run(_needs_path(config), architecture, head, size)
    raise UserError(f"no start {config.kind!r}; there are: {', '.join(STARTS)}")


def _needs_path(config: StartConfig) -> Path:
    if config.path is None:
        what = "a CheXNet checkpoint" if config.kind == "chexnet" else "a run of python -m train"
        raise UserError(f"--start.kind {config.kind} needs --start.path: {what}")
    if not config.path.exists():
        raise UserError(f"no {config.path} (--start.path)")
    return config.path


def _run(path: Path, architecture: str, head: str, size: int) -> tuple[nn.Module, Vocabulary]:
    model, spec = load_run_model(path)
    if spec.architecture != architecture:
        raise UserError(
            f"{path} holds a {spec.architecture}, the recipe trains a {architecture}; "
            "start from a run of the same architecture"
        )
    if spec.head != head or (head == "soares" and spec.size != size):
        raise UserError(
            f"{path} holds a {spec.head} head for size {spec.size}, the recipe trains a {head} one "
            f"for {size}; start from a run of the same"
        )
    return model, Vocabulary(spec.labels, spec.exclusive)


def _imagenet(architecture: str, folder: Path | None) -> nn.Module:
    if architecture not in IMAGENET_URLS:
        known = ", ".join(IMAGENET_URLS)
        raise UserError(f"no architecture {architecture!r}; there are: {known}")
    url = IMAGENET_URLS[architecture]
    name = url.rsplit("/", 1)[-1]
    if folder is not None:
        weights = _from_folder(folder, url)
    else:
        # torch compares the hash of what it downloads, not of what it has kept since.
        kept = Path(torch.hub.get_dir(), "checkpoints", name)
        if kept.is_file():
            _check_hash(kept, url, "delete it, and it is downloaded again, or ")
        try:
            weights = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"could not download {name} ({error}); {_fetch(url)}, or take --start.kind random"
            ) from error
    model = build_model(architecture, len(IMAGENET))
    load_weights(model, {modern_key(k): v for k, v in weights.items()}, name)
    return model


def _fetch(url: str) -> str:
    return (
        f"fetch {url} (SHA-256 begins with {_digest(url)}) and name its folder with "
        "--start.weights-dir"
    )


def _digest(url: str) -> str:
    """The beginning of the file's SHA-256, which its name ends with."""
    return url.rsplit("-", 1)[-1].removesuffix(".pth")


def _from_folder(folder: Path, url: str) -> dict[str, Tensor]:
    path = folder / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise UserError(f"no {path.name} in {folder} (--start.weights-dir); {_fetch(url)}")
    _check_hash(path, url)
    return _state_dict(read_torch_file(path), path)


def _check_hash(path: Path, url: str, way_out: str = "") -> None:
    """UserError where the file is another than the one at `url`, or damaged."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(_digest(url)):
        raise UserError(f"{path} has the SHA-256 {found[:16]}...; {way_out}{_fetch(url)}")


def _chexnet(architecture: str, path: Path) -> nn.Module:
    """Both public checkpoints: arnoweng's {'state_dict': {'module.densenet121.features...'}}, and
    reproduce-chexnet's {'model': the whole module}, with the names of 2017 or today's."""
    if architecture != "densenet121":
        raise UserError(f"CheXNet is a densenet121, the recipe trains a {architecture}")
    inner = read_torch_file(path)
    if isinstance(inner, dict):
        inner = inner.get("state_dict", inner.get("model", inner))
    state = module_weights(inner) if isinstance(inner, Opaque) else _state_dict(inner, path)
    prefix = r"^(module\.)?(densenet121\.)?"
    weights = {modern_key(re.sub(prefix, "", key)): value for key, value in state.items()}
    weights = {re.sub(r"^classifier\.0\.", "classifier.", k): v for k, v in weights.items()}
    model = build_model(architecture, len(CHEXNET))
    load_weights(model, weights, str(path))
    return model


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """UserError when it is not a dict of named tensors."""
    if isinstance(content, dict) and content:
        named = all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
        if named:
            return content
    raise UserError(f"{path} holds no weights: expected a state dict, found other content")


def modern_key(key: str) -> str:
    """DenseNet's names of 2017 (`norm.1.weight`) as torchvision has them now (`norm1.weight`)."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)
