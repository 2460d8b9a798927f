"""serve.report_page: numbers as text, data in the page, and the files that it is made of."""

import json
import tomllib
from fnmatch import fnmatch

import pytest

from serve.report_charts import embed
from serve.report_page import FOLDER, interval, level, p_value, percent, signed, stacked


def test_embedded_json_cannot_end_its_element():
    text = embed({"a": "</script><!-- & --> \u2028", "b": [0.1, None]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & --> \u2028", "b": [0.1, None]}
    with pytest.raises(ValueError):
        embed(float("nan"))


def test_the_pages_parts_are_installed_with_the_package():
    table = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    patterns = table["tool"]["setuptools"]["package-data"]["serve"]
    parts = [path.name for path in FOLDER.glob("report*") if path.suffix != ".py"]
    assert len(parts) > 10
    assert [name for name in parts if not any(fnmatch(name, p) for p in patterns)] == []


def test_numbers_as_text():
    assert percent(None) == "–"
    assert interval(None) == "–"
    assert interval({"value": 0.5, "low": 0.25, "high": 0.75}) == "50.0 % (25.0 to 75.0)"
    assert interval({"value": 1.0, "low": None, "high": None}, "area") == "1.000"
    assert signed({"value": -0.5, "low": None, "high": None}) == "-0.500"
    assert [p_value(p) for p in (None, 1.0, 1e-4, 9e-5, 0.0)] == [
        *("–", "1.0000", "0.0001"),
        *("< 0.0001", "< 0.0001"),
    ]
    assert stacked("50.0 % (25.0 to 75.0)") == "50.0 % <small>(25.0 to 75.0)</small>"
    assert stacked("<b>") == "&lt;b&gt;"
    assert [level(count, 8) for count in (0, 4, 8)] == [0, 5, 10]
    assert level(0, 0) == 0
