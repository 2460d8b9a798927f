"""A finished run -> scores, heat maps, report. Run: python -m serve COMMAND --help"""

import importlib
import sys
from typing import Any

import tyro

from shards.console import UserError, parse, run

# Imported when asked for: scoring and evaluation need no torch, and start in a second without it.
COMMANDS = {
    "export": ("serve.export", "ExportConfig", "export"),
    "score": ("serve.score", "ScoreConfig", "score"),
    "evaluate": ("serve.evaluate", "EvaluateConfig", "evaluate"),
    "explain": ("serve.explain.command", "ExplainConfig", "explain"),
    "report": ("serve.report", "ReportConfig", "write_report"),
}

USAGE = """usage: python -m serve export   --run RUN --out MODEL.onnx
       python -m serve score    --model MODEL.onnx --out DIR ARCHIVE...
       python -m serve evaluate --scores DIR --labels DIR --out DIR
       python -m serve explain  --run RUN --method gradcam --out DIR IMAGE...
       python -m serve report   --run RUN --out report.html
       python -m serve COMMAND --help   what each option means

Research software, not a medical device."""


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; there are: {', '.join(COMMANDS)}")
    module_name, config_name, function_name = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs {error.name}, which is not installed; make setup") from error
    prog = f"python -m serve {name}"
    config = parse(lambda: tyro.cli(getattr(module, config_name), args=rest, prog=prog))
    result = getattr(module, function_name)(config)
    for line in closing_lines(name, config, result):
        print(line)


def closing_lines(name: str, config: Any, result: Any) -> list[str]:
    """What a finished command says on standard output."""
    if name == "export":
        return [
            f"{config.out}: torch and ONNX Runtime agree on {result.images} images "
            f"(probabilities within {result.max_probability_difference:.1g}, AUROC within "
            f"{result.max_auroc_difference:.1g})"
        ]
    if name == "score":
        if result.already_done:
            return [f"{result.out}: already done, {result.rows} rows"]
        return [
            f"{result.out}: {result.rows} rows, {result.errors} of them errors; scored "
            f"{result.scored} images at {result.img_s:.1f} img/s ({result.provider})"
        ]
    if name == "report":
        return [str(result)]
    return []


if __name__ == "__main__":
    run(main)
