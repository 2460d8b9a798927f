"""train.warp_triton: the kernel is compiled for GPUs that are not here, down to machine code."""

import pytest

triton = pytest.importorskip("triton", reason="triton comes with torch for CUDA only")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from train.warp_triton import _BLOCK, _warp_kernel  # noqa: E402

POINTERS = {"images": "*u8", "rows": "*i64", "matrices": "*fp32", "field": "*fp32"}
NUMBERS = {f"{name}{channel}": "fp32" for name in ("scale", "offset") for channel in range(3)}
SIGNATURE = POINTERS | NUMBERS | {"size": "i32", "IS_ELASTIC": "constexpr", "BLOCK": "constexpr"}


@pytest.mark.parametrize("is_elastic", [True, False])
@pytest.mark.parametrize(("capability", "dtype"), [(75, "fp16"), (80, "fp32"), (90, "bf16")])
def test_the_kernel_is_compiled_for_a_gpu(tmp_path, monkeypatch, capability, dtype, is_elastic):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"IS_ELASTIC": is_elastic, "BLOCK": _BLOCK}
    signature = SIGNATURE | {"out": f"*{dtype}"}
    source = ASTSource(fn=_warp_kernel, signature=signature, constexprs=constants)
    options = {"enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]
    assert made.metadata.shared == 0
