"""serve.inspect: what a stranger's file says, and files that are none."""

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_model import write_model

from serve.inspect import describe
from shards.console import UserError


def test_inspect_says_what_a_strangers_model_leaves_out(tmp_path):
    path = tmp_path / "foreign.onnx"
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["output"])], "g", [image], [out]
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, {"author": "some\x1b[31mone\nelse"})
    onnx.save(model, path)
    rows = describe(path)
    missing = " ".join(value for name, value in rows if name == "missing")
    assert "no cxrstack.* metadata" in missing
    assert "no uint8 input 'images'" in missing
    assert "no output 'probabilities'" in missing
    assert ("input", "input float (n, 3, 8, 8)") in rows
    assert ("metadata author", "some\\x1b[31mone else") in rows
    write_model(path, metadata={})
    assert [value for name, value in describe(path) if name == "missing"][1:] == []


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x07", bytes(100)])
def test_inspect_of_what_is_no_model(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not an ONNX model"):
        describe(path)
    with pytest.raises(UserError, match="no file"):
        describe(tmp_path / "none.onnx")


def test_inspect_of_a_type_that_is_not_known(tmp_path):
    model = onnx.load(write_model(tmp_path / "m.onnx"))
    model.graph.input[0].type.tensor_type.elem_type = 99
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert ("input", "images of unknown type 99 (n, 1, 16, 16)") in describe(tmp_path / "m.onnx")
