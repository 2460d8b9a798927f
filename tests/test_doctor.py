"""bench.doctor: medians from a clock, and the sentence that names what is slow."""

import torch

from bench.doctor import EACH, ONCE, Clock, Part, sentence


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
