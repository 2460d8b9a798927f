"""train.agreed: all ranks go on from the same checkpoint, or end together with the reason."""

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from test_checkpoint import make_network, save, save_four

from shards.console import RunFailed
from train.agreed import agreed_checkpoint
from train.dist import World


class Ranks:
    """Threads as the ranks of a world: what each gives to gather comes back to all."""

    def __init__(self, monkeypatch, size: int) -> None:
        self._rows: dict[int, list[int]] = {}
        self._size, self._barrier = size, Barrier(size, timeout=20)
        monkeypatch.setattr("train.agreed.gather", self._gather)

    def _gather(self, values: list[int], rank: int) -> list[list[int]]:
        self._rows[rank] = values
        self._barrier.wait()
        rows = [self._rows[number] for number in range(self._size)]
        self._barrier.wait()
        return rows

    def agreed(self, folders: list[Path]) -> list[object]:
        """What each rank, which sees its folder, goes on from: a step, None, or its error."""
        with ThreadPoolExecutor(self._size) as pool:
            jobs = [pool.submit(agreed_checkpoint, folder, n) for n, folder in enumerate(folders)]
        errors = [job.exception() for job in jobs]
        return [
            str(error) if error else getattr(job.result(), "state", {}).get("step")
            for job, error in zip(jobs, errors)
        ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_four(tmp_path / "checkpoints")


@pytest.fixture
def views(folder, tmp_path, monkeypatch) -> Callable[..., list[object]]:
    """Rank 0 sees the checkpoints of steps 2 and 3, and ranks 1 and 2 what `change` makes of it."""

    def agreed(change: Callable[[Path], object]) -> list[object]:
        shutil.copytree(folder, tmp_path / "other")
        change(tmp_path / "other")
        return Ranks(monkeypatch, 3).agreed([folder, tmp_path / "other", folder])

    return agreed


def resave(folder: Path) -> None:
    """Another checkpoint of the same number."""
    shutil.rmtree(folder / "000004")
    model, optim = make_network()
    save(folder, model, optim, {"step": 9})


def test_all_ranks_take_the_newest_that_all_can_read(views, folder):
    assert views(lambda other: (other / "000004" / "optim.safetensors").unlink()) == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "rank 1 finds none, rank 0 reads 000004; give all machines the same"),
        (
            lambda other: [path.unlink() for path in other.glob("*/state.json")],
            "rank 1 finds none that it can read, rank 0 reads 000004",
        ),
        (resave, "checkpoint 000004 in .* is not the same for rank 1 as for"),
    ],
)
def test_ranks_that_see_other_checkpoints_end_together(views, change, message):
    errors = views(change)
    assert all(re.search(message, str(error)) for error in errors), errors


def test_none_that_can_be_read_is_an_error_and_none_at_all_a_new_run(folder):
    for state in folder.glob("*/state.json"):
        state.write_text("{")
    with pytest.raises(RunFailed, match=r"no checkpoint in .* can be read; delete the run to"):
        agreed_checkpoint(folder, World("cpu"))
    assert agreed_checkpoint(folder / "nothing", World("cpu")) is None
