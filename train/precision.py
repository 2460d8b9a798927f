"""Mixed precision: bf16 where the device computes in it, else fp16 with a scaler on a GPU."""

import torch

from shards.console import UserError

CHOICES = ("auto", "bf16", "fp16", "fp32")


class Precision:
    """autocast() around a forward; scaler for fp16's gradients (disabled for the other two).

    DenseNet121 at 224 on 2 cores with AVX-512 bf16: 26 img/s in bf16, 15 in fp32.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """UserError for a name that is none, or not this device's."""
        if name not in CHOICES:
            raise UserError(f"no precision {name!r}; there are: {', '.join(CHOICES)}")
        if name == "fp16" and device.type == "cpu":
            raise UserError("precision fp16 needs a GPU; on a CPU take auto, bf16 or fp32")
        if name == "bf16" and device.type == "cuda" and best_precision(device) != name:
            # cuDNN has no convolution in it there: it "was unable to find an engine".
            raise UserError("precision bf16 needs a GPU from Ampere on (8.0); take auto or fp16")
        self.name = best_precision(device) if name == "auto" else name
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    @property
    def input_dtype(self) -> torch.dtype:
        """Of the network's input: what autocast would cast it to in the first convolution."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.name]

    def autocast(self) -> torch.autocast:
        """The context for a forward pass."""
        dtype = torch.float16 if self.name == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.name != "fp32")


def set_cuda(device: torch.device, *, tf32: bool, few_shapes: bool) -> None:
    """How a GPU computes in this process. tf32: fp32 products may take 10 bits of mantissa;
    few_shapes: of input come (see train.batch.part_sizes), so that each is tuned once."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = few_shapes


def best_precision(device: torch.device) -> str:
    """What `auto` means on this device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    flags = _cpu_flags()
    return "bf16" if {"avx512_bf16", "amx_bf16"} & flags else "fp32"


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.split(":", 1)[-1].split())
