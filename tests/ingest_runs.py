"""Ingests of the tiny raw data sets, for tests; not a test itself."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from ingest.config import IngestConfig
from ingest.record import Source
from ingest.selection import SelectionConfig, select
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig

ROOT = Path(__file__).resolve().parents[1]


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def nih(raw: Path) -> ChestXray14:
    return ChestXray14(ChestXray14Config(raw / "chestxray14"))


def covid(raw: Path, **options) -> Source:
    folder = raw / "covid-radiography"
    options = {"test_per_class": 3, "exclude": folder / "exclude.txt"} | options
    return select(CovidRadiography(CovidRadiographyConfig(folder)), SelectionConfig(**options))


def config(out: Path, **options) -> IngestConfig:
    return IngestConfig(out, **({"shorter_side": 128, "workers": 1, "progress": False} | options))


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment
    )
