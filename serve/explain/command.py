"""Images -> explanations: a strip, an overlay and the map itself for each image and method.

Run: python -m serve explain --run RUN --method lrp --out DIR IMAGE...
     python -m serve explain --run RUN --method lrp,gradcam --out DIR --shards DIR --split test
     python -m serve explain --run RUN --method lrp --out DIR --shards DIR --scores DIR \
         --where true=COVID-19,error
     python -m serve explain --run RUN --method lrp --out DIR --scores DIR \
         --where predicted=COVID-19 ARCHIVE...

`DIR/<key>-<method>-<label>.png` (image, map, overlay side by side), `-overlay.png`, `.npy` ((S, S)
float32) and `DIR/explanations.json`, which lists them.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from serve.again import options_given
from serve.decode import DecodePool, Task
from serve.explain.overlay import encode, overlay, strip
from serve.explain.subjects import (
    Subject,
    choose_keys,
    choose_scored,
    from_archives,
    from_files,
    from_shards,
    parse_where,
    scored_depth,
)
from shards import malloc
from shards.console import RunFailed, UserError, progress, warn
from shards.depth import Depth
from shards.labels import Vocabulary
from shards.splits import SplitName
from shards.writer import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

    from serve.explain.methods import Explainer
    from serve.explain.occlusion import Outputs
    from train.runs import ModelSpec

FORMAT_VERSION = 1
_VANISHED = "not in these archives as they are now"
_BATCH = 8  # images decoded and explained together: bounds the memory


@dataclass(frozen=True)
class ExplainConfig:
    """Draw where in an image the network found a label.

    Methods: lrp (relevance, red for the label and blue against it; adds up to the logit), gradcam,
    cam, occlusion (the share of black windows over a place that flip the call), occlusion-drop (the
    mean fall of the probability under them)."""

    run: Path
    """Run folder of python -m train."""
    out: Path
    """Folder for the pictures (.png), the maps (.npy) and explanations.json."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files (PNG, JPEG, JPEG 2000, TIFF, ...), or, with --scores, the archives that were
    scored; or give --shards."""
    method: str = "gradcam"
    """How to explain: lrp, gradcam, cam, occlusion, occlusion-drop; several joined by commas."""
    label: str | None = None
    """The label to explain; by default each image's most probable one."""
    stage: str | None = None
    """Which stage's model; by default the last one."""
    shards: Path | None = None
    """A data set's folder of shards, in the place of files."""
    split: SplitName = "test"
    """Which split of the shards."""
    scores: Path | None = None
    """Scores of the images of the shards or archives (a folder of serve score, or a CSV or Parquet
    file), for --where to choose by."""
    where: str = ""
    """Which images: true=LABEL, predicted=LABEL, error, joined by commas; without shards only
    predicted=LABEL."""
    limit: int | None = None
    """At most this many images."""
    depth: Depth | None = None
    """Bits that count in 16-bit images whose files declare none. Default: as scored, else the
    model's."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of LRP's convolutions and of occlusion-drop's windows; bf16 is faster where the
    processor has it. Probabilities, logits and calls are always those of fp32."""


@dataclass(frozen=True)
class Explaining:
    """A model with its methods, ready for images."""

    model: "nn.Module"
    spec: "ModelSpec"
    outputs: "Outputs"
    explainers: "dict[str, Explainer]"


def explain(config: ExplainConfig) -> None:
    """Write the files, and one line per image and method on standard output. RunFailed at the end
    when some images could not be read; the others are done."""
    from serve.explain.methods import check_methods

    methods = tuple(dict.fromkeys(part.strip() for part in config.method.split(",")))
    check_methods(methods)
    subjects, chosen, total = _subjects(config)
    ready = load(config.run, config.stage, methods, config.precision)
    scored = scored_depth(config.scores) if config.shards is None else None
    depth = config.depth or scored or ready.spec.depth
    ready = replace(ready, spec=replace(ready.spec, depth=depth))
    vocabulary = Vocabulary(ready.spec.labels, ready.spec.exclusive)
    target = None if config.label is None else vocabulary.index(config.label)
    config.out.mkdir(parents=True, exist_ok=True)
    # Killed on the way, the old list would call maps of this network those of the one before.
    (config.out / "explanations.json").unlink(missing_ok=True)
    items: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with progress("explain", total) as advance:
        for batch, images in decoded_batches(ready.spec, subjects, failed):
            logits = logits_of(ready, images)
            found = ready.outputs.probabilities(logits).numpy()
            shown = found.argmax(1) if target is None else np.full(len(found), target)
            starts = logits.numpy()[np.arange(len(shown)), shown]
            for method, explainer in ready.explainers.items():
                explained = explainer(images, shown.tolist(), starts)
                for i, subject in enumerate(batch):
                    item = _item(ready.spec, subject, method, int(shown[i]), found[i])
                    item |= explained.notes[i]
                    item |= _write(config.out, item, images[i], explained.maps[i])
                    items.append(item)
                    _tell(subject, item, explained.maps[i], config.out)
            advance(len(batch))
    met = {one["key"] for one in (*items, *failed)}
    failed += [{"key": key, "reason": _VANISHED} for key in chosen if key not in met]
    write_atomic(config.out / "explanations.json", _summary(config, ready, items, failed))
    left = total - len(items) // len(methods)
    if left:
        raise RunFailed(f"{left} of {total} images could not be read (see above)")


def load(
    run: Path, stage: str | None, methods: Sequence[str], precision: str = "fp32"
) -> Explaining:
    """The run's model with these methods, on a GPU where there is one."""
    from serve.explain.methods import Explainer
    from serve.explain.occlusion import Outputs
    from train.device import choose_device
    from train.precision import set_cuda
    from train.runs import load_run_model

    model, spec = load_run_model(run, stage)
    device = choose_device("auto", 0)
    if device.type == "cpu":
        malloc.keep_all()
    set_cuda(device, tf32=False, few_shapes=False)  # fp32 is fp32; occlusion has many shapes
    model = model.to(device)
    outputs = Outputs(spec.exclusive, spec.output)
    made = {m: Explainer(m, model, spec.size, outputs, precision) for m in methods}
    return Explaining(model, spec, outputs, made)


def probabilities_of(ready: Explaining, images: np.ndarray) -> np.ndarray:
    """(N, S, S) uint8, prepared -> (N, L) float32."""
    return ready.outputs.probabilities(logits_of(ready, images)).numpy()


def logits_of(ready: Explaining, images: np.ndarray) -> "Tensor":
    """(N, S, S) uint8, prepared -> (N, L) float32 on the CPU, computed in fp32."""
    import torch

    from train.warp import normalise

    device = next(ready.model.parameters()).device
    with torch.inference_mode():
        return ready.model(normalise(torch.tensor(images).to(device))).float().cpu()


def decoded_batches(
    spec: "ModelSpec", subjects: Iterator[Subject], failed: list[dict[str, str]]
) -> Iterator[tuple[list[Subject], np.ndarray]]:
    """The subjects that decode, with their images (N, S, S) uint8; the others go to `failed`, each
    with a warning."""
    with DecodePool(1, spec.shorter_side, spec.size, spec.depth) as pool:
        results = pool.run(Task(subject, [subject.data]) for subject in subjects)
        while batch := list(islice(results, _BATCH)):
            good = []
            for subject, decoded in batch:
                if decoded.errors[0] is None:
                    good.append((subject, decoded.images[0]))
                    continue
                warn(f"{subject.name}: {decoded.errors[0]}")
                failed.append({"key": subject.key, "reason": decoded.errors[0]})
            if good:
                yield [subject for subject, _ in good], np.stack([image for _, image in good])


def _subjects(config: ExplainConfig) -> tuple[Iterator[Subject], Sequence[str], int]:
    """The images, the keys of those that were chosen by scores or shards, and how many they are."""
    if config.limit is not None and config.limit < 1:
        raise UserError(f"--limit is {config.limit}; give 1 or more")
    where = parse_where(config.where)
    if config.shards is None:
        if not config.images:
            raise UserError("no image named; name one or more image files, or --shards DIR")
        if config.scores is not None:
            keys = choose_scored(config.scores, where, config.limit)
            return from_archives(config.images, keys, config.scores), keys, len(keys)
        if config.where:
            raise UserError("--where chooses among the images of --scores or --shards; name them")
        paths = config.images[: config.limit]
        return from_files(paths), (), len(paths)
    if config.images:
        raise UserError("image files and --shards at once; take one of them")
    keys = choose_keys(config.shards, config.split, config.scores, where, config.limit)
    return from_shards(config.shards, config.split, keys), keys, len(keys)


def _item(
    spec: "ModelSpec", subject: Subject, method: str, shown: int, found: np.ndarray
) -> dict[str, Any]:
    """What explanations.json tells of one picture."""
    predicted = spec.labels[int(found.argmax())]
    return {
        "key": subject.key,
        "method": method,
        "label": spec.labels[shown],
        "probability": float(found[shown]),
        "predicted": predicted,
        "truth": None if subject.truth is None else list(subject.truth),
        "wrong": subject.wrong(Vocabulary(spec.labels, spec.exclusive), predicted),
    }


def _write(out: Path, item: dict[str, Any], image: np.ndarray, heat: np.ndarray) -> dict[str, str]:
    """Write the three files; their names."""
    from serve.explain.methods import SIGNED

    signed = item["method"] in SIGNED
    clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in item["label"])[:40]
    stem = f"{item['key']}-{item['method']}-{clean}"
    values = io.BytesIO()
    np.save(values, heat.astype(np.float32), allow_pickle=False)
    files = {
        "map": (f"{stem}.npy", values.getvalue()),
        "overlay": (f"{stem}-overlay.png", encode(overlay(image, heat, signed=signed), ".png")),
        "strip": (f"{stem}.png", encode(strip(image, heat, signed=signed), ".png")),
    }
    for name, data in files.values():
        write_atomic(out / name, data)
    return {kind: name for kind, (name, _) in files.items()}


def _tell(subject: Subject, item: dict[str, Any], heat: np.ndarray, out: Path) -> None:
    nothing = "" if heat.max() > 0 else " (no place speaks for it)"
    probability = f"{item['label']} {item['probability']:.4f}"
    print(f"{subject.name}: {probability}{nothing} -> {out / item['strip']}")


def _summary(
    config: ExplainConfig,
    ready: Explaining,
    items: list[dict[str, Any]],
    failed: list[dict[str, str]],
) -> bytes:
    spec = ready.spec
    images = ["IMAGE..."] if config.images else []  # their names may be those of patients
    content = {
        "format_version": FORMAT_VERSION,
        "run": config.run.resolve().name,
        "stage": spec.stage,
        "weights_sha256": spec.weights_sha256,
        "labels": list(spec.labels),
        "exclusive": spec.exclusive,
        "synthetic": spec.synthetic,
        "size": spec.size,
        "methods": list(ready.explainers),
        "precision": config.precision,
        "where": config.where,
        "options": [*options_given(config, ("run", "out", "images")), *images],
        "items": items,
        "failed": failed,
    }
    return (json.dumps(content, indent=1) + "\n").encode()
