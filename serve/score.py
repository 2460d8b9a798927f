"""Archives -> scores: every image exactly once, whatever happens on the way.

Reading (this process) -> decoding and preparing (worker processes) -> batches through ONNX Runtime
(threads of this process, while the workers decode on) -> rows. The unit of work is 512
consecutive inputs of an archive; its rows are committed as one file, and the same command after a
crash leaves out the units that are there. On several GPUs each has a process with its share of the
units; with --engine ray other machines decode and score, and this process commits. Needs no torch.

Run: python -m serve score --model MODEL.onnx --out DIR ARCHIVE...
"""

import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from serve.again import options_given
from serve.archives import LINKED_FOLDERS, Archive
from serve.decode import start_workers
from serve.dry_run import DryRun, dry_run
from serve.entries import label
from serve.foreign import Normalise, Outputs
from serve.gpus import on_the_others, wanted_gpus
from serve.identity import identify, place_of
from serve.model_info import ModelInfo
from serve.network import Network, sha256_of
from serve.opened import foreign, open_network
from serve.providers import Provider
from serve.score_csv import check_csv, write_csv
from serve.score_folder import UNIT_INPUTS, Columns, ScoreFolder, damage_of
from serve.score_inputs import LIST_SIGN, find_archives, list_of
from serve.score_run import Share, Work, run_here, shares_of
from serve.thresholds import PointName, pick
from shards.console import RunFailed, UserError
from shards.depth import Depth
from shards.remote import is_remote


@dataclass(frozen=True)
class ScoreConfig:
    """Score the images of archives: one row per image in a folder of Parquet files."""

    model: Path
    """ONNX file of python -m serve export."""
    out: Path
    """Folder of the scores; the same command again goes on where it stopped."""
    archives: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Tar (shards too), plain or in gzip, bzip2, xz, lzma or zstd; zip, folders (with the archives
    in them), images, DICOM files; globs in quotation marks; @FILE, a list with one path per line;
    URLs (s3://, https://). Each image once; folders of scores are left out."""
    provider: Provider = "auto"
    """Where the network runs; auto: on a GPU where CUDA works, else on the CPU. A run that goes
    on keeps the one it began with."""
    gpus: int | None = None
    """So many GPUs, with a process for each; by default all of this machine."""
    fp16: bool = False
    """TensorRT may compute in half precision (CUDA takes the model as it was exported)."""
    engine: Literal["local", "ray"] = "local"
    """ray: the machines of a Ray cluster decode and score, on their CPUs or with --provider."""
    ray_address: str | None = None
    """host:port of the cluster's head; by default that of RAY_ADDRESS or of this machine."""
    batch: int | None = None
    """Images per pass; by default 4 on the CPU and 32 on a GPU."""
    workers: int | None = None
    """Decoding processes; by default one per core."""
    threads: int | None = None
    """Passes at a time: on the CPU by default one per core, each on one thread; on a GPU two, of
    which one is copied there while the other is computed."""
    operating_point: PointName | None = None
    """Add a column call_<label>: at or above the threshold that the export chose on validation
    images, for 98 % sensitivity or Youden's index; null where a label has no threshold."""
    limit: int | None = None
    """Score only the first so many images; by default all."""
    csv: Path | None = None
    """Also write all rows into this file, named .csv, at the end, with what scores.json says of the
    model: serve evaluate reads it as it reads --out, in which it may lie."""
    dry_run: bool = False
    """Only say how many inputs there are, how large they are, and how long they would take."""
    keep_names: bool = False
    """DICOM files, and archives found in folders and archives, under their names in the rows. By
    default these files are called by the SHA-256 of their bytes and these archives by their number
    there, since their names are often those of patients."""
    depth: Depth | None = None
    """Bits that count in 16-bit images whose files declare none. Default: the model's, of its
    training data; where it has none, images that use fewer than 15 bits are refused."""
    labels: str | None = None
    """For a model that says nothing of itself: the labels of its outputs, A,B,C."""
    size: int | None = None
    """For such a model: the side of its input in pixels."""
    normalise: Normalise | None = None
    """For such a model: its input is (x / 255 - mean) / std of ImageNet (by default), x / 255,
    -1024 to 1024 (torchxrayvision), or the grey values themselves; one channel: not the first."""
    outputs: Outputs | None = None
    """For such a model: what its first output is (by default probabilities), or what makes
    probabilities of it."""


@dataclass(frozen=True)
class ScoreSummary:
    """rows: inputs in the folder, errors among them; scored: images that this call scored, in
    `seconds`; already_done: the folder was finished before; linked_folders: not followed."""

    out: Path
    rows: int
    errors: int
    scored: int
    seconds: float
    img_s: float
    provider: str
    already_done: bool
    linked_folders: int


def score(config: ScoreConfig) -> ScoreSummary | DryRun:
    """Score the archives into `config.out`, or go on where an earlier call stopped.

    UserError for a wrong request; RunFailed when an archive could not be read to its end (its
    readable images are scored and committed all the same).
    """
    _check(config)
    archives = find_archives(config.archives, keep_names=config.keep_names)
    start_workers()
    _check_apart(config, archives)
    network = open_network(config)
    gpus = wanted_gpus(config.gpus, network.provider)
    workers = config.workers or len(os.sched_getaffinity(0))
    if config.dry_run:
        return dry_run(archives, network, workers, gpus, config.limit)
    info, model_sha256 = network.info, sha256_of(config.model)
    points = pick(info.thresholds, config.operating_point, info.labels, str(config.model))
    folder = ScoreFolder(config.out)
    with folder.locked():
        request = _request(config, archives, network, model_sha256)
        done = folder.summary()
        already_done, scored = done is not None, 0
        # Where nothing is left to score, it does not matter what auto finds.
        folder.begin(request, free={"provider"} if done and config.provider == "auto" else set())
        if done is None:
            version = info.preprocessing_version
            columns = Columns(info.labels, info.exclusive, model_sha256, version, points)
            kept, asked = config.keep_names, request["archives"]
            work = Work(
                archives, archive_names(archives), asked, folder, columns, config.limit, kept
            )
            done, scored = _score_rest(config, work, network, workers, gpus)
        else:
            folder.check()
        if config.csv is not None:
            write_csv(folder, done, config.csv)
        summary = _summary(config.out, done, scored, already_done=already_done)
    _fail_on_damage(done)
    return summary


def _score_rest(
    config: ScoreConfig, work: Work, network: Network, workers: int, gpus: int
) -> tuple[dict[str, Any], int]:
    """Score what is not committed yet: the content of scores.json, and how many were scored."""
    before = _counts(work)
    work = replace(work, committed=sum(rows for rows, _ in before))
    began = time.perf_counter()
    _run(config, work, network, workers, gpus)
    seconds = time.perf_counter() - began
    counts = _counts(work)
    scored = sum(rows - errors for rows, errors in counts)
    scored -= sum(rows - errors for rows, errors in before)
    done = _summarise(config, work, network, counts)
    done |= {"seconds": round(seconds, 3), "img_s": round(scored / max(seconds, 1e-9), 2)}
    work.folder.write_summary(done)
    return done, scored


def _run(config: ScoreConfig, work: Work, network: Network, workers: int, gpus: int) -> None:
    if config.engine == "ray":
        from serve.score_ray import run_on_ray

        run_on_ray(work, network, config, workers)
        return
    each = max(1, workers // gpus)
    config = replace(config, provider=cast(Provider, network.provider))  # of all the same
    first, *others = shares_of(gpus, len(work.archives), config.limit)
    with on_the_others(run_share, [(work, config, each, share) for share in others]):
        run_here(work, network, each, first)


def run_share(work: Work, config: ScoreConfig, workers: int, share: Share) -> None:
    """In a process of its own, which sees one GPU."""
    run_here(work, open_network(config), workers, share)


def _counts(work: Work) -> list[tuple[int, int]]:
    """(rows, rows with an error) that are committed of each archive."""
    ends = [work.folder.end_of(index) for index in range(len(work.archives))]
    return work.folder.counts(ends, work.columns.schema)


def _check(config: ScoreConfig) -> None:
    for name in ("batch", "workers", "threads", "limit", "gpus"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, found {value}")
    for name in ("model", "out", "csv"):
        if is_remote(getattr(config, name)):
            shown = getattr(config, name)
            raise UserError(f"--{name} {shown}; allowed: a path on this machine")
    if config.batch is not None and config.batch > UNIT_INPUTS:
        raise UserError(f"batch must be at most {UNIT_INPUTS}, found {config.batch}")
    if os.path.lexists(config.out) and not config.out.is_dir():
        what = "a file" if config.out.exists() else "a link that leads nowhere"
        raise UserError(f"{config.out} is {what}; --out names a folder")
    if config.ray_address is not None and config.engine != "ray":
        raise UserError(f"--ray-address {config.ray_address} needs --engine ray")
    if config.gpus is not None and (config.provider == "cpu" or config.engine == "ray"):
        raise UserError("--gpus is for --provider cuda and tensorrt on this machine; leave it out")
    if config.fp16 and config.provider != "tensorrt":
        raise UserError("--fp16 is for --provider tensorrt; or export with --precision fp16")
    if config.csv is not None:
        check_csv(config.csv, config.out)


def _check_apart(config: ScoreConfig, archives: list[Archive]) -> None:
    """UserError for scores that would be written into what is scored."""
    folders = [a.path.resolve() for a in archives if a.kind == "folder" and not is_remote(a.path)]
    for path in filter(None, (config.out, config.csv)):
        place = Path(os.path.realpath(path))  # resolve() raises where links go in a circle
        inside = [folder for folder in folders if place.is_relative_to(folder)]
        if inside:
            raise UserError(f"{path} lies in {inside[0]}, which is scored; write to another folder")


def _request(
    config: ScoreConfig, archives: list[Archive], network: Network, model_sha256: str
) -> dict[str, Any]:
    """What decides the rows. Workers and threads do not, so a rerun may change them. `inputs` is
    for those who look for an image later."""
    said, info = foreign(config), network.info
    return {
        "model_sha256": model_sha256,
        "labels": list(info.labels),
        "preprocessing_version": info.preprocessing_version,
        "depth": info.depth,
        "provider": _provider_used(config, network),
        "fp16": config.fp16,
        "batch": config.batch,
        "unit_inputs": UNIT_INPUTS,
        "operating_point": config.operating_point,
        "limit": config.limit,
        "keep_names": config.keep_names,
        "foreign": None if said is None else asdict(said),
        "inputs": [_absolute(path) for path in config.archives],
        "archives": [identify(archive).to_dict() for archive in archives],
    }


def _absolute(path: Path) -> str:
    listed = list_of(path)
    return place_of(path) if listed is None else LIST_SIGN + place_of(listed)


def archive_names(archives: list[Archive]) -> list[str]:
    """What the rows call the archives: the file's name, `folder/archive-n` where that is not to be
    told, the whole path where names repeat."""
    short = [a.alias.parent.name + "/" if a.alias else "" for a in archives]
    short = [folder + a.called.name for folder, a in zip(short, archives)]
    counts = Counter(short)
    unique = [bool(name) and counts[name] == 1 for name in short]
    return [label(n if alone else str(a.called)) for n, a, alone in zip(short, archives, unique)]


def _summarise(
    config: ScoreConfig, work: Work, network: Network, counts: list[tuple[int, int]]
) -> dict[str, Any]:
    """The content of scores.json but for the time, counted from what is committed.

    RunFailed when a row is missing.
    """
    archives: list[dict[str, Any]] = []
    for index, (rows, errors) in enumerate(counts):
        name, identity = work.names[index], work.identities[index]
        end = work.folder.end_of(index)
        if end is None or end.inputs != rows:
            raise RunFailed(
                f"{name}: {rows} rows for {end}; delete {work.folder.path} and score again"
            )
        members = end.inputs - end.rests
        entry = {"name": name, "bytes": identity["bytes"], "sha256": identity["sha256"]}
        said = {"members": members, "rows": rows, "errors": errors, "skipped": end.skipped}
        archives.append({**entry, **said, "damage": end.damage})
    total = sum(archive["rows"] for archive in archives)
    if total == 0:
        work.folder.forget()
        raise UserError(f"no image in {', '.join(work.names)}")
    return {
        "model": config.model.name,
        "model_sha256": work.columns.model_sha256,
        # None of a stranger's model, which does not say.
        "weights_sha256": network.info.weights_sha256 or None,
        "precision": _precision_used(config, network.info),
        "labels": list(network.info.labels),
        "exclusive": network.info.exclusive,
        "dataset": network.info.dataset,
        "preprocessing_version": network.info.preprocessing_version,
        "archives": archives,
        "rows": total,
        "errors": sum(archive["errors"] for archive in archives),
        "operating_point": config.operating_point,
        "limit": config.limit,
        "provider": _provider_used(config, network),
        "synthetic": network.info.synthetic,
        "options": options_given(config, ("model", "out", "archives")),
    }


def _precision_used(config: ScoreConfig, info: ModelInfo) -> str | None:
    """None of a stranger's model, which does not say."""
    if not info.weights_sha256:
        return None
    return "fp16" if config.fp16 and info.precision == "fp32" else info.precision


def _provider_used(config: ScoreConfig, network: Network) -> str:
    """A cluster's machines run what was asked for; this one only looked at the model."""
    if config.engine == "ray" and config.provider != "auto":
        return config.provider
    return network.provider


def _summary(out: Path, done: dict[str, Any], scored: int, *, already_done: bool) -> ScoreSummary:
    return ScoreSummary(
        out=out,
        rows=done["rows"],
        errors=done["errors"],
        scored=scored,
        seconds=done["seconds"],
        img_s=done["img_s"],
        provider=done["provider"],
        already_done=already_done,
        linked_folders=sum(a["skipped"].get(LINKED_FOLDERS, 0) for a in done["archives"]),
    )


def _fail_on_damage(done: dict[str, Any]) -> None:
    damaged = "; ".join(damage_of(done))
    if damaged:
        raise RunFailed(
            f"{damaged}; what could be read is scored ({done['rows']} rows); mend the archive or "
            "fetch it again, and score it into another --out"
        )
