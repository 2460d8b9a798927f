"""A Ray cluster: joining one, waiting for its tasks, and its errors in one line.

The module ray comes as an argument: it is optional, and not among what shards lean on."""

import os
import signal
import socket
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from shards.console import RunFailed, UserError, one_line, warn

Resource = Literal["CPU", "GPU"]
TRIES = 5  # of a batch whose worker or machine died
PER_CPU = 2  # batches under way: one at work, one waiting
IN_FLIGHT_BYTES = 512 * 2**20  # of images; Ray's store holds them until they are done
NOT_INSTALLED = (
    "--engine ray needs the package ray, which is not installed: pip install '.[ray]' (make setup "
    "does)"
)
_STORE_BYTES = 2**30  # of the shared memory that a Ray of our own takes
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def prepare(address: str | None) -> None:
    """Before Ray is imported. UserError for another kind of address."""
    if address and "://" in address:
        raise UserError(
            f"--ray-address {address}; allowed: host:port of the cluster's head, from one of the "
            "cluster's machines (ray start --address host:port makes this one of them)"
        )
    # Read when Ray is imported: nothing of a hospital's cluster is reported to anybody.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning


def connect(ray: Any, workers: int, address: str | None) -> None:
    """Join the cluster at `address` (host:port of its head), else the one that RAY_ADDRESS or a
    `ray start` on this machine names, else start one of `workers` CPUs here. UserError when no such
    cluster answers."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        if not _join(ray, address):
            ray.init(
                "local",
                num_cpus=workers,
                object_store_memory=_STORE_BYTES,
                include_dashboard=False,
                **_QUIET,
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise UserError(
            f"no Ray cluster at {where} that this program can join ({one_line(str(error))[:300]}); "
            "start one with: ray start --head --disable-usage-stats; where it asks for a token (as "
            "Ray's do by default), RAY_AUTH_MODE=token and its ~/.ray/auth_token are needed here"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray puts its own there, which would exit at once


def _join(ray: Any, address: str | None) -> bool:
    """Join the cluster at the address, or that of RAY_ADDRESS or of this machine's `ray start`.
    False when none is named and none is there."""
    named = address or os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        _knock(named)
    try:
        ray.init(named or "auto", **_QUIET)
    except ConnectionError:
        if named:
            raise
        return False
    return True


def _knock(address: str) -> None:
    """ConnectionError when nobody answers there, which takes Ray itself 10 minutes to say."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConnectionError("expected host:port")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(str(error)) from error


def wait_for(ray: Any, ref: Any, resources: Sequence[Resource] = ("CPU",)) -> None:
    """Until the task has ended, which takes one of each of the resources. RunFailed when no machine
    is left that has one."""
    warned = False
    while not ray.wait([ref], timeout=60)[0]:
        there = ray.cluster_resources()
        gone = next((resource for resource in resources if not there.get(resource)), None)
        if gone:
            left = "no machine" if gone == "CPU" else f"no machine with a {gone}"
            raise RunFailed(
                f"{left} of the Ray cluster is left; start some (ray start), and the same command "
                "goes on where it stopped"
            )
        if not warned:
            warn(
                f"the Ray cluster has no free {' or '.join(resources)} for a minute; waiting (ray "
                "status shows why)"
            )
            warned = True


def refuse(error: Exception) -> NoReturn:
    """The line for the user instead of a trace that comes from another machine."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, (UserError, RunFailed)):
        raise type(cause)(str(cause)) from None
    lines = str(cause).strip().splitlines() or [""]
    if "ModuleNotFoundError" in lines[-1] or isinstance(cause, ImportError):
        raise UserError(
            f"a machine of the Ray cluster cannot run this program ({lines[-1]}); give it this "
            "checkout, and run make setup there"
        ) from None
    raise RunFailed(
        f"the Ray cluster failed ({type(cause).__name__}: {lines[0][:200]}); the same command goes "
        "on where it stopped"
    ) from None
