"""The loops of `kernels`, compiled once for this CPU (10 s) and then loaded without numba, whose
import takes 1 s, where llvmlite's, which is all that is needed, takes 0.13 s.

The object code stays in this folder's __pycache__, or in the user's cache where that cannot be
written to, under a name that tells what it was made of: source, CPU and compiler.
"""

import ctypes
import hashlib
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import llvmlite
import numpy as np
from llvmlite import binding

from shards.user_cache import user_cache

ROWS = 128  # that unfilter_rows takes: 64 take 1.3 times as long
TAPS = 6  # rows that add_rows takes at a time: 512 -> 224 needs 5
BITS = 22  # of a weight's fraction in add_rows, as Pillow has them
PLAIN, MIRROR, WARP = range(3)  # how a copy is made of an image
_SOURCE = Path(__file__).with_name("kernels.py")
_SIGNATURES = {  # P: an address, I: int64
    "unfilter_rows": "PPPPPI",
    "add_rows": "PPPPPIIII",
    "render_float32": "PPPPPPPPPII",
    "render_uint16": "PPPPPPPPPII",
    "walk_scan": "PPPPIIIII",
}
_TYPES = {"P": ctypes.c_void_p, "I": ctypes.c_int64}
# What numba's code for errors and for counted memory calls. The kernels have neither.
_NEVER_CALLED = (
    "numba_gil_ensure",
    "numba_gil_release",
    "numba_unpickle",
    "numba_do_raise",
    "numba_runtime_build_excinfo_struct",
    "NRT_Free",
    "NRT_MemInfo_call_dtor",
)
_CHECKSUM_BYTES = 32


class Kernel:
    """A compiled loop. Other threads run Python meanwhile."""

    def __init__(self, name: str) -> None:
        address = _engine().get_function_address(name)
        self._call = ctypes.CFUNCTYPE(None, *(_TYPES[kind] for kind in _SIGNATURES[name]))(address)

    def __call__(self, *arguments: np.ndarray | int) -> None:
        """Arrays must be contiguous, and of the shape and type that the kernel tells."""
        self._call(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))


@cache
def _engine() -> binding.ExecutionEngine:
    """All kernels in this process's memory."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    name = f"kernels-{_fingerprint()}.o"
    code = _kept(name) or _keep(name, _compile(machine))
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for symbol in _NEVER_CALLED:
        binding.add_symbol(symbol, abort)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _fingerprint() -> str:
    """Of all that decides the object code."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + _SOURCE.read_bytes())
    features = binding.get_host_cpu_features().flatten()
    for part in (binding.get_default_triple(), binding.get_host_cpu_name(), features):
        digest.update(part.encode() + b"\0")
    digest.update(llvmlite.__version__.encode())
    return digest.hexdigest()[:24]


def _compile(machine: binding.TargetMachine) -> bytes:
    """The kernels' object code, under their own names."""
    from shards import kernels  # with numba

    whole = binding.parse_assembly("")
    for name in _SIGNATURES:
        kernel = getattr(kernels, name)
        whole.link_in(
            binding.parse_assembly(kernel.inspect_llvm().replace(kernel.native_name, name))
        )
    _check_calls(whole)
    code: bytes = machine.emit_object(whole)
    return code


def _check_calls(whole: binding.ModuleRef) -> None:
    """Without numba a call of its run time would jump to address 0."""
    called = {f.name for f in whole.functions if f.is_declaration} - set(_NEVER_CALLED)
    known = {n for n in called if n.startswith("llvm.") or hasattr(ctypes.pythonapi, n)}
    if called - known:
        raise AssertionError(f"the kernels need numba to run: {sorted(called - known)}")


def _folders() -> list[Path]:
    folders = [_SOURCE.parent / "__pycache__"]
    with suppress(RuntimeError):  # a user without a home
        folders.append(user_cache())
    return folders


def _kept(name: str) -> bytes | None:
    """The object code of an earlier process, if it is whole."""
    for folder in _folders():
        with suppress(OSError):
            data = (folder / name).read_bytes()
            code = data[_CHECKSUM_BYTES:]
            if hashlib.sha256(code).digest() == data[:_CHECKSUM_BYTES]:
                return code
    return None


def _keep(name: str, code: bytes) -> bytes:
    """The code, kept for other processes in the first folder that can be written to, if any can."""
    for folder in _folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            # Under a name of its own: several processes may compile at the same time.
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(file.name, folder / name)
            return code
    return code
