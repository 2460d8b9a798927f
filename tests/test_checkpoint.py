"""train.checkpoint: what is written comes back exactly, and a damaged one is passed over."""

import os
from collections.abc import Set
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from shards.console import RunFailed
from train.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_optim,
    optim_tensors,
    save_best,
    save_checkpoint,
    weights_of,
)


def make_network() -> tuple[nn.Sequential, torch.optim.SGD]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6 * 16, 2)).to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)


def save(
    folder: Path,
    model: nn.Module,
    optim: torch.optim.Optimizer,
    state: dict,
    best: tuple[str, str] = ("", ""),
    keep: int = 2,
    passed: Set[int] = frozenset(),
) -> None:
    tensors = (weights_of(model), optim_tensors(optim))
    content = Checkpoint(*tensors, state, best_file=best[0], best_sha256=best[1])
    save_checkpoint(folder, content, keep, passed)


def train_steps(model: nn.Module, optim: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        images = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last)
        optim.zero_grad()
        model(images).square().mean().backward()
        optim.step()


def same_state(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == key and torch.equal(a, b) for (name, a), (key, b) in pairs)


def test_round_trip_is_exact_and_training_goes_on_bit_by_bit(tmp_path):
    model, optim = make_network()
    train_steps(model, optim, range(3))
    state = {"stage": 1, "loss_sum": 0.1 + 0.2, "phases": [{"name": "x"}]}
    save(tmp_path / "checkpoints", model, optim, state)
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.state == state
    again, fresh = make_network()
    again.load_state_dict(saved.weights)
    load_optim(fresh, saved.optim)
    assert same_state(model, again)
    train_steps(model, optim, range(3, 6))
    train_steps(again, fresh, range(3, 6))
    assert same_state(model, again)


def test_averages_and_statistics_of_each_process_come_back_or_none(tmp_path, capsys):
    tensors = [{name: torch.full((3,), float(i))} for i, name in enumerate("wmsb")]
    save_checkpoint(tmp_path, Checkpoint(*tensors[:2], {}), keep=2)
    content = Checkpoint(*tensors[:2], {}, ema=tensors[2], buffers=tensors[3])
    save_checkpoint(tmp_path, content, keep=2)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    for kept, given in zip((found.weights, found.optim, found.ema, found.buffers), tensors):
        assert kept.keys() == given.keys()
        assert all(torch.equal(kept[name], given[name]) for name in given)
    (tmp_path / "000002" / "buffers.safetensors").unlink()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.number, found.ema, found.buffers) == (1, {}, {})
    assert "000002 is damaged" in capsys.readouterr().err


def test_momentum_comes_back_in_the_parameters_memory_order(tmp_path):
    model, optim = make_network()
    train_steps(model, optim, range(2))
    save(tmp_path, model, optim, {})
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    other, fresh = make_network()
    load_optim(fresh, saved.optim)
    for parameter in other.parameters():
        momentum = fresh.state[parameter]["momentum_buffer"]
        assert momentum.stride() == parameter.stride()
    before, after = optim_tensors(optim), optim_tensors(fresh)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class CountsByGroup(torch.optim.Optimizer):
    """As apex's FusedAdam: its steps are counted in the group, not in the state."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                mean.mul_(0.9).add_(p.grad, alpha=0.1)
                p.sub_(mean / (1 - 0.9 ** group["step"]), alpha=group["lr"])


def test_what_an_optimiser_counts_for_a_group_goes_on(tmp_path):
    model, _ = make_network()
    optim = CountsByGroup(model.parameters(), lr=0.1)
    train_steps(model, optim, range(3))
    save(tmp_path, model, optim, {})
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    again, _ = make_network()
    again.load_state_dict(saved.weights)
    fresh = CountsByGroup(again.parameters(), lr=0.05)
    load_optim(fresh, saved.optim)
    (group,) = fresh.param_groups
    assert (group["step"], type(group["step"]), group["lr"]) == (3, int, 0.05)
    group["lr"] = 0.1
    train_steps(model, optim, range(3, 6))
    train_steps(again, fresh, range(3, 6))
    assert same_state(model, again)


def test_a_fresh_optimiser_has_nothing_to_save(tmp_path):
    model, optim = make_network()
    save(tmp_path, model, optim, {"step": 0})
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.optim == {}


def save_four(folder: Path) -> Path:
    """Checkpoints of steps 0 to 3, of which the last two remain."""
    model, optim = make_network()
    for step in range(4):
        train_steps(model, optim, range(1))
        save(folder, model, optim, {"step": step})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_four(tmp_path / "checkpoints")


def step_of(folder: Path) -> int | None:
    found = latest_checkpoint(folder)
    return None if found is None else found.state["step"]


def test_the_last_two_are_kept(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["000003", "000004"]
    assert step_of(folder) == 3


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "other bytes"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, capsys, name, damage):
    path = folder / "000004" / name
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"\xff" * len(data))
    assert step_of(folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: checkpoint ")
    assert "000004 is damaged" in line


def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(folder):
    model, optim = make_network()
    (folder / "000004" / "model.safetensors").write_bytes(b"half")
    save(folder, model, optim, {"step": 4}, passed={4})
    assert sorted(path.name for path in folder.iterdir()) == ["000003", "000005"]
    (folder / "000005" / "model.safetensors").write_bytes(b"half")
    assert step_of(folder) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_one_that_is_damaged_later_takes_no_good_ones_place(folder, name, damage):
    model, optim = make_network()
    path = folder / "000004" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    save(folder, model, optim, {"step": 4})
    (folder / "000005" / "model.safetensors").write_bytes(b"half")
    assert step_of(folder) == 2
    for step in (5, 6):
        save(folder, model, optim, {"step": step})
    assert sorted(path.name for path in folder.iterdir()) == ["000006", "000007"]


def test_one_whose_best_weights_are_damaged_later_takes_no_good_ones_place(folder):
    model, optim = make_network()
    best = ("best-1.safetensors", save_best(folder, "best-1.safetensors", model))
    save(folder, model, optim, {"step": 4}, best)
    (folder / "best-1.safetensors").write_bytes(b"half")
    save(folder, model, optim, {"step": 5})
    assert sorted(path.name for path in folder.glob("0*")) == ["000004", "000005", "000006"]


def test_one_flipped_bit_is_noticed(folder, capsys):
    path = folder / "000004" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # inside a tensor, where safetensors itself sees nothing
    path.write_bytes(bytes(data))
    assert step_of(folder) == 2
    assert "the SHA-256 of model.safetensors differs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "state.json"])
def test_any_flipped_byte_is_noticed(folder, name):
    path = folder / "000004" / name
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert step_of(folder) == 2
    path.write_bytes(whole)
    assert step_of(folder) == 3


def test_each_checkpoint_has_the_best_weights_of_its_own_past(tmp_path, capsys):
    model, optim = make_network()
    for step in range(5):
        train_steps(model, optim, range(step, step + 1))
        if step in (0, 3):
            name = f"best-{step}.safetensors"
            best = (name, save_best(tmp_path, name, model))
        save(tmp_path, model, optim, {"step": step}, best, keep=3)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"000003", "000004", "000005", "best-0.safetensors", "best-3.safetensors"}
    (tmp_path / "best-3.safetensors").unlink()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.state["step"], found.best_file) == (2, "best-0.safetensors")
    assert len(capsys.readouterr().err.splitlines()) == 2
    save(tmp_path, model, optim, {"step": 5}, ("", ""), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000006"]


def test_none_is_left(folder):
    for state in folder.glob("*/state.json"):
        state.write_text("{")
    assert latest_checkpoint(folder) is None


@pytest.mark.parametrize("content", ["5", "null", '"text"', "[]"])
def test_a_state_of_another_kind_is_damage(folder, capsys, content):
    (folder / "000004" / "state.json").write_text(content)
    assert step_of(folder) == 2
    assert "000004 is damaged" in capsys.readouterr().err


def test_a_full_disk_leaves_the_last_checkpoint(folder, monkeypatch):
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("train.checkpoint.save_file", full)
    model, optim = make_network()
    for write in (
        lambda: save(folder, model, optim, {"step": 4}),
        lambda: save_best(folder, "best-4.safetensors", model),
    ):
        with pytest.raises(RunFailed, match=r"No space left.*; make room there, and the same"):
            write()
        assert sorted(path.name for path in folder.iterdir()) == ["000003", "000004"]
    assert step_of(folder) == 3


def test_what_a_killed_run_left_half_written_is_no_checkpoint(folder):
    (folder / "writing.tmp").mkdir()
    (folder / "writing.tmp" / "model.safetensors").write_bytes(b"half")
    assert step_of(folder) == 3
    model, optim = make_network()
    save(folder, model, optim, {"step": 9})
    assert step_of(folder) == 9
    assert not (folder / "writing.tmp").exists()


def test_it_gets_its_name_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    """Also where the power fails right after."""
    events: list[tuple[str, int]] = []
    replace = Path.replace

    def sync(fd: int) -> None:
        events.append(("synced", os.fstat(fd).st_ino))

    def named(path: Path, target: Path) -> Path:
        events.append(("named", path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", named)
    model, optim = make_network()
    opened = os.listdir("/proc/self/fd")
    best = ("best-1.safetensors", save_best(tmp_path, "best-1.safetensors", model))
    save(tmp_path, model, optim, {"step": 4}, best)
    best_file, checkpoint = (tmp_path / name for name in (best[0], "000001"))
    number = {path: path.stat().st_ino for path in [*checkpoint.iterdir(), best_file, checkpoint]}
    assert len(number) == 5
    for path, inode in number.items():
        whole = best_file if path == best_file else checkpoint
        assert events.index(("synced", inode)) < events.index(("named", number[whole]))
    assert events[-1] == ("synced", tmp_path.stat().st_ino)  # the name itself
    assert set(os.listdir("/proc/self/fd")) <= set(opened)  # or a long run is out of files
