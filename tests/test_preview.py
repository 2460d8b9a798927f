"""train.preview: the sheet shows the network's own input, and says what was done to each copy."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from all_copies import all_copies
from PIL import Image

from shards.console import RunFailed, UserError
from shards.index import index_tar
from train.__main__ import main
from train.augment import EIGHT, Augment, Varied, unchanged
from train.config import Stage
from train.expand import Expander
from train.preview import PreviewCommand, _cells, describe, preview
from train.recipes import recipe
from train.store import Store
from train.weights import StartConfig

SIZE = 64
EVERYTHING = Augment(
    mirror=1.0,
    brightness=0.5,
    contrast=0.5,
    max_rotation_deg=20,
    max_shear_deg=5,
    scale=(0.9, 0.95),
    max_shift=0.1,
    crop_area=(0.5, 0.6),
    elastic_px=6,
)


def test_a_sheet_of_every_stage(tiny_shards, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    preview(PreviewCommand(tiny_shards, recipe("demo"), out, stage="covid"))
    assert "3 classes" in capsys.readouterr().out
    sheet = Image.open(out)
    sheet.load()
    assert sheet.width == 12 * 156 + 6  # 72 copies: 6 rows of 12
    # a title and 8, 8 and 72 copies, with three lines of text under each
    assert sheet.height == 3 * 30 + (1 + 1 + 6) * (150 + 3 * 13 + 6)
    preview(PreviewCommand(tiny_shards, recipe("demo"), out, stage="covid"))
    assert Image.open(out).tobytes() == sheet.tobytes()
    preview(PreviewCommand(tiny_shards, recipe("demo"), out))
    assert Image.open(out).height > sheet.height


def test_cells_are_the_copies_and_their_words():
    image = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE), np.uint8)
    store = Store(("k",), torch.from_numpy(image), np.ones((1, 1), np.int8))
    cells = list(_cells(store, Expander({0: EIGHT}, Augment(), 0, SIZE), epoch=3))
    assert len(cells) == 8
    first, words = cells[0]
    assert np.array_equal(np.asarray(first), image[0])
    assert words == ["as it is"]
    mirrored, words = cells[1]
    assert np.array_equal(np.asarray(mirrored), image[0, :, ::-1])
    assert words == ["mirror"]
    assert cells[7][1][0].startswith("rotation ")
    assert cells[7][1][1].startswith("dx ")


def test_every_kind_of_change_has_its_words():
    words = np.zeros((1, 2), np.uint32)
    parameters = all_copies(words, Varied(2, EVERYTHING), seed=0, epoch=0, size=224)
    assert describe(parameters, 0, 224) == ["as it is"]
    starts = [line.split()[0] for line in describe(parameters, 1, 224)]
    assert starts == ["rotation", "dx", "mirror", "scale", "bright", "crop", "elastic,"]
    turned = replace(unchanged(1), rotation_deg=np.array([-12.34]))
    assert describe(turned, 0, 224) == ["rotation -12.3°"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "nope"}, r"no stage 'nope' in demo; it has: chestxray14, covid"),
        ({"epoch": -1}, "--epoch -1; epochs count from 0"),
        ({"epoch": 5_000_000_000}, "--epoch 5000000000; epochs count from 0, to 1000000000"),
        ({"out": "absent/sheet.png"}, "it must name a file in a folder that is there"),
        ({"shards": "absent"}, "no folder"),
    ],
)
def test_wrong_requests_are_refused(changes, message, tiny_shards, tmp_path):
    paths = {name: tmp_path / changes[name] for name in ("out", "shards") if name in changes}
    command = PreviewCommand(tiny_shards, recipe("demo"), tmp_path / "sheet.png", stage="covid")
    with pytest.raises(UserError, match=message):
        preview(replace(command, **(changes | paths)))


def test_skipped_stages_are_not_drawn(tiny_shards, tmp_path):
    start = StartConfig("checkpoint", tmp_path)
    config = replace(recipe("demo"), skip_stages=1, start=start)
    with pytest.raises(UserError, match="no stage 'chestxray14' in demo; it has: covid"):
        preview(PreviewCommand(tiny_shards, config, tmp_path / "sheet.png", stage="chestxray14"))


def test_a_stage_without_any_image_of_a_class_is_refused(tiny_shards, tmp_path):
    config = recipe("demo")
    stage: Stage = replace(config.stages[0], labels=("Hernia",))
    config = replace(config, stages=(stage,))
    with pytest.raises(UserError, match="no class has a training image"):
        preview(PreviewCommand(tiny_shards, config, tmp_path / "sheet.png"))


def test_the_command_line(tiny_shards, tmp_path, monkeypatch, capsys):
    out = tmp_path / "sheet.png"
    words = ["preview", "demo", "--shards", str(tiny_shards), "--out", str(out), "--stage", "covid"]
    monkeypatch.setattr("sys.argv", ["train", *words, "--size", "32"])
    main()
    assert out.is_file()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "preview", "demo", "--shards", str(tiny_shards)])
    main()
    assert Image.open("preview.png").height > 100
    assert f"{tmp_path / 'preview.png'}: " in capsys.readouterr().out
    for wrong, message in (
        (["preview"], "preview takes one recipe first; there are: demo, "),
        ([*words, "--nope", "1"], "no setting --nope in recipe demo; .* --shards, --out, "),
        ([*words, "--stages.0.augment.mirror", "2"], "augment: mirror is 2.0; it must be 0 to 1"),
    ):
        monkeypatch.setattr("sys.argv", ["train", *wrong])
        with pytest.raises(UserError, match=message):
            main()


def test_an_image_that_does_not_decode_is_one_line(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards / "covid-radiography", tmp_path / "covid-radiography")
    for shard in folder.glob("train/*.tar"):
        data = bytearray(shard.read_bytes())
        for image, *_ in index_tar(shard):
            data[image.offset : image.offset + image.size] = bytes(image.size)
        shard.write_bytes(data)
    with pytest.raises(RunFailed, match="python -m shards verify"):
        preview(PreviewCommand(tmp_path, recipe("demo"), tmp_path / "sheet.png", stage="covid"))
