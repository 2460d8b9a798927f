"""A finished run -> scores, heat maps, report. Run: python -m serve COMMAND --help"""

import importlib
import sys
from typing import Any

import tyro

from shards.console import UserError, parse, run
from shards.remote import is_remote
from shards.urls import url_paths

# Imported when asked for: scoring and evaluation need no torch, and start in a second without it.
COMMANDS = {
    "export": ("serve.export", "ExportConfig", "export"),
    "inspect": ("serve.inspect", "InspectConfig", "inspect"),
    "score": ("serve.score", "ScoreConfig", "score"),
    "summary": ("serve.summary", "SummaryConfig", "summary"),
    "evaluate": ("serve.evaluate", "EvaluateConfig", "evaluate"),
    "shortcuts": ("serve.shortcuts.command", "ShortcutsConfig", "find_shortcuts"),
    "explain": ("serve.explain.command", "ExplainConfig", "explain"),
    "faithfulness": ("serve.explain.faithfulness_command", "FaithfulnessConfig", "faithfulness"),
    "features": ("serve.explain.features_command", "FeaturesConfig", "features"),
    "report": ("serve.report", "ReportConfig", "write_report"),
}

USAGE = """usage: python -m serve export   --run RUN --out MODEL.onnx
       python -m serve inspect  MODEL.onnx
       python -m serve score    --model MODEL.onnx --out DIR ARCHIVE...
       python -m serve summary  DIR --top 24 --label LABEL
       python -m serve evaluate --scores DIR --labels DIR --out DIR
       python -m serve shortcuts --model MODEL.onnx --shards DIR --out DIR
       python -m serve explain  --run RUN --method lrp,gradcam --out DIR IMAGE...
       python -m serve faithfulness --run RUN --shards DIR --out DIR
       python -m serve features --run RUN --shards DIR --out DIR
       python -m serve report   --run RUN [--run RUN2] --out report.html
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
    config_type = getattr(module, config_name)
    config = parse(lambda: tyro.cli(config_type, args=rest, prog=prog, registry=url_paths()))
    if name != "score":  # whose archives may be URLs
        _refuse_urls(config, name)
    result = getattr(module, function_name)(config)
    for line in closing_lines(name, config, result):
        print(line)


def _refuse_urls(config: Any, name: str) -> None:
    for value in vars(config).values():
        for path in value if isinstance(value, tuple) else (value,):
            if is_remote(path):
                raise UserError(f"{path}: {name} takes paths on this machine; copy it to a folder")


def closing_lines(name: str, config: Any, result: Any) -> list[str]:
    """What a finished command says on standard output."""
    if name == "export":
        parity = result.parity
        lines = [
            f"{config.out}: {result.precision}, torch and ONNX Runtime agree on {parity.images} "
            f"images (probabilities within {parity.max_probability_difference:.1g}, a label's "
            f"AUROC within {parity.max_auroc_difference:.1g})",
            f"{result.card}: the model card",
        ]
        return lines + ([f"{result.triton}: for Triton"] if result.triton else [])
    if name == "summary":
        return list(result)
    if name == "score":
        if config.dry_run:
            return list(result.lines())
        return _scored(result)
    if name in ("report", "faithfulness", "features"):
        return [str(result)]
    return []


def _scored(result: Any) -> list[str]:
    from serve.dry_run import said_of_links

    links = said_of_links(result.linked_folders)
    if result.already_done:
        return [f"{result.out}: already done, {result.rows} rows", *links]
    done = (
        f"{result.out}: {result.rows} rows, {result.errors} of them errors; scored "
        f"{result.scored} images at {result.img_s:.1f} img/s ({result.provider})"
    )
    return [done, *links]


if __name__ == "__main__":
    run(main)
