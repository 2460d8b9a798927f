"""Whether what lies beside a run is of the run's own model: a run trained again into the same
folder finds the evaluation of the one before. The SHA-256 of the weights tells them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OwnModels:
    """stages: SHA-256 of the weights -> stage, of those that are finished; last: the last stage."""

    stages: Mapping[str, str]
    last: str


@dataclass(frozen=True)
class Part:
    """Something that was made of a run. content: None where there is none of its models; missing:
    why; notes: what is to be said of its model where it is shown."""

    content: Any
    missing: str = ""
    notes: tuple[str, ...] = ()


def own_models(last: str, models: Mapping[str, Any]) -> OwnModels:
    """models: stage -> the content of its model.json, None where it is not there."""
    found = {weights_of(content): stage for stage, content in models.items() if content is not None}
    return OwnModels({weights: stage for weights, stage in found.items() if weights}, last)


def part_of(path: Path, content: Any, own: OwnModels, what: str = "") -> Part:
    """What to show of a file, with its content or None. what: it is called so where it lacks, by
    default by its file name."""
    what = what or path.name
    if content is None:
        return Part(None, f"No {what} in {path.parent}")
    weights = weights_of(content)
    if not weights:
        said = f"{path} does not say which model it is of: it may be another than this run's."
        return Part(content, notes=(said,))
    if not own.stages:
        return Part(content, notes=(f"No model.json in this run: {path} may be of another model.",))
    if weights not in own.stages:
        return Part(None, f"Left out: {path} is of other weights than this run's; make it again")
    return Part(content, notes=tuple(_notes(path, content, own.stages[weights], own.last)))


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
