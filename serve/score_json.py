"""The JSON files of a folder of scores: read and checked against what they must hold, compared."""

import json
from pathlib import Path
from typing import Any

from shards.console import UserError

# What a value must be: one of some types; a list of one shape; an object with at least these fields
# (but for those with a `?`), each of its shape, or, under `...`, with any fields of one shape.
Shape = tuple[type, ...] | list[Any] | dict[Any, Any]

_TEXT, _TEXT_OR_NULL = (str,), (str, type(None))
_COUNT, _NUMBER, _FLAG = (int,), (int, float), (bool,)
_ARCHIVE = {
    **dict.fromkeys(("bytes", "members", "rows", "errors"), _COUNT),
    **{"name": _TEXT, "damage": _TEXT_OR_NULL, "skipped": {...: _COUNT}},
}
SUMMARY: Shape = {
    **dict.fromkeys(("model", "model_sha256", "provider"), _TEXT),
    **dict.fromkeys(("weights_sha256?", "precision?", "operating_point?"), _TEXT_OR_NULL),
    **dict.fromkeys(("rows", "errors"), _COUNT),
    **dict.fromkeys(("seconds", "img_s"), _NUMBER),
    **dict.fromkeys(("exclusive", "synthetic"), _FLAG),
    **{"labels": [_TEXT], "archives": [_ARCHIVE], "options?": [_TEXT]},
}
REQUEST: Shape = {
    **{"provider": _TEXT, "keep_names": _FLAG, "inputs": [_TEXT], "archives": [{}]},
    "depth?": (int, type(None)),
}
END = {"inputs": _COUNT, "skipped": {...: _COUNT}, "damage": _TEXT_OR_NULL, "rests": _COUNT}

_SHOWN = 120  # characters of a value in a message


def load(path: Path, shape: Shape, way_out: str) -> dict[str, Any]:
    """The object in a file. UserError, which ends in `way_out`, when it is damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        # Text that is none: half a surrogate pair. Those of a file's name keep its bytes.
        kept = "surrogateescape" if shape is REQUEST else "strict"
        json.dumps(found, ensure_ascii=False).encode(errors=kept)
        problem = _misfit(found, shape, path.stem)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise UserError(f"{path} is damaged ({problem}); {way_out}")
    return found


def _misfit(value: Any, shape: Shape, name: str) -> str | None:
    """What does not fit; None when all does."""
    types = shape if isinstance(shape, tuple) else (type(shape),)
    if type(value) not in types:  # True is an int too
        return f"{name} is {_cut(json.dumps(value), 0)}"
    inner: list[tuple[Any, Shape, str]] = []
    if isinstance(shape, list):
        inner = [(one, shape[0], f"{name}[{i}]") for i, one in enumerate(value)]
    elif isinstance(shape, dict) and ... in shape:
        inner = [(one, shape[...], f"{name}.{field}") for field, one in value.items()]
    elif isinstance(shape, dict):
        for key, of in shape.items():
            field = key.rstrip("?")
            if field in value:
                inner.append((value[field], of, f"{name}.{field}"))
            elif field == key:
                return f"{name} lacks {field}"
    return next(filter(None, (_misfit(*one) for one in inner)), None)


def first_difference(old: Any, new: Any, name: str) -> str:
    """Where two unequal JSON values differ first: `name was ..., now ...`."""
    if isinstance(old, dict) and isinstance(new, dict):
        field = next(f for f in sorted(old.keys() | new.keys()) if old.get(f) != new.get(f))
        return first_difference(old.get(field), new.get(field), f"{name}.{field}")
    if isinstance(old, list) and isinstance(new, list):
        pairs = enumerate(zip(old, new))
        place = next((i for i, (one, other) in pairs if one != other), None)
        if place is not None:
            return first_difference(old[place], new[place], f"{name}[{place}]")
        return f"{name} was {len(old)} long, now {len(new)}"
    was, now = json.dumps(old), json.dumps(new)
    start = 0
    if max(len(was), len(now)) > _SHOWN:
        pairs = enumerate(zip(was, now))
        start = max(0, next((i for i, (a, b) in pairs if a != b), 0) - _SHOWN // 2)
    return f"{name} was {_cut(was, start)}, now {_cut(now, start)}"


def _cut(text: str, start: int) -> str:
    shown = text[start : start + _SHOWN]
    return f"{'...' * bool(start)}{shown}{'...' * (start + _SHOWN < len(text))}"
