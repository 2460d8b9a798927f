"""The bench: rates from a clock that is no clock, then every question once in miniature."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.__main__ import main
from bench.all import QUESTIONS, AllBench, ask, measure_all
from bench.config import BenchConfig, settle
from bench.explain import _on_its_gpu, _training
from bench.images import raw_images
from bench.result import Rates, Result, interleave
from shards.codec import decode_grey
from shards.console import RunFailed, UserError
from train.precision import Precision

FIELDS = {
    "name",
    "what",
    "unit",
    "ours",
    "peer",
    "peer_name",
    "ratio",
    "spread",
    "n",
    "images",
    "others",
    "machine",
    "versions",
    "commit",
    "synthetic",
    "quick",
}
EXTRA = {
    "ingest": {
        "ratio_to_pillow",
        "ratio_of_workers",
        "ratio_htj2k_to_png",
        "ratio_keep_to_cp",
        "whole_chestxray14_hours",
        "peak_mb_of_1_2_4_times",
    },
    "input": {"resident_img_s", "kornia_img_s", "resident_ratio", "jpeg_img_s"},
    "warp": {"share_of_write_limit", "threads_img_s"},
    "train": {"precision", "architecture", "percent_of_peak", "input_percent", "start_s"},
    "score": {"architecture", "end_to_end"},
    "explain": {"architecture", "gradcam_to_training", "occlusion_to_one_window", "img_s"},
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The questions set torch's threads for their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class FakeClock:
    """Time passes only where a side says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def side(self, name: str, images: int, seconds: list[float]) -> Callable[[], int]:
        left = iter(seconds)

        def work() -> int:
            self.log.append(name)
            self.now += next(left)
            return images

        return work


def test_interleave_takes_turns_and_leaves_the_first_out() -> None:
    clock = FakeClock()
    sides = {
        "ours": clock.side("ours", 8, [9, 1, 2, 4]),
        "peer": clock.side("peer", 8, [9, 8, 4, 16]),
    }
    rates = interleave("test", sides, 3, lambda: clock.now, lambda: clock.log.append("clear"))
    assert clock.log[::2] == ["clear"] * 8
    assert clock.log[1::2] == ["ours", "peer", "peer", "ours"] * 2
    assert rates["ours"].img_s == (8, 4, 2)
    assert rates["peer"].img_s == (1, 2, 0.5)
    assert rates["ours"].median == 4
    assert rates["peer"].spread == (0.5, 2)


def fake_result(name: str = "ingest") -> Result:
    return Result(
        name=name,
        what="nothing",
        peer_name="nobody",
        ours=Rates((30.0, 10.0, 20.0, 40.0)),
        peer=Rates((5.0, 1.0, 9.0, 5.0)),
        images=7,
        synthetic=True,
        quick=True,
        extra={"further": 1},
    )


def test_result_has_medians_spread_and_ratio() -> None:
    line = fake_result().to_dict()
    assert set(line) == FIELDS | {"further"}
    assert (line["ours"], line["peer"], line["ratio"], line["n"]) == (25, 5, 5, 4)
    assert line["spread"] == {"ours": [10, 40], "peer": [1, 9]}
    assert line["machine"]["cores"] >= 1
    assert {"python", "torch", "numpy"} <= set(line["versions"])


@pytest.mark.soak
@pytest.mark.parametrize("question", sorted(EXTRA))
def test_question_ends_with_its_json_line(
    question: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", question, "--quick", "--repeats", "2"])
    main()
    *words, last = capsys.readouterr().out.splitlines()
    line = json.loads(last)
    assert set(line) >= FIELDS | EXTRA[question]
    assert line["name"] == question
    assert line["unit"] == "img/s"
    assert line["n"] == 2
    assert line["images"] == (24 if question in ("ingest", "input") else 12)  # with turned copies
    assert line["synthetic"]
    assert line["quick"]
    assert line["ratio"] == pytest.approx(line["ours"] / line["peer"])
    for side in ("ours", "peer"):
        low, high = line["spread"][side]
        assert 0 < low <= line[side] <= high
    assert any("synthetic" in text for text in words)


def test_explanations_are_timed_in_the_arithmetic_that_the_command_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[bool, bool]] = []
    monkeypatch.setattr(
        "bench.explain.set_cuda", lambda _, tf32, few_shapes: asked.append((tf32, few_shapes))
    )
    sides = _on_its_gpu({"lrp": lambda: 3, "train": lambda: 5}, torch.device("cuda"))
    assert [sides[name]() for name in ("train", "lrp")] == [5, 3]
    assert asked == [(True, True), (False, False)]


def test_the_training_step_beside_explanations_is_as_large_as_trainings() -> None:
    sizes: list[int] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model[0].register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    cpu = torch.device("cpu")
    step = _training(model, torch.zeros(70, 3, 2, 2), [0] * 70, Precision("fp32", cpu))
    assert step() == 70
    assert sizes == [64, 6]


def test_raw_images_takes_archives_and_leaves_damaged_images_out(
    tiny_raw: Path, tmp_path: Path
) -> None:
    config = BenchConfig(images=tiny_raw / "chestxray14", number=60, workers=1)
    raw = raw_images(config, tmp_path / "raw")
    assert len(raw) == 47  # one of the 48 is truncated
    assert not raw.synthetic
    assert str(raw) == "47 PNG 160 x 160"
    assert len({decode_grey(path.read_bytes()).tobytes() for path in raw.paths}) == 47


def test_drawn_images_are_the_same_each_time(tmp_path: Path) -> None:
    config = BenchConfig(number=2, side=64)
    first, second = (raw_images(config, tmp_path / name) for name in "ab")
    assert first.synthetic
    assert [p.read_bytes() for p in first.paths] == [p.read_bytes() for p in second.paths]


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--repeats 0; at least 1"):
        settle(BenchConfig(repeats=0))
    with pytest.raises(UserError, match="no folder"):
        raw_images(BenchConfig(images=tmp_path / "absent"), tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="0 usable images"):
        raw_images(BenchConfig(images=tmp_path / "empty", workers=1), tmp_path / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        measure_all(AllBench(tmp_path / "file"))


def test_quick_lowers_and_never_raises() -> None:
    small = settle(BenchConfig(number=4, repeats=9, quick=True))
    assert (small.number, small.repeats, small.side) == (4, 3, 160)
    assert settle(BenchConfig()) == BenchConfig()


def test_all_writes_results_table_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake_ask(question: str, arguments: list[str]) -> dict:
        asked.append((question, arguments))
        return fake_result(question).to_dict()

    monkeypatch.setattr("bench.all.ask", fake_ask)
    out = tmp_path / "out"
    table = measure_all(AllBench(out, images=Path("raw"), repeats=4, quick=True))
    arguments = ["--repeats", "4", "--images", "raw", "--quick"]
    assert asked == [(name, arguments) for name in QUESTIONS]
    assert (out / "table.md").read_text() == table
    assert "| train | 25.0 (10.0 to 40.0) | 5.0 (1.0 to 9.0) | 5.00 | 4 | 7 | nobody |" in table
    assert "synthetic" in table
    results = json.loads((out / "results.json").read_bytes())
    assert [result["name"] for result in results] == list(QUESTIONS)
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("program", "error"), [("exit 2", UserError), ("exit 1", RunFailed)], ids=["wrong", "failed"]
)
def test_a_question_that_fails_ends_all(
    program: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(error, match="bench ingest ended with status"):
        ask("ingest", [])
