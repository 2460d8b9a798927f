"""train.stop: a second signal, and a lost process after one."""

import signal

import pytest
from tiny_training import CONFIG

from train.dist import World
from train.loop import Trainer
from train.stop import Interrupted, Stop

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_a_second_signal_disturbs_nothing():
    stop = Stop()
    stop.listen()

    def stopped_twice() -> None:
        with stop.at_once():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # while the checkpoint is written

    with pytest.raises(Interrupted):
        stopped_twice()
    assert stop.number == signal.SIGTERM
    with pytest.raises(Interrupted), stop.at_once():
        raise AssertionError("went on")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer", Interrupted),
        ("shapes cannot be multiplied", RuntimeError),
    ],
)
def test_after_a_signal_only_a_lost_process_is_taken_for_a_stop(
    tiny_shards, tmp_path, monkeypatch, message, error
):
    def fail(*_: object, **__: object) -> None:
        trainer.stop.number = signal.SIGTERM
        raise RuntimeError(message)

    monkeypatch.setattr("train.loop.load_stores", fail)
    trainer = Trainer(CONFIG, tiny_shards, tmp_path, World("cpu"))
    with pytest.raises(error):
        trainer.run()
