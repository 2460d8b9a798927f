"""train.precision: what a GPU may round, and what making a Precision leaves as it is."""

import pytest
import torch

from train.precision import Precision, set_cuda

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
