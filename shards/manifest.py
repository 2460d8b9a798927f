"""The manifest of a data set: written last, it names every shard. No manifest: not finished.

`OUT/<dataset>/manifest.json`; the shards lie in `OUT/<dataset>/<split>/`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shards.console import UserError
from shards.labels import Vocabulary

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
_OWN_HASH = "manifest_sha256"
SYNTHETIC_SOURCES = "synthetic"  # the setting of a merged set: those of its sources that are drawn
SYNTHETIC_NOTE = "synthetic: "  # begins the note that counts their images
SOME_OR_ALL = "some or all images"  # of a set that has synthetic ones, where nobody counted them


@dataclass(frozen=True)
class ShardInfo:
    """One shard: `<split>/<name>`, its number of samples, its size in bytes and its hashes."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class SplitCounts:
    """Samples of a split, and how many of them are YES for each label."""

    samples: int
    labels: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """dataset: its name; labels: in the order of the outputs; excluded: reason -> images left out;
    settings: what the ingest was asked for; image_extension: of every image member; synthetic: at
    least one image is drawn by a program; files: the tables, lists and the page beside the shards
    -> SHA-256; depth: of its 16-bit images that declared none (shards.depth), None where there
    were none, or of several data sets not one."""

    dataset: str
    labels: tuple[str, ...]
    exclusive: bool
    image_extension: str
    preprocessing_version: int
    shorter_side: int | None
    splits: dict[str, SplitCounts]
    excluded: dict[str, int]
    settings: dict[str, Any]
    shards: tuple[ShardInfo, ...]
    format_version: int = FORMAT_VERSION
    synthetic: bool = False
    notes: tuple[str, ...] = field(default=())
    files: dict[str, str] = field(default_factory=dict)
    depth: int | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.labels, self.exclusive)

    def of_split(self, split: str) -> tuple[ShardInfo, ...]:
        """The shards of a split, in order. UserError when there is no such split."""
        if split not in self.splits:
            have = ", ".join(sorted(self.splits))
            raise UserError(f"no split {split!r} in data set {self.dataset}; it has: {have}")
        return tuple(shard for shard in self.shards if shard.split == split)

    @property
    def synthetic_note(self) -> str:
        """How many of the images are synthetic, in words; empty: none."""
        if not self.synthetic:
            return ""
        counted = [note for note in self.notes if note.startswith(SYNTHETIC_NOTE)]
        images = sum(counts.samples for counts in self.splits.values())
        others = SOME_OR_ALL if self._merged_before else f"all {images} images"
        return counted[0] if counted else f"{SYNTHETIC_NOTE}{others}"

    def is_synthetic(self, source: str) -> bool | None:
        """Whether images of this source (their metadata name it) are synthetic; None: not known."""
        if self.synthetic and self._merged_before:
            return None
        return self.synthetic and source in self.settings.get(SYNTHETIC_SOURCES, (source,))

    @property
    def _merged_before(self) -> bool:
        """Merged by a version that did not note which of the sources are synthetic."""
        return "merged" in self.settings and SYNTHETIC_SOURCES not in self.settings

    def to_json(self) -> bytes:
        """With a hash of all else in it, so that `verify` finds any byte that changed."""
        plain = asdict(self)
        return _dumps({**plain, _OWN_HASH: hashlib.sha256(_dumps(plain)).hexdigest()})


def _dumps(plain: dict[str, Any]) -> bytes:
    return (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()


def manifest_hash(folder: Path) -> str:
    """SHA-256 of the manifest file: names the data set's exact content."""
    return hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest()


def load_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`. UserError when it is missing, damaged or of another version."""
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise UserError(_no_folder(folder))
    if not path.is_file():
        raise UserError(f"no {FILE_NAME} in {folder}; {_way_out(folder)}")
    try:
        return _parse(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest ({error}); run the ingest again") from error


def _no_folder(folder: Path) -> str:
    if folder.exists():
        return f"{folder} is a file; name the folder of a data set's shards"
    if (folder.parent / FILE_NAME).is_file():
        return (
            f"no folder {folder}; {folder.parent} is a data set itself: name that, or for training "
            "the folder it is in"
        )
    return f"no folder {folder}; make it with: python -m ingest ... --out {folder.parent}"


def _way_out(folder: Path) -> str:
    """What to do about a folder without a manifest."""
    inner = sorted(path.parent.name for path in folder.glob(f"*/{FILE_NAME}"))
    if inner:
        return f"it holds the data sets {', '.join(inner)}: name one of them"
    if (folder.parent / FILE_NAME).is_file():
        return f"it is a part of the data set {folder.parent}: name that"
    return "it is no data set, or its ingest is not finished: run the same ingest command again"


def _parse(raw: Any) -> Manifest:
    if raw.get("format_version") != FORMAT_VERSION:
        found = raw.get("format_version")
        raise ValueError(f"format version {found}, this program reads {FORMAT_VERSION}")
    raw.pop(_OWN_HASH, None)
    unknown = set(raw) - {f.name for f in fields(Manifest)}
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    raw["labels"], raw["notes"] = tuple(raw["labels"]), tuple(raw["notes"])
    raw["splits"] = {name: SplitCounts(**counts) for name, counts in raw["splits"].items()}
    raw["shards"] = tuple(ShardInfo(**shard) for shard in raw["shards"])
    for shard in raw["shards"]:
        if Path(shard.name).name != shard.name or Path(shard.split).name != shard.split:
            raise ValueError(f"shard name {shard.name!r} leaves the folder")
    return Manifest(**raw)


def shard_path(folder: Path, shard: ShardInfo) -> Path:
    """Where a shard of the data set in `folder` lies."""
    return folder / shard.split / shard.name


def check_shards(folder: Path, manifest: Manifest, splits: tuple[str, ...]) -> None:
    """Cheap check before a run: every shard and index is there, sizes and index hashes match.

    Raises UserError that names the first difference; `python -m shards verify` reads every byte.
    """
    for split in splits:
        for shard in manifest.of_split(split):
            problem = shard_problem(folder, shard)
            if problem:
                raise UserError(
                    f"{problem}; the shards do not match {folder / FILE_NAME}: ingest again"
                )


def shard_problem(folder: Path, shard: ShardInfo) -> str | None:
    """What is wrong with a shard, judged by its size and its index; None when nothing is."""
    path = shard_path(folder, shard)
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != shard.bytes:
        return f"{path} has {path.stat().st_size} bytes, expected {shard.bytes}"
    index = path.with_suffix(".idx")
    if not index.is_file():
        return f"{index} is missing"
    if hashlib.sha256(index.read_bytes()).hexdigest() != shard.index_sha256:
        return f"{index} is not the index of {path.name} (its hash differs)"
    return None
