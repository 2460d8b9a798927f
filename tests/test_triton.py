"""The Triton repository, against the schema that tritonclient carries."""

import pytest
from tiny_model import LABELS, model_info

from serve.triton import config_text, write_repository
from shards.console import UserError

OUTPUTS = {"logits": (3,), "probabilities": (3,), "cam": (3, -1, -1)}


def parse(text: str):
    """The text as Triton's own message; ParseError for any field that the schema lacks."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig()), schema


def test_the_config_is_what_tritons_schema_says():
    found, schema = parse(config_text("c-int8", model_info(), OUTPUTS))
    assert (found.name, found.backend) == ("c-int8", "onnxruntime")
    assert found.default_model_filename == "model.onnx"
    assert found.max_batch_size == 64
    (images,) = found.input
    assert (images.name, images.data_type) == ("images", schema.TYPE_UINT8)
    assert list(images.dims) == [1, 16, 16]
    assert {o.name: (o.data_type, tuple(o.dims)) for o in found.output} == {
        name: (schema.TYPE_FP32, shape) for name, shape in OUTPUTS.items()
    }
    assert [o.label_filename for o in found.output] == ["", "labels.txt", ""]
    assert max(found.dynamic_batching.preferred_batch_size) <= found.max_batch_size
    assert found.dynamic_batching.max_queue_delay_microseconds > 0
    (group,) = found.instance_group
    assert (group.count, group.kind) == (1, schema.ModelInstanceGroup.KIND_AUTO)


def test_text_that_could_end_a_string_does_not():
    name = 'a"\n}\\ ü'
    found, _ = parse(config_text(name, model_info(), {name: (3,)}))
    assert (found.name, found.output[0].name) == (name, name)


def test_the_repository_is_laid_out_as_triton_reads_it(tmp_path):
    (tmp_path / "c.onnx").write_bytes(b"weights")
    info = model_info(labels=("No\nFinding", *LABELS))
    folder = write_repository(tmp_path / "repository", "c", tmp_path / "c.onnx", info, OUTPUTS)
    assert folder == tmp_path / "repository" / "c"
    assert (folder / "1" / "model.onnx").read_bytes() == b"weights"
    assert (folder / "labels.txt").read_text().splitlines() == ["No Finding", *LABELS]
    assert {p.name for p in folder.iterdir()} == {"1", "config.pbtxt", "labels.txt"}


@pytest.mark.parametrize("name", ["a b", "..", "a/b", "", ".hidden"])
def test_names_that_are_no_model_names(tmp_path, name):
    with pytest.raises(UserError, match="would be called"):
        write_repository(tmp_path, name, tmp_path / "c.onnx", model_info(), OUTPUTS)
    assert list(tmp_path.iterdir()) == []
