"""How much there is to score, and how long it takes, before anything is written."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from serve.archives import LINKED_FOLDERS, Archive
from serve.decode import DecodePool, Task
from serve.entries import ArchiveDamaged, BadMember, is_input
from serve.identity import identify
from serve.network import Network
from shards.console import one_line, progress
from shards.remote import is_remote
from shards.tars import members, open_tar
from shards.zips import is_folder, member_name, open_zip

TRIED = 64  # images of the calibration
_SAMPLE = 64  # members that tell how long a tar's are


@dataclass(frozen=True)
class DryRun:
    """inputs and bytes of the archives; img_s: of the first images, None when none could be
    scored; damaged: archives with the reason; linked_folders: that are not followed; refused: of
    the first images, how many cannot be scored, and why the first of them."""

    archives: int
    inputs: int
    bytes: int
    img_s: float | None
    damaged: tuple[str, ...]
    linked_folders: int = 0
    refused: str | None = None

    def lines(self) -> list[str]:
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.2f} MB"
        time_left = "unknown (no image could be scored)"
        if self.img_s:
            time_left = f"{_hours(self.inputs / self.img_s)}, at {self.img_s:.1f} img/s here"
        return [
            f"{self.archives} archives, {self.inputs} inputs, {size}",
            f"expected time: {time_left}",
            *([one_line(self.refused)] if self.refused else []),
            *(f"damaged: {one_line(text)}" for text in self.damaged),
            *said_of_links(self.linked_folders),
        ]


def said_of_links(folders: int) -> list[str]:
    """What is said of links to folders."""
    return [f"{folders} links to folders are not followed; name those folders"] if folders else []


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def dry_run(
    archives: list[Archive], network: Network, workers: int, gpus: int, limit: int | None
) -> DryRun:
    """Meets every input of the archives, and scores the first few, on one of so many GPUs."""
    inputs, linked, damaged = 0, 0, []
    with progress("counting", None) as advance:
        for archive in archives:
            try:
                for _ in islice(archive.entries(), None if limit is None else limit - inputs):
                    inputs += 1
                    advance()
            except ArchiveDamaged as error:
                inputs += 1  # the row for the rest
                damaged.append(f"{archive.called}: {error}")
            linked += archive.skipped[LINKED_FOLDERS]
            if archive.inner_damage:
                damaged.append(f"{archive.called}: {archive.inner_damage}")
    total = sum(identify(archive).bytes for archive in archives)
    speed, refused = _calibrate(archives, network, workers, gpus)
    return DryRun(len(archives), inputs, total, speed, tuple(damaged), linked, refused)


def _calibrate(
    archives: list[Archive], network: Network, workers: int, gpus: int
) -> tuple[float | None, str | None]:
    """Images per second: of the slower of decoding and the network, and where they share the cores
    of both one after the other. None when no image decodes. And what is said of those that do not.
    """
    images = list(islice(_readable(archives), TRIED))
    if not images:
        return None, None
    info = network.info
    tasks = [Task(n, images[n : n + 4]) for n in range(0, len(images), 4)]
    with DecodePool(workers, info.shorter_side, info.size, info.depth) as pool:
        list(pool.run(tasks[:workers]))  # the workers' first images pay for their imports
        began = time.perf_counter()
        parts = [found for _, found in pool.run(tasks)]
        decoding = (time.perf_counter() - began) / len(images)
    sound = [image for found in parts for image, e in zip(found.images, found.errors) if e is None]
    refused = _refused([error for found in parts for error in found.errors])
    if not sound:
        return None, refused
    network.score(sound[: network.batch])
    began = time.perf_counter()
    starts = range(0, len(sound), network.batch)
    batches = [network.submit(sound[start : start + network.batch]) for start in starts]
    for batch in batches:
        batch.result()
    scoring = (time.perf_counter() - began) / len(sound)
    on_cpu = network.provider == "cpu"
    together = decoding + scoring if on_cpu else max(decoding, scoring / gpus)
    return 1 / together, refused


def _refused(errors: list[str | None]) -> str | None:
    """errors: of the first images, None of those that can be scored."""
    found = [error for error in errors if error is not None]
    said = f"{len(found)} of the first {len(errors)} images cannot be scored: "
    return said + found[0] if found else None


def _readable(archives: list[Archive]) -> Iterator[bytes]:
    for archive in archives:
        try:
            for entry in archive.entries():
                try:
                    yield entry.read()
                except BadMember:
                    continue
        except ArchiveDamaged:
            continue


def expected_inputs(archive: Archive) -> int | None:
    """About how many, where that takes no reading of the whole: of a tar by the length of its first
    members; None of a compressed tar, or behind a URL."""
    if archive.kind == "files":
        return len(archive.files)
    if is_remote(archive.path) or archive.kind == "compressed tar":
        return None
    if archive.kind == "folder":
        every = archive.named_files()
        return sum(kind != "linked folder" and is_input(name) for name, _, kind in every)
    try:
        if archive.kind == "zip":
            with archive.path.open("rb") as file:
                found = open_zip(file).infolist()
            return sum(is_input(member_name(info)) and not is_folder(info) for info in found)
        return _of_tar(archive.path)
    except Exception:  # damaged, which the run itself tells
        return None


def _of_tar(path: Path) -> int:
    inputs = 0
    size = path.stat().st_size
    with path.open("rb") as file, open_tar(file, seekable=True) as tar:
        number = 0
        for number, member in enumerate(members(tar), 1):
            inputs += not member.isdir() and is_input(member.name)
            if number == _SAMPLE:
                return round(inputs * size / tar.offset)
    return inputs
