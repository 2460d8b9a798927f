"""python -m train compare: the table and Figure 1; `make paper`, which ends in it."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from shards.console import UserError
from train import __main__ as command
from train.compare import CompareCommand, compare, draw, phase_rows, run_names
from train.config import check_config, without_skipped
from train.recipes import recipe

ROOT = Path(__file__).resolve().parent.parent
ENDS = (10, 58, 106, 154)  # the paper's Figure 1


def phase(number: int, epochs: int, accuracy: float | None) -> dict:
    test = {"loss": 0.1, "accuracy": accuracy, "auroc_mean": 0.9, "f1": [0.5, None, 1.0]}
    best = {"best_epoch": number, "best_val_loss": 0.5 / number}
    return {"name": f"p{number}", "epochs": epochs, **best, "test": test}


def make_run(folder: Path, name: str, accuracies: tuple[float | None, ...], done: bool = True):
    """A run with the paper's four phases, of which as many are finished as accuracies are given."""
    folder.mkdir()
    stages = [{"name": "covid"}]
    settings = {"recipe": name, "config": {"stages": stages}, "synthetic": True}
    (folder / "settings.json").write_text(json.dumps(settings))
    phases = [
        phase(number, end - start, accuracy)
        for number, (start, end, accuracy) in enumerate(zip((0, *ENDS), ENDS, accuracies), 1)
    ]
    lines = [
        {"stage": "covid", "phase": number, "epoch": epoch, "copies": 100, "seconds": 2.0}
        | ({"energy_j": 3600.0} if name == "network-c" else {})
        for number, start, end in zip((1, 2, 3, 4), (0, *ENDS), ENDS)
        for epoch in range(start + 1, end + 1)
        if number <= len(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (folder / "covid").mkdir()
        (folder / "covid" / "result.json").write_text(json.dumps({"phases": phases}))
    else:
        state = {"position": {"stage": 0, "phases": phases}}
        (folder / "checkpoints" / "000007").mkdir(parents=True)
        (folder / "checkpoints" / "000007" / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def runs(tmp_path) -> tuple[Path, ...]:
    return (
        make_run(tmp_path / "c", "network-c", (0.7, 0.9, 0.95, 0.994)),
        make_run(tmp_path / "e", "network-e", (0.6, 0.8), done=False),
    )


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *words, **options) -> None:
        figures.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return figures


def test_rows_are_the_phases_with_their_cost(runs):
    rows = phase_rows(runs[0], "C")
    assert [row.ends for row in rows] == list(ENDS)
    assert [row.accuracy for row in rows] == [0.7, 0.9, 0.95, 0.994]
    assert [(row.copies, row.seconds) for row in rows[:2]] == [(1000, 20.0), (4800, 96.0)]
    assert rows[0].joules == 36_000
    assert rows[0].f1 == 0.75
    running = phase_rows(runs[1], "E")
    assert [(row.ends, row.accuracy, row.joules) for row in running] == [
        (10, 0.6, None),
        (58, 0.8, None),
    ]


def test_the_figure_has_a_line_per_run_and_a_mark_per_phase(runs, tmp_path, drawn, capsys):
    compare(CompareCommand(runs, tmp_path / "new" / "figure.png"))
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["network-c", "network-e"]
    assert lines[0].get_xdata().tolist() == list(ENDS)
    assert lines[0].get_ydata().tolist() == [0.7, 0.9, 0.95, 0.994]
    assert list(drawn[0].axes[0].get_xticks()) == list(ENDS)
    assert drawn[0].axes[0].get_ylabel() == "test accuracy"
    assert Image.open(tmp_path / "new" / "figure.png").width > 500
    printed = capsys.readouterr().out
    for text in ("network-c", "99.4 %", "kWh", "synthetic data"):
        assert text in printed.replace("\n", " ")


def test_labels_that_do_not_exclude_each_other_are_drawn_by_auroc(tmp_path, drawn):
    run = make_run(tmp_path / "x", "chestxray14-densenet121", (None, None))
    draw(phase_rows(run, "x"), tmp_path / "figure.png")
    assert drawn[0].axes[0].get_ylabel() == "test AUROC, mean"
    assert drawn[0].axes[0].get_lines()[0].get_ydata().tolist() == [0.9, 0.9]


def test_two_runs_of_a_recipe_go_by_their_folders(tmp_path):
    first, second = (make_run(tmp_path / name, "network-c", (0.5,)) for name in ("one", "two"))
    assert run_names((first, second)) == {first: "one", second: "two"}


def test_two_folders_of_one_name_are_two_lines(tmp_path, drawn):
    for name in ("monday", "tuesday"):
        (tmp_path / name).mkdir()
    runs = tuple(
        make_run(tmp_path / day / "c", "network-c", (accuracy,))
        for day, accuracy in (("monday", 0.5), ("tuesday", 0.6))
    )
    assert list(run_names(runs).values()) == [str(run) for run in runs]
    compare(CompareCommand(runs, tmp_path / "figure.png"))
    heights = [line.get_ydata().tolist() for line in drawn[0].axes[0].get_lines()]
    assert heights == [[0.5], [0.6]]


def test_a_name_with_dollars_is_no_formula(tmp_path):
    draw(phase_rows(make_run(tmp_path / "x", "x", (0.5,)), r"5$\new$"), tmp_path / "figure.png")


def test_a_name_that_begins_with_an_underscore_stands_in_the_legend(runs, tmp_path, drawn):
    draw([*phase_rows(runs[0], "_old"), *phase_rows(runs[1], "new")], tmp_path / "figure.png")
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["_old", "new"]


def test_a_name_in_brackets_is_printed_as_it_is(tmp_path, capsys):
    folders = ("[a]", "[red]")
    runs = tuple(make_run(tmp_path / name, "network-c", (0.5,)) for name in folders)
    compare(CompareCommand(runs, tmp_path / "figure.png"))
    printed = capsys.readouterr().out
    assert all(f"│ {name} " in printed for name in folders)


def test_of_a_running_training_a_damaged_checkpoint_is_passed_over(tmp_path, runs, capsys):
    newest = runs[1] / "checkpoints" / "000008"
    newest.mkdir()
    (newest / "state.json").write_text("{")
    assert [row.accuracy for row in phase_rows(runs[1], "E")] == [0.6, 0.8]
    assert "000008/state.json cannot be read" in capsys.readouterr().err


def test_what_cannot_be_compared_is_named(tmp_path, runs):
    with pytest.raises(UserError, match=r"no settings\.json in"):
        compare(CompareCommand((tmp_path,)))
    with pytest.raises(UserError, match="takes at least one run folder"):
        compare(CompareCommand(()))
    for name in ("figure.foo", "figure", "folder.png"):
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"--out .*{name}: .* ends in one of \.png, \.svg"):
            compare(CompareCommand(runs, tmp_path / name))
    with pytest.raises(UserError, match="no phase of stage nope is finished in"):
        compare(CompareCommand(runs, stage="nope"))
    fresh = make_run(tmp_path / "fresh", "network-a", ())
    with pytest.raises(UserError, match="no phase is finished in"):
        compare(CompareCommand((fresh,), tmp_path / "x.png"))
    (runs[0] / "covid" / "result.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        compare(CompareCommand(runs, tmp_path / "x.png"))


def test_a_stages_settings_are_given_by_its_name_too():
    words = ["--shards", "a", "--run", "b", "--stages.covid.phases.1.epochs", "7"]
    parsed = command.parse("network-c", words, command.TrainCommand).config
    assert [phase.epochs for phase in parsed.stages[1].phases] == [10, 7, 48, 48]
    assert parsed.stages[0] == recipe("network-c").stages[0]
    with pytest.raises(UserError, match=r"no setting --stages\.nope\.batch"):
        command.parse("network-c", ["--stages.nope.batch", "7"], command.TrainCommand)


def trainings(*words: str) -> list[str]:
    """What `make` would call of `python -m train`."""
    make = ["make", "-n", "-o", ".venv/.done", *words]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    return [
        line.split(" -m train ")[1] for line in done.stdout.splitlines() if " -m train " in line
    ]


def paper(*words: str) -> list[str]:
    return trainings("paper", "SHARDS=s", "OUT=o", "ARGS=--size 64", *words)


def test_make_paper_trains_all_five_of_one_chestxray14_run():
    lines = paper("COVID_ARGS=--stages.covid.phases.0.epochs 1", "NIH_ARGS=--seed 3")
    assert [line.split()[0] for line in lines] == [
        *("chestxray14-densenet201", "chestxray14-densenet121"),
        *(f"network-{letter}" for letter in "abcde"),
        "compare",
    ]
    for line in lines[:2]:
        assert line.endswith("--size 64 --seed 3")
    for line in lines[3:5]:  # B and C
        assert '--start.kind checkpoint --start.path "o/chestxray14-densenet201"' in line
        assert line.endswith("--skip-stages 1")
    for line in lines[5:7]:
        assert '--start.kind checkpoint --start.path "o/chestxray14-densenet121"' in line
    for line in lines[2:7]:
        name, words = line.split()[0], line.replace('"', "").split()[1:]
        parsed = command.parse(name, words, command.TrainCommand)
        assert parsed.config.size == 64
        assert parsed.config.stages[-1].phases[0].epochs == 1
    chexnet = paper("CHEXNET=x.pth")
    assert "chestxray14-densenet121" not in " ".join(chexnet)
    assert chexnet[-2].endswith('--start.kind chexnet --start.path "x.pth"')


def readme_commands() -> list[list[str]]:
    """The words of every `make paper` and `make train` in train/README.md that stands whole."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "train" / "README.md").read_text())
    found = re.findall(r"^    make ((?:paper|train) .*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("words", readme_commands(), ids=lambda words: " ".join(words)[:40])
def test_the_readmes_commands_are_trainings(words):
    lines = [shlex.split(line) for line in trainings(*words)]
    networks = [line for line in lines if line[0] != "compare"]
    assert (len(networks), len(lines)) in ((1, 1), (6, 7), (7, 8))
    for name, *options in networks:
        parsed = command.parse(name, options, command.TrainCommand).config
        check_config(parsed)
        without_skipped(parsed)


def test_the_table_of_a_to_e_has_its_command():
    (words,) = [words for words in readme_commands() if "ARGS=--size 48" in words]
    epochs = {}
    for line in trainings(*words)[:-1]:
        name, *options = shlex.split(line)
        parsed = command.parse(name, options, command.TrainCommand).config
        phases = without_skipped(parsed).stages[-1].phases
        epochs[name] = (parsed.size, parsed.start.kind, [phase.epochs for phase in phases])
    chest, covid = [1, 6], [1, 3, 1, 1]
    assert epochs == {
        "chestxray14-densenet201": (48, "random", chest),
        "chestxray14-densenet121": (48, "random", chest),
        "network-a": (48, "random", covid),
        **{f"network-{letter}": (48, "checkpoint", covid) for letter in "bcde"},
    }
