"""train.memory: where images are kept, decided by free memory alone."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.console import UserError
from train import memory
from train.memory import Memory, choose_place, describe_place, free_memory

BYTES = st.integers(0, 10**13)
MEMORIES = st.builds(Memory, BYTES, st.none() | BYTES)
GB = 10**9


@given(BYTES, MEMORIES, st.booleans())
def test_auto_takes_only_what_has_room(needed, free, cache):
    place = choose_place("auto", needed, free, cache=cache)
    rooms = {"device": free.device or 0, "host": free.host}
    if place in rooms:
        assert needed <= rooms[place] * 0.7
    else:
        assert place == ("disk" if cache else "stream")
        assert needed > free.host * 0.69 or needed == 0
    if free.device is None:
        assert place != "device"


@given(BYTES, BYTES, MEMORIES, st.booleans())
def test_auto_never_takes_a_better_place_for_more(less, more, free, cache):
    order = ["device", "host", "disk", "stream"]
    places = [choose_place("auto", n, free, cache=cache) for n in sorted((less, more))]
    assert order.index(places[0]) <= order.index(places[1])


@given(st.sampled_from(["device", "host"]), BYTES, MEMORIES, st.booleans())
def test_what_is_asked_for_is_taken_or_refused(asked, needed, free, cache):
    on_gpu = asked == "device" and free.device is not None
    room = free.device if on_gpu else free.host
    if needed > room:
        with pytest.raises(UserError, match=f"--input.store {asked} needs .*; take .*auto"):
            choose_place(asked, needed, free, cache=cache)
    else:
        expected = asked if free.device is not None else "host"
        assert choose_place(asked, needed, free, cache=cache) == expected


def test_examples():
    card = Memory(host=64 * GB, device=24 * GB)
    assert choose_place("auto", 6 * GB, card, cache=False) == "device"
    assert choose_place("auto", 20 * GB, card, cache=False) == "host"
    assert choose_place("auto", 90 * GB, card, cache=True) == "disk"
    assert choose_place("auto", 90 * GB, card, cache=False) == "stream"
    assert choose_place("stream", 1, card, cache=False) == "stream"


def test_a_place_needs_its_folder():
    free = Memory(GB, None)
    with pytest.raises(UserError, match=r"needs a folder; name it with --input.cache DIR"):
        choose_place("disk", 1, free, cache=False)
    with pytest.raises(UserError, match="give one of them"):
        choose_place("stream", 1, free, cache=True)


def test_the_line_says_what_and_why():
    free = Memory(60 * GB, 24 * GB)
    assert describe_place("auto", "device", 6 * GB, free) == (
        "input: 6.0 GB of images, kept on the GPU; free: 24.0 GB of the GPU's and 60.0 GB of the "
        "host's memory"
    )
    line = describe_place("stream", "stream", 10**6, Memory(GB, None))
    assert line.startswith(
        "input: 1.00 MB of images, streamed from the shards in every epoch (--in"
    )


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    own = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[-1].lstrip("/")
    (tmp_path / own).mkdir(parents=True, exist_ok=True)
    (tmp_path / own / "memory.max").write_text("5000000\n")
    (tmp_path / own / "memory.current").write_text("3000000\n")
    (tmp_path / own / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert free_memory(torch.device("cpu")) == Memory(3_000_000, None)
    (tmp_path / own / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")).host > 3_000_000


def test_a_gpus_free_memory_is_asked_by_its_uuid(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("given back"))
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: asked.append("shutdown"),
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=7),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = SimpleNamespace(uuid="1-2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert free_memory(torch.device("cuda:1")).device == 7
    assert asked == ["given back", "GPU-1-2", "shutdown"]
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByUUID", lambda uuid: 1 / 0)
    monkeypatch.setattr(nvml, "NVMLError", ZeroDivisionError)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (11, 12))
    assert free_memory(torch.device("cuda:1")).device == 11
