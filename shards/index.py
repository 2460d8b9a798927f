"""DALI's index of a tar shard: text, `v1.2 <samples>`, then per sample `ext offset size name` rows.

A stale index silently gives wrong bytes in DALI, so the manifest binds it to its tar by hash.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "v1.2"


@dataclass(frozen=True)
class Component:
    """One member of a sample: offset and size of its data in the tar, in bytes."""

    extension: str
    offset: int
    size: int
    name: str

    @property
    def key(self) -> str:
        return self.name.split(".", 1)[0]


def format_index(samples: list[list[Component]]) -> str:
    """The index file's text."""
    rows = [
        " ".join(f"{c.extension} {c.offset} {c.size} {c.name}" for c in components)
        for components in samples
    ]
    return "\n".join([f"{VERSION} {len(samples)}", *rows]) + "\n"


def parse_index(text: str) -> list[list[Component]]:
    """Inverse of format_index. ValueError when the text is no index of this version."""
    head, *rows = text.splitlines() or [""]
    if head.split() != [VERSION, str(len(rows))]:
        raise ValueError(f"expected '{VERSION} {len(rows)}' in the first line, found {head[:40]!r}")
    return [_parse_row(row) for row in rows]


def _parse_row(row: str) -> list[Component]:
    words = row.split()
    if not words or len(words) % 4:
        raise ValueError(f"expected 'ext offset size name' groups, found {row[:60]!r}")
    groups = zip(*[iter(words)] * 4)
    return [Component(ext, int(offset), int(size), name) for ext, offset, size, name in groups]


def index_tar(path: Path) -> list[list[Component]]:
    """The index as the tar itself says it. tarfile.TarError when it is damaged."""
    samples: list[list[Component]] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            extension = member.name.split(".", 1)[-1]
            component = Component(extension, member.offset_data, member.size, member.name)
            if samples and samples[-1][0].key == component.key:
                samples[-1].append(component)
            else:
                samples.append([component])
    return samples
