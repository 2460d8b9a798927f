"""The report's HTML from what `serve.report_run` read: templates, one style sheet, one script.

The page forbids itself everything but what stands in it: its policy names the SHA-256 of the style
sheet and of the script, so that no other can run, and allows pictures from data: alone.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from serve.report_charts import embed

FOLDER = Path(__file__).parent
SCRIPTS = ("base", "chart", "curves", "threshold", "gallery", "features")
# What turns the direction of all text behind it, ours too: a name must not hide "(wrong)".
_TURNS = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_LEVELS = 10  # shades of the confusion matrix's cells


def render(page: dict[str, Any]) -> str:
    """The page's HTML; `page` has the keys that serve.report gives it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=in_order,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "number": number,
        "signed": signed,
        "p_value": p_value,
        "stacked": stacked,
        "level": level,
        "png": lambda data: data_uri(data, "image/png"),
        "webp": lambda data: data_uri(data, "image/webp"),
    }
    style = (FOLDER / "report.css").read_text(encoding="utf-8")
    parts = [(FOLDER / f"report_{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();\n"
    own = {
        "style": Markup(style),
        "script": Markup(script),
        "data": Markup(embed([run["charts"] for run in page["runs"]])),
        "policy": policy(style, script),
    }
    return environment.get_template("report.html.j2").render(page | own)


def in_order(value: Any) -> Any:
    """Text with the characters that turn its direction written out; anything else as it is."""
    turned = isinstance(value, str) and any(chr(code) in value for code in _TURNS)
    return type(value)(value.translate(_TURNS)) if turned else value


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a page with these and nothing else."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )


def percent(value: float | None) -> str:
    """A share as `99.4 %`; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(estimate: dict[str, Any] | None, scale: str = "percent") -> str:
    """An estimate of metrics.json with its interval: `99.4 % (96.9 to 99.9)`."""
    if estimate is None:
        return "–"
    factor, digits, unit = (100, 1, " %") if scale == "percent" else (1, 3, "")
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    text = f"{value * factor:.{digits}f}{unit}"
    if low is None or high is None:
        return text
    return f"{text} ({low * factor:.{digits}f} to {high * factor:.{digits}f})"


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands set apart; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def p_value(p: float | None) -> str:
    """Four digits, and never a 0 that no test can give."""
    return "< 0.0001" if p is not None and p < 1e-4 else number(p, 4)


def signed(estimate: dict[str, Any], digits: int = 3) -> str:
    """A difference with its sign and interval: `+0.026 (+0.010 to +0.041)`."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if low is None or high is None:
        return f"{value:+.{digits}f}"
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def stacked(text: str) -> Markup:
    """`99.4 % (96.9 to 99.9)` for a cell of a table, the interval in small below the value."""
    value, bracket, ends = text.partition(" (")
    return Markup("{} <small>({}</small>").format(value, ends) if bracket else escape(value)


def level(count: int, total: int) -> int:
    """The shade of a confusion matrix's cell, 0 to 10, by its share of the row."""
    return round(_LEVELS * count / total) if total else 0


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a data URI: base64 has no character that HTML reads as its own."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
