"""shards.console: what is wrong with a command line is said in one line that names the way out."""

import errno
import re
from collections.abc import Callable

import pytest

from bench.__main__ import main as bench
from ingest.__main__ import _parse
from shards.__main__ import main as shards
from shards.console import UserError, run
from train.__main__ import TrainCommand, parse

OUT = ["--out", "out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dicom", "--src", "x", *OUT],
            "Missing from python -m ingest dicom: --table PATH --key-file PATH; --help tells what "
            "there is",
        ),
        (
            ["chestxray14", "--srcc", "x", *OUT],
            "Missing from python -m ingest chestxray14: --src PATH; Unrecognized options: --srcc "
            "x; --help tells what there is",
        ),
        (
            ["chestxray14", "--src", "x", *OUT, "--shorter-sid", "3"],
            "Unrecognized options: --shorter-sid, 3; Perhaps you meant: --shorter-side {None}|INT; "
            "--help tells what there is",
        ),
    ],
)
def test_options(arguments: list[str], message: str):
    with pytest.raises(UserError) as caught:
        _parse(arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("main", "there"),
    [
        (lambda: _parse(["chestxray", "--src", "x"]), "chestxray14, covid-radiography, "),
        (shards, "verify, stats, "),
        (bench, "ingest, input, "),
    ],
)
def test_a_word_that_is_no_command(
    main: Callable[[], None], there: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["program", "chestxray", "--src", "x"])
    with pytest.raises(UserError, match=f"^no command 'chestxray'; there are: {there}"):
        main()


def test_a_file_that_the_disk_does_not_hold(capsys: pytest.CaptureFixture[str]):
    def write() -> None:
        raise OSError(errno.EFBIG, "File too large", "out/a.tar")

    with pytest.raises(SystemExit) as stop:
        run(write)
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        "error: File too large (out/a.tar); mend that, and the same command goes on\n"
    )


def test_each_setting_of_a_training_is_explained(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("network-c", ["--help"], TrainCommand)
    own = capsys.readouterr().out.partition("stages.0 options")[0]  # a stage's stand in one text
    assert re.search(r"--size INT.*\n[│ ]+Side of the network's input in pixels", own)
    assert not re.findall(r"--.*\n[│ ]+\(default", own)
