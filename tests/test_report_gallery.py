"""The report's gallery: which images, whose maps, and how large the pictures are."""

import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from report_runs import LABELS, make_dataset, make_run, write_json
from tiny_run import small_densenet, stand_in

from ingest.radiograph import draw
from serve import report_run
from serve.gallery import (
    Gallery,
    Picture,
    _picture,
    choose,
    choose_with,
    make_gallery,
    read_images,
    without_lost,
    wrong_calls,
)
from serve.predictions import Joined, PredictionTable
from serve.report import ReportConfig, write_report
from serve.report_maps import NAME, StoredMap, image_webp, load_layer, stored_maps, to_layer
from serve.split_images import SplitImages
from shards.console import RunFailed, UserError
from shards.reader import read_index


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "shards" / "toy"
    return folder, make_dataset(folder)


def join_arrays(truth, probabilities):
    keys = tuple(f"image-{i}" for i in range(len(truth)))
    return Joined(keys, LABELS, True, truth, probabilities, None, {}, True, (None,) * len(keys))


def test_an_image_of_a_class_that_the_network_lacks_is_shown_with_it():
    """Called the label that it has not: wrong. Called one that its data set lacks: not known."""
    truth = np.array([[0, -1, -1], [0, -1, -1]], np.int8)
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    joined = replace(join_arrays(truth, probabilities), outside=("Other", "Other"))
    one, two = (_picture(joined, row, np.zeros((8, 8), np.uint8), ()) for row in range(2))
    assert one.truth == two.truth == ("Other",)
    assert (one.wrong, two.wrong) == (True, None)
    assert wrong_calls(truth, probabilities).tolist() == [True, False]


def decode(webp):
    return cv2.imdecode(np.frombuffer(webp, np.uint8), cv2.IMREAD_UNCHANGED)


def test_choose_takes_wrong_calls_first_then_each_label_in_turn():
    truth = np.eye(3, dtype=np.int8)[[0, 0, 0, 1, 1, 2, 2, 2]]
    probabilities = np.where(truth == 1, 0.8, 0.1)
    probabilities[1] = (0.2, 0.6, 0.1)  # wrong
    probabilities[5] = (0.9, 0.1, 0.2)  # wrong, and surer
    assert wrong_calls(truth, probabilities).nonzero()[0].tolist() == [1, 5]
    assert choose(truth, probabilities, 6).tolist() == [5, 1, 0, 3, 6, 2]
    assert choose(truth, probabilities, 99).tolist() == [5, 1, 0, 3, 6, 2, 4, 7]
    assert choose(truth, probabilities, 0).tolist() == []
    assert choose(truth, probabilities, 2).tolist() == [5, 0]
    # Where there are no right calls, wrong ones take their place.
    assert choose(truth[[1, 5]], probabilities[[1, 5]], 2).tolist() == [1, 0]
    explained = np.isin(np.arange(8), [1, 7])
    assert choose_with(truth, probabilities, explained, 5).tolist() == [5, 1, 7, 0, 3]
    # Of more than fit, those that would be chosen without maps.
    assert choose_with(truth, probabilities, np.ones(8, bool), 6).tolist() == [5, 1, 0, 3, 6, 2]
    assert choose_with(truth, probabilities, np.arange(8) > 2, 3).tolist() == [5, 3, 6]
    assert choose_with(truth, probabilities, np.zeros(8, bool), 2).tolist() == [5, 0]


def test_unknown_truth_is_no_wrong_call():
    truth = np.array([[-1, 0], [0, 1], [0, -1]], np.int8)
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert wrong_calls(truth, probabilities).tolist() == [False, True, True]


def test_read_images_by_key_from_several_shards(dataset):
    folder, manifest = dataset
    keys = ["image-5", "image-1", "absent"]
    found, damaged = read_images(folder, manifest, "test", keys, 32)
    assert damaged == {}
    assert {key: (image.shape, int(image[0, 0])) for key, image in found.items()} == {
        "image-1": ((32, 32), 10),
        "image-5": ((32, 32), 50),
    }


def damage_image_4(folder):
    path = folder / "test/toy-test-1.tar"
    components = next(c for c in read_index(path) if c[0].key == "image-4")
    data = bytearray(path.read_bytes())
    data[components[0].offset + 20 : components[0].offset + components[0].size] = bytes(
        components[0].size - 20
    )
    path.write_bytes(data)


def test_an_image_that_does_not_decode_is_one_line_of_the_gallery_and_of_the_export(dataset):
    folder, manifest = dataset
    damage_image_4(folder)
    told = r"toy-test-1.tar: sample image-4 .*python -m shards verify"
    found, damaged = read_images(folder, manifest, "test", ["image-4", "image-3"], 32)
    assert list(found) == ["image-3"]
    assert re.search(told, damaged["image-4"])
    with pytest.raises(RunFailed, match=told):
        list(SplitImages(folder, manifest, 32, manifest.labels).batches("test"))


def test_pictures_have_the_calls_map_and_stored_ones(dataset, tmp_path, monkeypatch):
    folder, manifest = dataset
    stand_in(monkeypatch, small_densenet(), labels=LABELS, size=64, weights_sha256="w")
    truth = np.eye(3, dtype=np.int8)[np.arange(6) % 3]
    probabilities = np.where(truth == 1, 0.8, 0.1)
    probabilities[4] = (0.9, 0.1, 0.1)
    probabilities[0] = np.nan  # could not be scored
    explained = tmp_path / "explain"
    explain(explained, "image-5")
    joined = join_arrays(truth, probabilities)
    found = make_gallery(folder, folder, manifest, "test", joined, 4, explained)
    assert found.wrong == 1
    assert [p.key for p in found.pictures] == ["image-4", "image-5", "image-3", "image-1"]
    assert [p.wrong for p in found.pictures] == [True, False, False, False]
    assert found.pictures[0].truth == ("Viral $Pneumonia",)
    assert found.pictures[0].called == "Normal"
    methods = [[(layer.method, layer.label) for layer in p.layers] for p in found.pictures]
    assert methods[0] == [("gradcam", "Normal")]
    assert methods[1] == [("gradcam", LABELS[2]), ("lrp", "Normal")]
    assert decode(found.pictures[0].image).shape[:2] == (64, 64)


def test_a_truth_that_nobody_knows_is_not_none_of_the_labels(dataset, tmp_path, monkeypatch):
    folder, manifest = dataset
    stand_in(monkeypatch, small_densenet(), labels=LABELS, size=64, weights_sha256="w")
    truth = np.zeros((6, 3), np.int8)
    truth[3], truth[4], truth[5] = (-1, -1, -1), (0, -1, 0), (1, -1, 0)
    explained = tmp_path / "explain"
    explain(explained, "image-3")
    joined = join_arrays(truth, np.tile([0.8, 0.1, 0.1], (6, 1)))
    found = make_gallery(folder, folder, manifest, "test", joined, 6, explained)
    known = {one.key: (one.truth, one.wrong) for one in found.pictures}
    assert known["image-0"] == ((), True)
    assert known["image-3"] == (None, None)
    assert known["image-4"] == (None, True)
    assert known["image-5"] == (("Normal",), False)


def test_what_cannot_be_read_is_named_and_the_others_are_shown(dataset, tmp_path, monkeypatch):
    folder, manifest = dataset
    stand_in(monkeypatch, small_densenet(), labels=LABELS, size=64, weights_sha256="w")
    truth = np.eye(3, dtype=np.int8)[np.arange(6) % 3]
    joined = join_arrays(truth, np.where(truth == 1, 0.8, 0.1))
    damage_image_4(folder)
    explain(tmp_path, "image-5", heat=np.ones((8, 8), np.float32))
    found = make_gallery(folder, folder, manifest, "test", joined, 6, tmp_path)
    assert {one.key for one in found.pictures} == {f"image-{i}" for i in (0, 1, 2, 3, 5)}
    assert [len(one.layers) for one in found.pictures] == [1] * 5
    image, heat = found.omitted
    assert "image-4 is not shown" in image
    assert "python -m shards verify" in image
    assert "image-5 lacks a map of lrp" in heat
    assert "explain again" in heat


def test_a_lost_shard_takes_its_own_images_alone(dataset, tmp_path, monkeypatch):
    folder, manifest = dataset
    assert without_lost(folder, manifest, "test") == (manifest, [])
    stand_in(monkeypatch, small_densenet(), labels=LABELS, size=64, weights_sha256="w")
    truth = np.eye(3, dtype=np.int8)[np.arange(6) % 3]
    joined = join_arrays(truth, np.where(truth == 1, 0.8, 0.1))
    table = PredictionTable(joined.keys, LABELS, joined.probabilities, (None,) * 6)
    monkeypatch.setattr(report_run, "read_predictions", lambda _: table)
    write_json(tmp_path / "scores.json", {})
    folders = report_run.Folders(*[tmp_path] * 8)
    (folder / "test/toy-test-0.tar").unlink()
    found, lines = report_run._gallery(folders, folder, 6, report_run.Part({}))
    assert {one.key for one in found.pictures} == {"image-3", "image-4", "image-5"}
    assert lines[0] == (
        f"3 of 6 images cannot be shown: {folder / 'test/toy-test-0.tar'} is missing."
    )
    (folder / "test/toy-test-1.idx").unlink()
    found, lines = report_run._gallery(folders, folder, 6, report_run.Part({}))
    assert found is None
    assert len(lines) == 1
    assert lines[0].startswith("6 of 6 images cannot be shown:")
    assert lines[0].endswith("is missing (the first of 2 lost shards).")


def test_a_gallery_without_pictures_says_why(dataset, tmp_path, monkeypatch):
    write_json(tmp_path / "scores.json", {})
    for name in ("read_predictions", "join"):
        monkeypatch.setattr(report_run, name, lambda *_: None)
    folders = report_run.Folders(*[tmp_path] * 8)
    for omitted, told in (((), ["No images: there is none"]), (("image-4 is gone.",), ["image-4"])):
        made = Gallery(LABELS, [], 0, omitted)
        monkeypatch.setattr(report_run, "make_gallery", lambda *_, made=made: made)
        _, lines = report_run._gallery(folders, dataset[0], 6, report_run.Part({}))
        assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told


def test_a_stored_grad_cam_of_the_call_is_not_made_again(dataset, tmp_path, monkeypatch):
    folder, manifest = dataset
    stand_in(monkeypatch, small_densenet(), labels=LABELS, size=64, weights_sha256="w")
    truth = np.eye(3, dtype=np.int8)[np.arange(6) % 3]
    joined = join_arrays(truth, np.where(truth == 1, 0.8, 0.1))
    heat = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    kept = {}
    for label in (LABELS[2], LABELS[0]):  # of image-5's call, and of another label
        explain(tmp_path, "image-5", heat=heat, method="gradcam", label=label)
        found = make_gallery(folder, folder, manifest, "test", joined, 6, tmp_path)
        assert [len(one.layers) for one in found.pictures] == [1] * 6
        kept[label] = next(one for one in found.pictures if one.key == "image-5").layers[0]
    assert kept[LABELS[2]] == to_layer("gradcam", LABELS[2], heat)
    assert kept[LABELS[0]].label == LABELS[2]
    assert kept[LABELS[0]].webp != kept[LABELS[2]].webp


def explain(folder, key, weights="w", map_name="one.npy", heat=None, method="lrp", label="Normal"):
    """What serve explain leaves."""
    item = {"key": key, "method": method, "label": label, "map": map_name}
    write_json(folder / NAME, {"weights_sha256": weights, "items": [item]})
    np.save(folder / "one.npy", np.ones((64, 64), np.float32) if heat is None else heat)


def test_stored_maps_of_another_network_or_damaged_are_refused(tmp_path):
    explain(tmp_path, "a")
    assert list(stored_maps(tmp_path, "w")) == ["a"]
    with pytest.raises(UserError, match="another network"):
        stored_maps(tmp_path, "x")
    (tmp_path / NAME).write_text(json.dumps({"weights_sha256": "w", "items": [{"key": "a"}]}))
    with pytest.raises(UserError, match="is damaged"):
        stored_maps(tmp_path, "w")


def test_a_stored_maps_name_stays_in_its_folder(tmp_path):
    explain(tmp_path / "in", "a", map_name="../../one.npy")
    assert stored_maps(tmp_path / "in", "w")["a"][0].path == tmp_path / "in" / "one.npy"


@pytest.mark.parametrize(
    "heat",
    [
        np.ones((32, 32), np.float32),
        np.full((64, 64), np.nan, np.float32),
        np.ones((2000, 2000), np.float32),
        np.array([{}], object),
        np.zeros((64, 64), "U3"),
    ],
)
def test_files_that_are_no_map_are_refused(tmp_path, heat):
    np.save(tmp_path / "one.npy", heat)
    with pytest.raises(UserError, match="cannot be used"):
        load_layer(StoredMap("lrp", "a", tmp_path / "one.npy"), 64)


def test_layers_have_the_colours_that_they_say():
    heat = np.zeros((64, 64), np.float32)
    heat[:32], heat[40:] = 2.0, -1.0
    pixels = decode(to_layer("lrp", "a", heat).webp).astype(int)
    assert pixels.shape == (64, 64, 4)
    red, nothing, blue = pixels[16, 32], pixels[36, 32], pixels[52, 32]
    assert red[2] > 200 > 60 > red[0]
    assert red[3] == 255
    assert nothing[3] < 10
    assert blue[0] > 200 > 60 > blue[2]
    assert abs(blue[3] - 128) < 3
    plain = decode(to_layer("gradcam", "a", np.abs(heat) / 2).webp).astype(int)
    assert plain.shape == (32, 32, 3)
    assert plain[8, 16, 2] > 100 > plain[8, 16, 0]  # JET's red


def test_two_hundred_images_stay_below_15_megabytes(tmp_path, monkeypatch):
    make_dataset(tmp_path / "shards" / "toy")
    run = make_run(tmp_path / "run", tmp_path / "shards")
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(8):
        image = draw(i, (), size=224)
        image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        smooth = cv2.resize(rng.random((7, 7), np.float32), (224, 224))
        rough = rng.normal(size=(224, 224)).astype(np.float32) * smooth
        layers = (to_layer("gradcam", "Normal", smooth), to_layer("lrp", "Normal", rough))
        one = Picture(f"i{i}", ("Normal",), "Normal", 0.5, False, image_webp(image), layers)
        pictures.append(one)
    gallery = Gallery(LABELS, pictures * 25, 0)
    monkeypatch.setattr(report_run, "_gallery", lambda *_: (gallery, []))
    page = write_report(ReportConfig((run,)))
    assert page.read_text().count('class="tile') == 200
    assert page.stat().st_size < 15e6
