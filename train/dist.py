"""The ranks of a training under torchrun; without torchrun a world of one."""

import hashlib
import os
import re
import signal
import time
import uuid
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.console import RunFailed, UserError, one_line
from shards.order import rank_slice
from train.device import choose_device

TIMEOUT = timedelta(minutes=10)  # a rank that waits longer for the others ends with an error


class World:
    """rank of size; local_rank on this machine; device: this rank's."""

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.device = choose_device(device, self.local_rank)
        self._store: dist.Store | None = None  # this start's own
        if self.size > 1:
            self._store = _join("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def close(self, *, failed: bool = False) -> None:
        """Leave the group. failed: the others may be in an exchange. NCCL leaves a group with all
        of its machine's ranks together, and would wait for them: there the end of the process is
        the leave, and its message is read at once."""
        waits = failed and self.device.type == "cuda"
        if self.size > 1 and dist.is_initialized() and not waits:
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if (
            self.size > 1
        ):  # NCCL's is an exchange on a GPU: said, or torch guesses it, with a warning
            on_gpu = self.device.type == "cuda"
            dist.barrier(device_ids=[self.device.index] if on_gpu else None)

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the ranks."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def max(self, value: float) -> float:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor)

    def tell_signal(self, number: int) -> None:
        """For the others to find, who are at work and need not wait for it."""
        if self._store is not None:
            self._store.set("signal", str(number))

    def told_signal(self) -> int:
        """A signal that a rank has told of; 0: none."""
        if self._store is None or not self._store.check(["signal"]):
            return 0
        return int(self._store.get("signal"))

    def wrap(self, model: nn.Module) -> nn.Module:
        """DDP for what is trainable now; wrap again whenever that changes, or ranks diverge."""
        if self.size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.15 has another name for it, 2.11 only this one
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=devices,
                broadcast_buffers=False,  # average_buffers uses all ranks' statistics instead
                gradient_as_bucket_view=True,
            )

    def check_sync_norm(self, wanted: bool) -> None:
        """UserError for SyncBatchNorm without GPUs: torch's works on them only."""
        if wanted and self.device.type != "cuda":
            raise UserError(
                "--sync-norm needs GPUs; leave it out on a CPU (or take a larger batch)"
            )

    def sync_norm(self, model: nn.Module, wanted: bool) -> nn.Module:
        """With batch norm over all ranks' images, if wanted; its weights keep their names."""
        if not wanted or self.size == 1:
            return model
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)

    def average_buffers(self, model: nn.Module) -> None:
        """Give every rank the mean of all ranks' batch norm statistics."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size

    def gather_buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """Every rank's batch norm statistics as '<rank>.<name>', which differ until they are
        averaged; {} for one rank."""
        if self.size == 1:
            return {}
        names = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
        buffers = dict(model.named_buffers())
        if not names:
            return {}
        flat = torch.cat([buffers[name].flatten() for name in names])
        parts = [torch.empty_like(flat) for _ in range(self.size)]
        dist.all_gather(parts, flat)
        sizes = [buffers[name].numel() for name in names]
        return {
            f"{rank}.{name}": value.reshape(buffers[name].shape).cpu()
            for rank, part in enumerate(parts)
            for name, value in zip(names, part.split(sizes))
        }

    def load_buffers(self, model: nn.Module, saved: dict[str, Tensor]) -> None:
        """This rank's of gather_buffers; on another number of ranks their mean (running statistics
        are linear, so each image of the epoch so far counts as it did), and {} changes nothing."""
        ranks = {name.split(".", 1)[0] for name in saved}
        own = [self.rank] if len(ranks) == self.size else sorted(map(int, ranks))
        for name, buffer in model.named_buffers():
            if own and buffer.is_floating_point():
                buffer.copy_(torch.stack([saved[f"{rank}.{name}"] for rank in own]).mean(0))

    def check_same(self, model: nn.Module) -> None:
        """RunFailed, on every rank, when the ranks' parameters are not the same to the bit."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for parameter in model.parameters():
            flat = parameter.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
        own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        sums = [bytes(part.cpu().numpy()).hex()[:16] for part in parts]
        usual = max(sums, key=sums.count)
        others = [str(rank) for rank, found in enumerate(sums) if found != usual]
        if others:
            known = ", ".join(f"{rank}: {found}" for rank, found in enumerate(sums))
            raise RunFailed(
                f"the processes have diverged: the weights of rank {', '.join(others)} are not "
                f"those of the others (SHA-256 by rank: {known}); look for a faulty device; the "
                "same command goes on from the last checkpoint"
            )

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """This rank's rows (n, ...), those of rank_slice(range(total)) -> on every rank all rows
        (total, ...), in order."""
        if self.size == 1:
            return rows
        longest = -(-total // self.size)
        padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        out = torch.empty((total, *rows.shape[1:]), dtype=rows.dtype, device=self.device)
        everything = torch.arange(total).numpy()
        for rank, part in enumerate(parts):
            share = rank_slice(everything, rank, self.size)
            out[torch.from_numpy(share).to(self.device)] = part[: len(share)]
        return out


def _join(backend: str) -> dist.Store:
    """Find the other ranks; the store of this start. RunFailed when they do not come, or end
    meanwhile.

    torchrun keeps one store over all restarts and torch 2.15 names its keys alike in each: a rank
    that comes first would read the addresses of its dead predecessors. So each start has its own.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python's waits for the others' answer
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        while isinstance(store, dist.PrefixStore):  # older torch: by the node's count of restarts
            store = store.underlying_store
        own = dist.PrefixStore(name_start(store, rank, size), store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)
        return own
    except RuntimeError as error:
        raise RunFailed(
            f"the processes of this run did not find one another ({one_line(str(error))[:200]}); "
            "start them all again with the same command"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def name_start(store: dist.Store, rank: int, size: int) -> str:
    """A name that the ranks of this start have in common, and no other start. RuntimeError when one
    of them does not come.

    torchrun's count of restarts is none: each node counts its own, and a node that joins or leaves
    starts all ranks again without being counted. So each rank asks under a word of its own, and
    rank 0 answers with the name it has drawn; a dead rank's question is answered in vain.
    """
    if rank > 0:
        word = uuid.uuid4().hex
        store.set(f"start/asks/{rank}", word)
        store.wait([f"start/answer/{word}"], TIMEOUT)
        name = store.get(f"start/answer/{word}").decode()
        store.set(f"{name}/here/{rank}", "")
        return name
    name, answered = f"start/{uuid.uuid4().hex}", dict[int, str]()
    missing, end = set(range(1, size)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            asks = f"start/asks/{other}"
            word = store.get(asks).decode() if store.check([asks]) else ""
            if word and answered.get(other) != word:
                store.set(f"start/answer/{word}", name)
                answered[other] = word
        missing = {other for other in missing if not store.check([f"{name}/here/{other}"])}
        if missing and time.monotonic() > end:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(0.02 if missing else 0)
    return name


def is_lost_peer(error: Exception) -> bool:
    """Whether an exchange failed: mostly another rank has ended, or did not come in time."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def why_no_exchange(error: Exception) -> str:
    """For people, of an error that is_lost_peer knows. NCCL gives all of its failures that type:
    another process is at fault only where it says so (ncclRemoteError)."""
    said = str(error)
    if "NCCL error" not in said or "ncclRemoteError" in said:
        return (
            "another process of this run has ended, or did not answer in time; its own message "
            "says why; the same command goes on from the last checkpoint"
        )
    *_, last = re.split("last error:", said, flags=re.IGNORECASE)
    reason = one_line(last if last.strip() else said)[:500]
    way_out = (
        "give the container more shared memory (docker run --shm-size=1g)"
        if "/dev/shm" in reason
        else "NCCL_DEBUG=INFO tells more, and python -m bench doctor looks at the machine"
    )
    return (
        f"NCCL cannot exchange between the GPUs ({reason}); {way_out}; the same command goes on "
        "from the last checkpoint"
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The network that World.wrap was given."""
    return model.module if isinstance(model, DistributedDataParallel) else model
