"""train.precision: what a GPU may round, and what making a Precision leaves as it is."""

import pytest
import torch

from shards.console import UserError
from train.precision import Precision, best_precision, set_cuda

GPU = torch.device("cuda")


def flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.fixture(autouse=True)
def _as_before():
    products, convolutions, tuned = flags()
    yield
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cudnn.benchmark = tuned


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("few_shapes", [True, False])
def test_a_gpu_computes_as_said(tf32, few_shapes):
    set_cuda(GPU, tf32=tf32, few_shapes=few_shapes)
    assert flags() == (tf32, tf32, few_shapes)
    set_cuda(torch.device("cpu"), tf32=not tf32, few_shapes=not few_shapes)
    assert flags() == (tf32, tf32, few_shapes)


def test_a_precision_changes_nothing_for_others():
    """An explanation has one too, whose fp32 must not become TF32."""
    set_cuda(GPU, tf32=False, few_shapes=False)
    Precision("fp32", GPU)
    assert flags() == (False, False, False)


@pytest.mark.parametrize(
    ("flag", "name"), [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx512f", "fp32")]
)
def test_auto_on_a_cpu_is_bf16_where_it_multiplies_in_it(monkeypatch, flag, name):
    monkeypatch.setattr("train.precision._cpu_flags", lambda: {"sse2", flag})
    precision = Precision("auto", torch.device("cpu"))
    assert precision.name == name
    assert not precision.scaler.is_enabled()
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (
        product.dtype
        == precision.input_dtype
        == getattr(torch, {"fp32": "float32"}.get(name, "bfloat16"))
    )


@pytest.mark.parametrize(("there", "name"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_bf16_where_it_is_not_emulated(monkeypatch, there, name):
    asked = []
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda **options: asked.append(options) or there
    )
    assert best_precision(GPU) == name
    assert asked == [{"including_emulation": False}]
    if there:
        assert Precision("bf16", GPU).name == "bf16"
    else:
        with pytest.raises(UserError, match="precision bf16 needs a GPU from Ampere on"):
            Precision("bf16", GPU)
