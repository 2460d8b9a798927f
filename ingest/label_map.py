"""The mapping file of a merge: data set and label there -> label of the merged set.

CSV with the columns `dataset,source_label,label`, or TOML with a table for each data set:
`[covid-radiography]` and below it `"Viral Pneumonia" = "Pneumonia"`. An empty label leaves the
images that have it out.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from shards.console import UserError, warn
from shards.csv_table import is_missing, read_rows
from shards.labels import warn_of_variants
from shards.manifest import Manifest

LabelMap = Mapping[str, Mapping[str, str]]  # data set -> its label -> label, empty: left out
_COLUMNS = ("dataset", "source_label", "label")


def read_label_map(path: Path) -> LabelMap:
    """The mapping. UserError when the file cannot be read or says something twice."""
    if not path.is_file():
        raise UserError(f"no file {path}; --map names a CSV or TOML with the labels")
    found = _read_toml(path) if path.suffix.lower() == ".toml" else _read_csv(path)
    if not any(label for labels in found.values() for label in labels.values()):
        raise UserError(f"{path} maps nothing to a label; expected rows of {', '.join(_COLUMNS)}")
    return found


def _read_csv(path: Path) -> LabelMap:
    found: dict[str, dict[str, str]] = {}
    for line, row in read_rows(path, _COLUMNS, verbatim=_COLUMNS):
        dataset, source, label = (row[name] for name in _COLUMNS)
        if label and is_missing(label):
            raise UserError(
                f"{path} line {line}: {label!r} is a word for missing; leave the label empty to "
                "leave out these images, or give another name"
            )
        if found.setdefault(dataset, {}).setdefault(source, label) != label:
            raise UserError(f"{path} line {line}: {dataset}, {source} is mapped twice")
    return found


def _read_toml(path: Path) -> LabelMap:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the mapping {path}: {error}; give a CSV or TOML") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    for dataset, labels in raw.items():
        if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
            raise UserError(
                f'{path}: {dataset} is no table of texts; expected [{dataset}] and "label there" '
                '= "label"'
            )
    return raw


def check_label_map(labels: LabelMap, manifests: Mapping[str, Manifest], path: Path) -> None:
    """UserError unless the mapping speaks of every label of every data set, and of no other."""
    for dataset, manifest in manifests.items():
        mapped, known = set(labels.get(dataset, {})), set(manifest.labels)
        for problem, names in (("lacks", known - mapped), ("invents", mapped - known)):
            if names:
                raise UserError(
                    f"{path} {problem} labels of {dataset}: {', '.join(sorted(names))}; it has: "
                    f"{', '.join(manifest.labels)}; map each, to nothing what shall be left out"
                )
    others = sorted(set(labels) - set(manifests))
    if others:
        warn(f"{path} also maps {', '.join(others)}, which is not among the data sets given")


def label_names(labels: LabelMap, datasets: Mapping[str, Manifest]) -> tuple[str, ...]:
    """The labels of the merged set, in the order in which the file first names them."""
    used = (table for dataset, table in labels.items() if dataset in datasets)
    names = tuple(dict.fromkeys(label for table in used for label in table.values() if label))
    warn_of_variants(names, "the mapping")
    return names
