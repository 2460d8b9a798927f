"""shards.malloc: memory that was freed is taken again without new pages from the kernel."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import ctypes, resource, sys
import numpy as np
from shards import malloc

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: they are fetched 512 at a time

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [np.ones({bytes}, np.uint8) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep = getattr(malloc, sys.argv[1], None)
if keep:
    keep()
faults()
print(min(faults() for _ in range(5)))
"""


def faults(keep: str, megabytes: int) -> int:
    """Pages that a process has to fetch for three arrays that it had before."""
    code = FAULTS.format(bytes=megabytes << 20)
    done = subprocess.run(
        [sys.executable, "-c", code, keep],
        cwd=Path(__file__).parents[1],
        env={"GLIBC_TUNABLES": "", "NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize(("keep", "megabytes"), [("keep_some", 20), ("keep_all", 100)])
def test_pages_are_fetched_once(keep: str, megabytes: int):
    pages = 3 * megabytes * 256
    assert faults("none", megabytes) > pages / 2
    assert faults(keep, megabytes) < pages / 100
