"""Where what can be made again lies, between runs."""

import os
from pathlib import Path


def user_cache() -> Path:
    """`cxrstack` in the user's cache ($XDG_CACHE_HOME or ~/.cache). RuntimeError for a user without
    a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxrstack"
