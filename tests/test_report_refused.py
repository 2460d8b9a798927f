"""serve.report: requests and files that are refused, in one line that names them."""

import pytest
from report_runs import make_dataset, make_run

from serve.report import ReportConfig, write_report
from shards.console import UserError


@pytest.fixture
def run(tmp_path):
    make_dataset(tmp_path / "shards" / "toy")
    return make_run(tmp_path / "run", tmp_path / "shards")


@pytest.mark.parametrize(
    ("runs", "more", "message"),
    [
        (0, {}, "0 runs named"),
        (3, {}, "3 runs named"),
        (2, {"scores": 1}, "--scores is given 1 times and --run 2 times"),
        (1, {"faithfulness": 2}, "--faithfulness is given 2 times"),
    ],
)
def test_numbers_of_folders_that_do_not_fit_are_refused(run, runs, more, message):
    folders = {name: (run,) * count for name, count in more.items()}
    with pytest.raises(UserError, match=message):
        write_report(ReportConfig((run,) * runs, **folders))


def test_what_is_no_run_or_no_page_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"no settings\.json"):
        write_report(ReportConfig((tmp_path,)))
    with pytest.raises(UserError, match="is a folder"):
        write_report(ReportConfig((run,), tmp_path))
    with pytest.raises(UserError, match="--gallery is -1"):
        write_report(ReportConfig((run,), gallery=-1))
    with pytest.raises(UserError, match="give 0 to 1000"):
        write_report(ReportConfig((run,), gallery=1001))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", "{", r"metrics\.jsonl is damaged"),
        ("evaluation/metrics.json", '{"format_version": 1}', "of format 1, this program reads 2"),
        ("evaluation/metrics.json", '{"format_version": 2}', "lacks a field"),
        ("features/features.json", '{"format_version": 1}', "lacks a field"),
        ("shortcuts/shortcuts.json", '{"format_version": 1}', "lacks a field"),
        ("shortcuts/shortcuts.json", "[", "is damaged"),
        ("shortcuts/shortcuts.json", "[1]", "a list where an object belongs"),
        ("settings.json", '{"shards": "nowhere"}', "'config'"),
        ("settings.json", '{"shards": "nowhere", "config": {"stages": []}}', "lacks a field"),
        ("settings.json", '{"shards": "x", "config": {"stages": [{"dataset": {}}]}}', "lacks"),
        ("metrics.jsonl", '{"stage": "covid"}\n', "lacks a field"),
        ("metrics.jsonl", "[1]\n", "lacks a field"),
    ],
)
def test_damaged_and_other_files_are_named_not_a_traceback(run, name, content, message):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(ReportConfig((run,)))
