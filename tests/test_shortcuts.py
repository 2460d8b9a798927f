"""Shortcuts: the command, with a model that is known to go by one thing alone."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_evaluate_command import BLOCKED
from test_shortcuts_sources import listed
from tiny_model import model_info

from serve.intervals import Estimate
from serve.model_info import to_metadata
from serve.shortcuts import command
from serve.shortcuts.changes import centre_box
from serve.shortcuts.command import ShortcutsConfig, find_shortcuts
from serve.shortcuts.inputs import read_masks
from serve.shortcuts.results import ClassArea, Performance, above_chance
from serve.shortcuts.samples import list_samples
from shards.codec import encode
from shards.console import UserError
from shards.manifest import Manifest, SplitCounts, load_manifest
from shards.rectangles import read_rectangles
from shards.sample import Sample, SampleMeta
from shards.writer import write_shard

S = 32
LABELS = ("Normal", "COVID-19")


def write_model(path, weights, bias):
    """P(COVID-19) = sigmoid(sum(weights x grey / 255) + bias), P(Normal) = its mirror image."""
    both = np.stack([-weights.ravel(), weights.ravel()], axis=1).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["grey", "white"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 1, S, S])],
        [helper.make_tensor_value_info(x, 1, ["n", 2]) for x in ("logits", "probabilities")],
        [
            numpy_helper.from_array(both, "weights"),
            numpy_helper.from_array(np.array([-bias, bias], np.float32), "bias"),
            numpy_helper.from_array(np.float32(255), "white"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    info = model_info(labels=LABELS, size=S, shorter_side=None)
    helper.set_model_props(model, to_metadata(info))
    onnx.save(model, path)
    return path


def border():
    return ~centre_box((0.1, 0.1, 0.9, 0.9), S)


def write_shards(folder, source="hospital", images=40, dark_border=False, settings=None):
    """COVID-19 is every second image: a brighter border where `dark_border` is false, and nothing
    else tells the classes apart."""
    rng = np.random.default_rng(len(source))
    samples = []
    for i in range(images):
        pixels = rng.integers(90, 130, (2 * S, 3 * S), np.uint8)
        edge = np.ones(pixels.shape, bool)
        edge[S // 4 : -S // 4, S // 4 : -S // 4] = False
        pixels[edge] = 20 if dark_border else (60 + 60 * (i % 2) + rng.integers(-20, 20))
        labels = np.eye(2, dtype=np.int8)[i % 2]
        meta = SampleMeta(
            source, f"folder/{source}-{i}.png", "0" * 64, 6 * S, 4 * S, patient=f"{source}-{i // 2}"
        )
        samples.append(Sample(f"{source}-{i}", encode(pixels, "png"), "png", labels, meta))
    shards = (write_shard(folder / "test" / f"{source}-test-0.tar", "test", samples),)
    counts = SplitCounts(images, dict.fromkeys(LABELS, images // 2))
    manifest = Manifest(
        source, LABELS, True, "png", 1, None, {"test": counts}, {}, settings or {}, shards
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("serve.shortcuts.command.write_figure", lambda *_: None)


@pytest.fixture
def hospital(tmp_path):
    return write_shards(tmp_path / "hospital")


@pytest.fixture
def border_model(tmp_path):
    """A model that looks at the border alone."""
    weights = border() * 20 / border().sum()
    return write_model(tmp_path / "border.onnx", weights, -20 * 90 / 255)


def test_a_model_of_borders_is_found_out(tmp_path, hospital, border_model, capsys):
    found = find_shortcuts(ShortcutsConfig(hospital, tmp_path / "out", model=border_model))
    as_is, black, only = (
        getattr(found.borders, name) for name in ("as_is", "lungs_black", "lungs_only")
    )
    assert as_is.mean_auroc.value > 0.95
    assert black == as_is  # it never looked at the lungs
    assert only.mean_auroc.value == 0.5  # every score is the same
    assert found.borders.area == pytest.approx(centre_box((0.1, 0.1, 0.9, 0.9), S).mean())
    assert found.borders.largest_share == 0.5
    assert "above chance (0.5)" in capsys.readouterr().out
    assert found.omitted == (
        "words covered: no --redact CSV was given",
        "word pasted: no --word was given",
        "source predicted: fewer than two sources, name more data sets with --others",
    )
    content = json.loads((tmp_path / "out" / "shortcuts.json").read_bytes())
    assert content["options"] == []
    assert content["weights_sha256"] == "1" * 64
    assert content["borders"]["lungs_black"]["images"] == 40
    assert (tmp_path / "out" / "borders.svg").is_file()
    assert (tmp_path / "out" / "examples.png").is_file()


@pytest.mark.usefixtures("no_pictures")
def test_a_model_of_the_centre_is_not_accused(tmp_path, hospital):
    weights = ~border() * 20 / (~border()).sum()
    model = write_model(tmp_path / "centre.onnx", weights, -20 * 110 / 255)
    found = find_shortcuts(ShortcutsConfig(hospital, tmp_path / "out", model=model, limit=30))
    assert found.images == 30
    assert found.borders.lungs_black.mean_auroc.value == 0.5
    assert "not told apart from chance" in found.words[0]


def test_words_and_rectangles_change_what_they_must(tmp_path, hospital, border_model):
    table = tmp_path / "words.csv"
    rows = [f"folder/hospital-{i}.png,0,0,{6 * S},{4 * S}" for i in (1, 2)]
    table.write_text("\n".join(["file,x,y,w,h", *rows, "folder/gone.png,0,0,9,9"]))
    config = ShortcutsConfig(
        hospital,
        tmp_path / "out",
        model=border_model,
        redact=table,
        word="IO",
        at="1,1",
        word_height=8,
        on=("hospital-3", "Normal"),
    )
    found = find_shortcuts(config)
    assert found.redaction.covered == 2
    assert found.redaction.flipped == 1  # black all over: image 1 is no longer called COVID-19
    assert found.redaction.classes[1].after == pytest.approx(
        1 / (1 + np.exp(20 * 90 / 255)), rel=1e-3
    )
    assert found.redaction.after.accuracy.value < found.redaction.before.accuracy.value
    assert found.word.images == 21
    assert found.word.classes[1].smallest > 0  # white on the border speaks for COVID-19
    assert found.word.classes[0].change.value == pytest.approx(-found.word.classes[1].change.value)
    assert "1 files of words.csv are not among the scored images" in found.omitted
    lines = (tmp_path / "out" / "word.csv").read_text().splitlines()
    assert lines[0] == "key,before Normal,before COVID-19,after Normal,after COVID-19"
    assert len(lines) == 22
    assert len((tmp_path / "out" / "redaction.csv").read_text().splitlines()) == 3
    find_shortcuts(replace(config, redact=None))
    assert not list((tmp_path / "out").glob("redaction.*"))
    assert (tmp_path / "out" / "word.svg").is_file()


@pytest.mark.usefixtures("no_pictures")
def test_masks_stand_for_the_lungs(tmp_path, hospital, border_model):
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(10):
        grey = np.zeros((50, 50), np.uint8)
        grey[:, 25:] = 1 if i % 2 else 255
        (masks / f"hospital-{i}.png").write_bytes(encode(grey, "png"))
    (masks / "hospital-10.png").write_bytes(encode(np.zeros((50, 50), np.uint8), "png"))
    config = ShortcutsConfig(hospital, tmp_path / "out", model=border_model, masks=masks)
    found = find_shortcuts(config).borders
    assert (found.lungs_black.images, found.without_mask) == (10, 30)
    assert found.area == pytest.approx(0.5, abs=0.02)
    (masks / "hospital-0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"hospital-0\.png: not an image"):
        find_shortcuts(replace(config, out=tmp_path / "again"))
    with pytest.raises(UserError, match=r"no mask in .* is named as an image"):
        find_shortcuts(replace(config, masks=tmp_path / "out"))


def test_a_mask_that_could_be_anothers_is_refused(tmp_path):
    samples = [listed("a", 1), listed("b", 1)]  # both are called 1.png
    for name in ("left/a-1.png", "right/a-1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(encode(np.full((8, 8), 255, np.uint8), "png"))
    with pytest.raises(UserError, match=r"left/a-1\.png and .*right/a-1\.png could both be"):
        read_masks(tmp_path, samples, S)
    (tmp_path / "right/a-1.png").rename(tmp_path / "right/1.png")
    assert list(read_masks(tmp_path, samples, S)) == ["a-1", "b-1"]  # by its key, by its name
    (tmp_path / "left/a-1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png could be the mask of a-1 and of b-1"):
        read_masks(tmp_path, samples, S)


def test_other_data_sets_are_the_other_sources(tmp_path, hospital, border_model):
    other = write_shards(tmp_path / "clinic", "clinic", dark_border=True)
    few = write_shards(tmp_path / "few", "few", images=8)
    config = ShortcutsConfig(
        hospital, tmp_path / "out", model=border_model, others=(other, few), source_images=30
    )
    found = find_shortcuts(config).source
    assert [one.source for one in found.sources] == ["clinic", "hospital"]
    assert [one.images for one in found.sources] == [30, 30]
    assert found.mean_auroc > 0.95
    assert found.confounded == {}
    assert found.omitted == ("few: only 4 patients or images of unknown patients; 10 are needed",)


def test_a_perfect_order_is_above_chance_only_from_enough_images():
    def found(area, low, kinds):
        classes = (ClassArea("a", *kinds, Estimate(area, None, None)),)
        return Performance(sum(kinds), None, Estimate(area, low, None), classes)

    assert above_chance(found(1.0, None, (5, 5)))
    assert not above_chance(found(1.0, None, (1, 20)))
    assert not above_chance(found(0.5, None, (50, 50)))
    assert above_chance(found(0.7, 0.51, (5, 5)))
    assert not above_chance(found(0.7, 0.5, (5, 5)))
    assert not above_chance(Performance(3, None, None, ()))


def test_a_class_that_the_data_set_lacks_leaves_the_calls_exclusive(hospital):
    """As in evaluate: a call is still the largest of all the network's classes."""
    manifest = load_manifest(hospital)
    samples = list(list_samples(hospital, manifest, ["test"]))[:2]
    names, omitted = ("Normal", "Pneumonia", "COVID-19"), []
    truth = command._truth(samples, manifest, names, True, omitted)
    assert (truth.exclusive, truth.targets.tolist()) == (True, [[1, 0, 0], [0, 0, 1]])
    assert omitted == ["labels that hospital lacks: Pneumonia"]
    found = truth.performance(np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]]), np.arange(2), 0)
    assert found.accuracy.value == 0.5
    other = command._truth(samples, manifest, ("Normal", "Pneumonia"), True, omitted)
    assert other.targets.tolist() == [[1, 0], [0, -1]]
    assert omitted[-1] == "accuracy: 1 of 2 images have a class that the network lacks (COVID-19)"
    # Nor of the part that has one: that would be of the positives alone.
    assert other.performance(np.array([[0.4, 0.3]]), np.arange(1), 0).accuracy is None
    assert other.largest_share(np.arange(1)) is None
    alone = command._truth(samples, manifest, names, False, omitted)
    assert (alone.exclusive, alone.targets.tolist()) == (False, [[1, -1, 0], [0, -1, 1]])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": None}, "give either --model"),
        ({"run": Path("run")}, "give either --model"),
        ({"model": None, "run": Path("run")}, "python -m serve export --run run --out run/model"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"split": "val"}, "no split 'val'"),
        ({"word": "SEDUTO", "at": "here"}, "--at is 'here'"),
        ({"word": "SEDUTO"}, "does not fit"),
        ({"word": "I", "at": "1,1", "on": ("nobody",)}, "--on 'nobody' is neither the key"),
        ({"box": "1,1,0,0"}, "--box is '1,1,0,0'"),
        ({"masks": Path("nowhere")}, "no folder nowhere"),
        ({"redact": Path("nowhere.csv")}, "cannot read the table nowhere.csv"),
        ({"others": (Path("nowhere"),)}, "no folder nowhere"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, hospital, border_model, more, message):
    options = {"model": border_model, **more}
    with pytest.raises(UserError, match=message) as caught:
        find_shortcuts(ShortcutsConfig(hospital, tmp_path / "out", **options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "shortcuts.json").exists()


def test_tables_of_rectangles_are_checked(tmp_path, border_model):
    table = tmp_path / "words.csv"
    for text, message in (
        ("a,b\n", "expected: file,x,y,w,h"),
        ("file,x,y,w,h\n", "has no rectangle"),
        ("file,x,y,w,h\na,1,1,0,4\n", "line 2: .*1,1,0,4"),
        ("file,x,y,w,h\na,1,1,nan,4\n", "line 2"),
        ("file,x,y,w,h\na,1\n", "line 2"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            read_rectangles(table)
    table.write_text("file,x,y,w,h\nfolder/hospital-1.png,1,1,4,4\n")
    covered = write_shards(tmp_path / "covered", settings={"redact": {"split": "all"}})
    config = ShortcutsConfig(covered, tmp_path / "out", model=border_model, redact=table)
    with pytest.raises(UserError, match="are covered in the shards already"):
        find_shortcuts(config)


@pytest.mark.soak
def test_it_runs_without_torch(tmp_path, hospital, border_model):
    """scikit-learn imports scipy.stats, which evaluation does without; torch is in neither."""
    other = write_shards(tmp_path / "clinic", "clinic", images=24, dark_border=True)
    line = (
        f"shortcuts --model {border_model} --shards {hospital} --others {other} --limit 4 "
        f"--word I --at 2,2 --out {tmp_path / 'out'}"
    )
    code = BLOCKED.replace(' or name.startswith("scipy.stats")', "").replace(', "scipy.stats"', "")
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "source.png").is_file()
