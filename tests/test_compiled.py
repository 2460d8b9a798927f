"""shards.compiled: compiled once, loaded by other processes without numba, never when damaged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards import compiled

ROOT = Path(__file__).parents[1]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Two folders of its own, in the place of those of this machine."""
    folders = [tmp_path / "beside", tmp_path / "of-the-user"]
    monkeypatch.setattr(compiled, "_folders", lambda: folders)
    return folders


def test_numba_compiles_and_is_not_needed_again(tmp_path: Path):
    show = (
        "import sys; from shards import compiled;"
        f"compiled._folders = lambda: [__import__('pathlib').Path({str(tmp_path)!r})];"
        "from shards import resample; import numpy as np;"
        "image = np.arange(50 * 40, dtype=np.uint8).reshape(50, 40);"
        "print('numba' in sys.modules, resample.resize_like_pillow(image, 9).sum())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [loaded for loaded, _ in said] == ["True", "False"]
    assert said[0][1] == said[1][1]
    assert [file.suffix for file in tmp_path.iterdir()] == [".o"]


def test_the_code_is_kept_in_the_first_folder_that_can_be_written_to(kept: list[Path]):
    kept[0].touch()  # a file: nothing can be written below it, whoever writes
    assert compiled._kept("a.o") is None
    assert compiled._keep("a.o", b"code") == b"code"
    assert compiled._kept("a.o") == b"code"
    assert [file.name for file in kept[1].iterdir()] == ["a.o"]


def test_where_nothing_can_be_written_it_is_compiled_each_time(kept: list[Path]):
    for folder in kept:
        folder.touch()
    assert compiled._keep("a.o", b"code") == b"code"
    assert compiled._kept("a.o") is None


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda _: b"", lambda data: data[1:]])
def test_a_damaged_file_is_as_none(kept: list[Path], change):
    compiled._keep("a.o", b"code")
    file = kept[0] / "a.o"
    file.write_bytes(change(file.read_bytes()))
    assert compiled._kept("a.o") is None
    compiled._keep("a.o", b"code")
    assert compiled._kept("a.o") == b"code"


def test_a_kernel_that_calls_numbas_run_time_is_refused():
    known = "declare ptr @memcpy(ptr, ptr, i64)\ndeclare double @llvm.fabs.f64(double)\n"
    compiled._check_calls(compiled.binding.parse_assembly(known))
    whole = compiled.binding.parse_assembly(known + "declare ptr @NRT_Allocate(i64)\n")
    with pytest.raises(AssertionError, match=r"need numba to run: \['NRT_Allocate'\]"):
        compiled._check_calls(whole)


def test_another_source_or_cpu_has_another_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    names = {compiled._fingerprint()}
    with monkeypatch.context() as patch:
        patch.setattr(compiled.binding, "get_host_cpu_name", lambda: "another")
        names.add(compiled._fingerprint())
    (tmp_path / "kernels.py").write_text("# other loops")
    monkeypatch.setattr(compiled, "_SOURCE", tmp_path / "kernels.py")
    assert len(names | {compiled._fingerprint()}) == 3


def test_the_users_folder_is_where_they_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.sep + "x")
    assert compiled._folders()[1] == Path("/x/cxrstack")


def test_a_user_without_a_home_has_one_folder(monkeypatch: pytest.MonkeyPatch):
    def nowhere(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nowhere))
    assert compiled._folders() == [ROOT / "shards" / "__pycache__"]
