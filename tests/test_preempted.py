"""train.preempted: a signal that comes before a training listens to it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from train import __main__ as command

ROOT = Path(__file__).resolve().parent.parent
LINE = "stopped before it began; give the same command again\n"
TERM, INT = signal.SIGTERM, signal.SIGINT


def catches_term(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM (Python has one for SIGINT from the start)."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(line for line in status if line.startswith("SigCgt:")).split()[1]
    return bool(int(mask, 16) >> (TERM - 1) & 1)


def send(words: list[str], number: signal.Signals, when: Callable[[int], bool]) -> tuple[int, str]:
    """`python -m train WORDS`, signalled as soon as `when` holds: exit status, standard error."""
    command = [sys.executable, "-m", "train", *words]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not when(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(number)
    return process.wait(60), process.communicate()[1]


@pytest.mark.parametrize(
    ("word", "number", "status"),
    [("demo", TERM, 0), ("demo", INT, 130), ("list", TERM, 143), ("compare", INT, 130)],
)
def test_a_signal_while_torch_is_imported_ends_it_in_one_line(word, number, status):
    assert send([word], number, catches_term) == (status, LINE)


def test_a_training_that_is_preempted_as_it_begins_exits_with_0(tiny_shards, tmp_path):
    words = ["demo", "--shards", str(tiny_shards), "--run", str(tmp_path / "run")]
    small = ["--size", "32", "--device", "cpu"]
    status, error = send([*words, *small], TERM, lambda _: (tmp_path / "run" / ".lock").exists())
    assert status == 0
    assert error.splitlines()[-1].startswith("stopped")


def test_a_training_that_has_ended_is_not_killed_on_its_way_out(monkeypatch):
    before, words = signal.getsignal(TERM), ["train", "demo", "--shards", "a", "--run", "b"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(command, "train", lambda _: None)
    try:
        command.main()
        assert signal.getsignal(TERM) is signal.SIG_IGN
    finally:
        signal.signal(TERM, before)
