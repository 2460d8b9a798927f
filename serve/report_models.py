"""Whether what lies beside a run is of the run's own model: a run trained again into the same
folder finds the evaluation of the one before. The SHA-256 of the weights tells them apart. What
does not say its weights, as other people's predictions, has at least the labels of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.console import UserError


@dataclass(frozen=True)
class OwnModels:
    """stages: SHA-256 of the weights -> stage, of those that are finished; last: the last stage;
    labels: of each finished stage's network."""

    stages: Mapping[str, str]
    last: str
    labels: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """Something that was made of a run. content: None where there is none of its models; missing:
    why; notes: what is to be said of its model where it is shown."""

    content: Any
    missing: str = ""
    notes: tuple[str, ...] = ()


def own_models(last: str, models: Mapping[str, Any]) -> OwnModels:
    """models: stage -> the content of its model.json, None where it is not there."""
    finished = {stage: content for stage, content in models.items() if content is not None}
    found = {weights_of(content): stage for stage, content in finished.items()}
    labels = tuple(tuple(content["labels"]) for content in finished.values())
    return OwnModels({weights: stage for weights, stage in found.items() if weights}, last, labels)


def part_of(path: Path, content: Any, own: OwnModels, what: str = "") -> Part:
    """What to show of a file, with its content or None. what: it is called so where it lacks, by
    default by its file name. UserError when it does not say its weights, and its labels are not
    those of the run's networks."""
    what = what or path.name
    if content is None:
        return Part(None, f"No {what} in {path.parent}")
    weights = weights_of(content)
    if not weights:
        _refuse_other_labels(path, content, own)
        said = f"{path} does not say which model it is of: it may be another than this run's."
        return Part(content, notes=(said,))
    if not own.stages:
        return Part(content, notes=(f"No model.json in this run: {path} may be of another model.",))
    if weights not in own.stages:
        return Part(None, f"Left out: {path} is of other weights than this run's; make it again")
    return Part(content, notes=tuple(_notes(path, content, own.stages[weights], own.last)))


def _refuse_other_labels(path: Path, content: Mapping[str, Any], own: OwnModels) -> None:
    """An evaluation of labels that do not exclude each other may lack some of the network's."""
    found, exclusive = set(content.get("labels") or ()), content.get("exclusive")
    fits = (found == set(one) if exclusive else found <= set(one) for one in own.labels)
    if found and own.labels and not any(fits):
        raise UserError(
            f"{path} has the labels {', '.join(sorted(found))}; this run's network has "
            f"{', '.join(own.labels[-1])}: it is of another model; name what was made with this "
            "run, or leave it out"
        )


def weights_of(content: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the weights that made this; None where it is not known."""
    found = _scored_by(content).get("weights_sha256")
    return found if isinstance(found, str) and found else None


def _scored_by(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """metrics.json tells of the model apart, the others among the rest."""
    found = content.get("scored_by")
    return found if isinstance(found, dict) else content


def _notes(path: Path, content: Mapping[str, Any], stage: str, last: str) -> Sequence[str]:
    precision = _scored_by(content).get("precision") or "fp32"
    notes = [f"{path} is of stage {stage}, not of the last one, {last}."] if stage != last else []
    if precision != "fp32":
        notes.append(
            f"{path} is of an export in {precision}, not of the network as it was trained."
        )
    return notes
