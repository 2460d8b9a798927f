"""Explanations on a split -> how good each method is: faithfulness.json and faithfulness.png.

Run: python -m serve faithfulness --run RUN --shards DIR --out DIR

Images with boxes of the network's labels come first (each box's label is explained), then others
(their most probable label). Not there: boxes in a data set without any; both omissions are stated.
A map that is empty, or in which nothing speaks for the label, is in no number: it is counted.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serve.again import options_given
from serve.explain.command import Explaining, decoded_batches, load, probabilities_of
from serve.explain.faithfulness import (
    STEPS,
    Unusable,
    area_under,
    box_mask,
    cell_order,
    likeness,
    points_into,
    stepwise,
    top_iou,
    unusable,
)
from serve.explain.faithfulness_picture import picture, table
from serve.explain.subjects import Subject, boxed_keys, choose_keys, from_shards, parse_where
from serve.intervals import wilson
from shards.console import RunFailed, UserError, first_few, progress
from shards.splits import SplitName
from shards.writer import write_atomic

if TYPE_CHECKING:
    from torch import nn

_Likeness = dict[str, dict[str, list[float | None]]]  # method -> other weights -> of each image
FORMAT_VERSION = 1
_OTHER = {"output_layer": "output layer", "all_layers": "network"}
RANDOM = "random"  # noise in the place of a map: what chance gives


@dataclass(frozen=True)
class FaithfulnessConfig:
    """Measure explanation methods: pointing game and overlap with boxes, deletion and insertion,
    likeness of the maps after the weights were randomised."""

    run: Path
    """Run folder of python -m train."""
    shards: Path
    """A data set's folder of shards; boxes (ChestX-ray14) are in its samples."""
    out: Path
    """Folder for faithfulness.json and faithfulness.png."""
    split: SplitName = "test"
    """Which split."""
    methods: str = "lrp,gradcam,cam,occlusion-drop"
    """Methods of serve explain, joined by commas; `random` is always added."""
    limit: int = 50
    """At most this many images."""
    sanity: int = 8
    """So many of them for the check with randomised weights; 0: none."""
    stage: str | None = None
    """Which stage's model; by default the last one."""
    seed: int = 0
    """Of the random maps and weights."""


@dataclass
class _Measured:
    """What one method has gathered, one entry per usable map; unusable: the keys of the images of
    the others, by kind."""

    unusable: dict[Unusable, list[str]] = field(
        default_factory=lambda: {"empty": [], "one-signed": []}
    )
    hits: list[bool] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    deletion: list[np.ndarray] = field(default_factory=list)
    insertion: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class _Case:
    """An image (S, S) uint8, the class to explain, and the boxes' mask, None without boxes."""

    key: str
    image: np.ndarray
    target: int
    mask: np.ndarray | None


def faithfulness(config: FaithfulnessConfig) -> Path:
    """Write the two files; returns the first one's path. UserError when no image is left or no
    method can explain the network."""
    if config.limit < 1 or config.sanity < 0:
        raise UserError(
            f"--limit {config.limit}, --sanity {config.sanity}; give 1 or more, 0 or more"
        )
    ready, omitted = _load(config)
    labels = ready.spec.labels
    boxed = boxed_keys(config.shards, config.split, labels)
    keys = _keys(config, boxed)
    if not boxed:
        omitted.append(
            "pointing game and overlap: no image of this split has a box of one of the labels"
        )
    failed: list[dict[str, str]] = []
    cases: list[_Case] = []
    subjects = from_shards(config.shards, config.split, keys)
    for batch, images in decoded_batches(ready.spec, subjects, failed):
        cases += _cases(ready, batch, images)
    if failed:
        raise RunFailed(f"{len(failed)} samples of the shards do not decode; ingest again")
    measured = _measure(config, ready, cases)
    sanity = _sanity(config, ready, cases[: config.sanity])
    omitted += _unusable_maps(measured, sanity, len(cases))
    content = _summary(config, ready, cases, measured, sanity) | {"omitted": omitted}
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / "faithfulness.png", picture(content))
    path = config.out / "faithfulness.json"
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
    print(table(content))
    return path


def _load(config: FaithfulnessConfig) -> tuple[Explaining, list[str]]:
    """The model with the methods that can explain it, and why others cannot."""
    from serve.explain.methods import Explainer, check_methods

    methods = list(dict.fromkeys(part.strip() for part in config.methods.split(",")))
    check_methods(methods)
    ready = load(config.run, config.stage, ())
    omitted = []
    for method in methods:
        try:
            made = Explainer(method, ready.model, ready.spec.size, ready.outputs)
        except UserError as error:
            omitted.append(f"{method}: {error}")
            continue
        ready.explainers[method] = made
    if not ready.explainers:
        raise UserError(f"no method can explain this network: {'; '.join(omitted)}")
    return ready, omitted


def _keys(config: FaithfulnessConfig, boxed: list[str]) -> list[str]:
    every = choose_keys(config.shards, config.split, None, parse_where(""), None)
    return list(dict.fromkeys([*boxed, *every]))[: config.limit]


def _cases(ready: Explaining, batch: Sequence[Subject], images: np.ndarray) -> list[_Case]:
    """One case per label with boxes, or the most probable label of an image without."""
    labels, size = ready.spec.labels, ready.spec.size
    predicted = probabilities_of(ready, images).argmax(1)
    cases = []
    for subject, image, called in zip(batch, images, predicted):
        with_boxes = [label for label in labels if any(b.label == label for b in subject.boxes)]
        for label in with_boxes:
            boxes = [box for box in subject.boxes if box.label == label]
            mask = box_mask(boxes, subject.width, subject.height, size)
            # A box smaller than a pixel of the network's input has nothing to be pointed at.
            some = mask if mask.any() else None
            cases.append(_Case(subject.key, image, labels.index(label), some))
        if not with_boxes:
            cases.append(_Case(subject.key, image, int(called), None))
    return cases


def _measure(
    config: FaithfulnessConfig, ready: Explaining, cases: list[_Case]
) -> dict[str, _Measured]:
    rng = np.random.default_rng(config.seed)
    measured = {name: _Measured() for name in (*ready.explainers, RANDOM)}
    with progress("faithfulness", len(cases)) as advance:
        for case in cases:
            for name, one in measured.items():
                if name == RANDOM:
                    heat = rng.random(case.image.shape, np.float32)
                else:
                    heat = ready.explainers[name](case.image[None], [case.target]).maps[0]
                why = unusable(heat)
                if why is not None:
                    one.unusable[why].append(case.key)
                    continue
                if case.mask is not None:
                    one.hits.append(points_into(heat, case.mask))
                    one.overlaps.append(top_iou(heat, case.mask))
                order = cell_order(heat)
                one.deletion.append(_curve(ready, case, order, insert=False))
                one.insertion.append(_curve(ready, case, order, insert=True))
            advance()
    return measured


def _curve(ready: Explaining, case: _Case, order: np.ndarray, *, insert: bool) -> np.ndarray:
    """(STEPS + 1,) the target's probability as the image goes or comes."""
    images = stepwise(case.image, order, insert=insert)
    step = 7  # 21 images in three passes
    parts = [probabilities_of(ready, images[i : i + step]) for i in range(0, len(images), step)]
    return np.concatenate(parts)[:, case.target]


def _sanity(config: FaithfulnessConfig, ready: Explaining, cases: list[_Case]) -> _Likeness:
    """The likeness of each image's map to that of the network with other weights; None where the
    map is unusable, or the other one empty."""
    from serve.explain.methods import Explainer

    found: _Likeness = {name: {} for name in ready.explainers}
    if not cases:
        return found
    for which, model in _randomised(ready.model, config.seed):
        for name, explainer in ready.explainers.items():
            other = Explainer(name, model, ready.spec.size, ready.outputs)
            values = []
            for case in cases:
                maps = [one(case.image[None], [case.target]).maps[0] for one in (explainer, other)]
                values.append(None if unusable(maps[0]) else likeness(*maps))
            found[name][which] = values
    return found


def _unusable_maps(measured: dict[str, _Measured], sanity: _Likeness, total: int) -> list[str]:
    """A sentence for each method and kind of map that is in no number."""
    said = []
    for name, one in measured.items():
        for kind, keys in one.unusable.items():
            if keys:
                what = kind if kind == "empty" else "one-signed (nothing speaks for the label)"
                said.append(f"{name}: {len(keys)} of {total} maps are {what}: {first_few(keys)}")
        for which, values in sanity.get(name, {}).items():
            if None in values:
                said.append(
                    f"{name}: {values.count(None)} of {len(values)} maps cannot be compared with "
                    f"those of another {_OTHER[which]}, one of the two is empty or one-signed"
                )
    return said


def _randomised(model: "nn.Module", seed: int) -> "Iterator[tuple[str, nn.Module]]":
    """The network with a fresh output layer, and with every layer fresh."""
    import torch

    from train.models import head

    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []  # torch warns where it has to guess them
    for which in ("output_layer", "all_layers"):
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            other = copy.deepcopy(model)
            for layer in [head(other)] if which == "output_layer" else other.modules():
                reset = getattr(layer, "reset_parameters", None)
                if reset is not None:
                    reset()
            yield which, other.eval()


def _summary(
    config: FaithfulnessConfig,
    ready: Explaining,
    cases: list[_Case],
    measured: dict[str, _Measured],
    sanity: _Likeness,
) -> dict[str, Any]:
    masks = [case.mask for case in cases if case.mask is not None]
    rows = [
        {
            "method": name,
            "maps": len(one.deletion),
            "empty": len(one.unusable["empty"]),
            "one_signed": len(one.unusable["one-signed"]),
            "pointing": _share(one.hits),
            "iou": _mean(one.overlaps),
            **_curves(one),
            "sanity": {w: _mean(values) for w, values in sanity.get(name, {}).items()} or None,
        }
        for name, one in measured.items()
    ]
    return {
        "format_version": FORMAT_VERSION,
        "run": config.run.resolve().name,
        "stage": ready.spec.stage,
        "weights_sha256": ready.spec.weights_sha256,
        "labels": list(ready.spec.labels),
        "dataset": config.shards.resolve().name,
        "split": config.split,
        "synthetic": ready.spec.synthetic,
        "explanations": len(cases),
        "with_boxes": len(masks),
        "box_area": float(np.mean([mask.mean() for mask in masks])) if masks else None,
        "sanity_images": min(config.sanity, len(cases)),
        "fractions": np.linspace(0, 1, STEPS + 1).tolist(),
        "methods": rows,
        "options": options_given(config, ("run", "shards", "out")),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _curves(one: _Measured) -> dict[str, Any]:
    """Mean deletion and insertion curves and the areas under them; None without a usable map."""
    means = {
        kind: np.mean(curves, axis=0) if curves else None
        for kind, curves in (("deletion", one.deletion), ("insertion", one.insertion))
    }
    return {
        **{kind: None if mean is None else area_under(mean) for kind, mean in means.items()},
        **{f"{k}_curve": None if mean is None else mean.tolist() for k, mean in means.items()},
    }


def _share(hits: list[bool]) -> dict[str, Any] | None:
    if not hits:
        return None
    found = wilson(sum(hits), len(hits))
    assert found is not None
    return {"hits": sum(hits), "n": len(hits), **asdict(found)}
