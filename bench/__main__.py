"""Ours beside a peer, on the same images in the same run. Run: python -m bench QUESTION

Questions: ingest, input, warp, train, scale, score, explain, doctor; all. The last line of each is
one JSON object.
And `demo`: the whole way once, on synthetic radiographs.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from bench import doctor, explain, ingest, input, scale, score, train, warp
from bench.all import AllBench, measure_all
from bench.demo import DemoConfig, demo
from bench.result import print_result
from shards import console

Action = Callable[[], None]  # what a parsed command line asks for


def _question(
    config_type: type,
    measure: Callable[[Any], Any],
    show: Callable[[Any], None] = print_result,
) -> Callable[..., Action]:
    def command(config: Any) -> Action:
        return lambda: show(measure(config))

    command.__annotations__ = {"config": Annotated[config_type, tyro.conf.arg(name="")]}
    command.__doc__ = inspect.getdoc(config_type)
    return command


def _all(config: Annotated[AllBench, tyro.conf.arg(name="")]) -> Action:
    return lambda: print(measure_all(config), end="")


_all.__doc__ = inspect.getdoc(AllBench)


def _demo(config: Annotated[DemoConfig, tyro.conf.arg(name="")]) -> Action:
    return lambda: demo(config)


_demo.__doc__ = inspect.getdoc(DemoConfig)

COMMANDS: dict[str, Callable[..., Action]] = {
    "ingest": _question(ingest.IngestBench, ingest.measure),
    "input": _question(input.InputBench, input.measure),
    "warp": _question(warp.WarpBench, warp.measure),
    "train": _question(train.TrainBench, train.measure),
    "score": _question(score.ScoreBench, score.measure),
    "explain": _question(explain.ExplainBench, explain.measure),
    "scale": _question(scale.ScaleBench, scale.measure),
    "doctor": _question(doctor.DoctorBench, doctor.diagnose, doctor.print_diagnosis),
    "all": _all,
    "demo": _demo,
}


def main() -> None:
    console.check_command(sys.argv[1:], COMMANDS)
    action: Action = console.parse(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m bench",
            description="How fast is it? Ours beside a peer, in turns on the same images.",
        )
    )
    action()


if __name__ == "__main__":
    console.run(main)
