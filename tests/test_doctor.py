"""bench.doctor: medians from a clock, and the sentence that names what is slow."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import doctor
from bench.clock import Clock, Part
from bench.doctor import EACH, ONCE, DoctorBench, sentence
from shards.manifest import load_manifest


def parts(**slow: float) -> tuple[Part, ...]:
    return tuple(Part(name, slow.get(name, 1.0), 0.5, "a ceiling") for name in (*ONCE, *EACH))


def test_the_sentence_names_the_slowest_part_of_a_step_and_of_the_first_epoch():
    found = sentence(parts(backward=6.0, decode=9.0), step_ms=10.0)
    assert found.startswith("backward holds it back: 6.00 of 9.00 ms per copy (67%), 12.0 times")
    assert "warp) is 10.0% of the step of 10.00 ms" in found
    assert "the first time takes 12.00 ms, most of it decode" in found


def test_a_part_is_measured_so_often_and_once_before():
    done: list[str] = []
    ticks: list[int] = []
    clock = Clock(3, lambda: ticks.append(1))
    part = clock.part(
        "read",
        lambda: done.append("work"),
        lambda: done.append("limit"),
        2,
        "nothing",
        torch.device("cpu"),
    )
    assert done == ["work"] * 4 + ["limit"] * 4
    assert len(ticks) == 3
    assert part.ms >= 0
    assert part.ceiling_ms >= 0


class Accesses(TorchDispatchMode):
    """Counts the numbers that operations read and write."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, out) if isinstance(each, torch.Tensor)]
        self.count += sum(each.numel() for each in tensors)
        return out


def test_the_optimisers_ceiling_reads_and_writes_what_sgd_does():
    work = doctor.memory_accesses(1000, torch.device("cpu"))
    with Accesses() as accesses:
        work()
    assert accesses.count == 5 * 1000  # weight, gradient, momentum read; weight, momentum written


def test_where_dali_decodes_its_decoding_is_what_is_measured(tiny_shards, monkeypatch):
    """As on a GPU; here DALI's pipeline on the CPU."""
    input_dali = pytest.importorskip("train.input_dali", reason="DALI is not installed")
    folder = tiny_shards / "covid-radiography"
    count = load_manifest(folder).splits["train"].samples
    decoded, ticks, cpu = [], [], torch.device("cpu")

    def decode(*given):
        for part in input_dali.decoder_for(cpu)(*given):
            decoded.append(len(part))
            yield part

    monkeypatch.setattr(doctor, "choose_backend", lambda backend, device: ("dali", decode))
    monkeypatch.setattr(doctor, "World", lambda device: SimpleNamespace(device=cpu))
    config = DoctorBench(size=32, workers=1, repeats=1)
    parts, store = doctor._once(folder, config, Clock(1, lambda: ticks.append(1)))
    assert [part.name for part in parts] == list(ONCE)
    assert sum(decoded) == 4 * count  # twice, and as often the first image
    assert len(ticks) == len(ONCE)
    assert all(part.ms >= 0 and part.ceiling_ms >= 0 for part in parts)
    images = [torch.from_numpy(np.full((n, 40), 7, np.uint8)) for n in (30, 30, 50)]
    assert input_dali.resize_together(images, 16).eq(7).all()
    assert len(store) == count
