"""The import table of the design: which room may import which, and what shards may lean on."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "shards": {"shards"},
    "ingest": {"shards", "ingest"},
    "train": {"shards", "train"},
    "serve": {"shards", "train", "serve"},
    "bench": {"shards", "ingest", "train", "serve", "bench"},
}
SHARDS_LIBRARIES = [
    "numpy",
    "cv2",
    "fsspec",
    "imagecodecs",
    "isal",
    "kornia_rs",
    "llvmlite",
    "numba",
    "PIL",
    "pyarrow",
    "pydicom",
    "rich",
    "simplejpeg",
    "tyro",
]
WITHOUT_TORCH = [
    *("score", "archives", "entries", "tars", "units", "decode", "score_folder", "predictions"),
    *("thresholds", "parity", "inspect", "model_card", "triton", "quantise", "taps", "rewrite"),
    *("zips", "network", "score_inputs", "score_run", "score_csv", "score_ray", "gpus", "dry_run"),
    *("summary", "opened"),
    *("tables", "providers", "model_info", "evaluate", "intervals", "confusion", "figures"),
]


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(first word of the module's name, line) of every import, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield (node.module or "").split(".")[0], node.lineno


def places(room: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(room)
        for name, line in imports(path)
        if name in forbidden
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_table_allows(room):
    assert modules(room)
    assert places(room, set(ROOMS) - ROOMS[room]) == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_the_tests(room):
    own = {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert places(room, {"tests", *own}) == []


def test_shards_lean_on_small_libraries_only():
    allowed = {"shards", *SHARDS_LIBRARIES, *sys.stdlib_module_names}
    found = {name for path in modules("shards") for name, _ in imports(path)}
    assert found - allowed == set()


def test_ingest_needs_no_torch():
    assert places("ingest", {"torch", "torchvision", "nvidia"}) == []


def test_scoring_imports_no_torch_even_indirectly():
    code = "import sys, importlib\nfor name in ('torch', 'torchvision'): sys.modules[name] = None\n"
    code += f"for name in {WITHOUT_TORCH}: importlib.import_module('serve.' + name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_code_folder_is_a_listed_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["packages"]
    folders = {path.parent for room in ROOMS for path in modules(room)}
    assert sorted(listed) == sorted(".".join(f.relative_to(ROOT).parts) for f in folders)
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []


def test_there_is_no_other_code_at_the_top():
    assert [path.name for path in ROOT.glob("*.py")] == []


@pytest.mark.parametrize("room", ["train", "serve", "bench"])
@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_torch_finds_how_its_threads_wait(room, given, found):
    script = (
        f"import os, sys, {room}; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    others = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=others | given, capture_output=True, text=True
    )
    assert done.stdout.split() == [found, "False"]
