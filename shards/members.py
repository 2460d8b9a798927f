"""Which files of a folder or an archive nobody put there as images."""

from pathlib import PurePosixPath

_SYSTEM_FOLDER = "__MACOSX"  # macOS puts `._x.jpeg` there for every x.jpeg it packs
# Lower case. A DICOMDIR lists the DICOM files beside it.
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "dicomdir"))


def is_system_file(name: str) -> bool:
    """Whether a system or a viewer left it: hidden (`._x.png`, `.DS_Store`), in a hidden folder or
    macOS's, or of a known name. name: with / between folders, below what is read."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") and part != ".." for part in parts)
    known = bool(parts) and parts[-1].lower() in _SYSTEM_FILES
    return hidden or known or _SYSTEM_FOLDER in parts
