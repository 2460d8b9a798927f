"""Fixtures that every room's tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ingest.config import IngestConfig
from ingest.run import ingest
from ingest.selection import SelectionConfig, select
from ingest.sources.chestxray14 import ChestXray14, ChestXray14Config
from ingest.sources.covid_radiography import CovidRadiography, CovidRadiographyConfig
from ingest.synthetic import write_chestxray14, write_covid_radiography

# The same examples in every run; `--hypothesis-seed=N --hypothesis-profile=default` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

CLASS_FOLDERS = ("COVID-19", "NORMAL", "Viral Pneumonia")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real radiographs; the test skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CXRSTACK_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real radiographs: no folder {folder} (CXRSTACK_SHARED_DATA names another)")
    return folder


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small synthetic data sets as published: `chestxray14/` and `covid-radiography/`."""
    raw = tmp_path_factory.mktemp("raw")
    write_chestxray14(raw / "chestxray14", images=48, seed=0, size=160, archives=2)
    per_class = dict.fromkeys(CLASS_FOLDERS, 12)
    write_covid_radiography(raw / "covid-radiography", per_class=per_class, seed=0, size=160)
    return raw


@pytest.fixture(scope="session")
def tiny_shards(tiny_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both synthetic sets as shards, shorter side 128: `<folder>/chestxray14`,
    `<folder>/covid-radiography`. Read only."""
    out = tmp_path_factory.mktemp("shards")
    config = IngestConfig(out, shorter_side=128, workers=2, progress=False)
    ingest(ChestXray14(ChestXray14Config(tiny_raw / "chestxray14")), config)
    covid = tiny_raw / "covid-radiography"
    selection = SelectionConfig(test_per_class=3, exclude=covid / "exclude.txt")
    ingest(select(CovidRadiography(CovidRadiographyConfig(covid)), selection), config)
    return out


@pytest.fixture
def as_before() -> Iterator[None]:
    """A run takes over the signals; a test gives them back. One thread: bits depend on it."""
    import torch

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny_network(as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of seconds as densenet121."""
    import torchvision
    from tiny_training import tiny_densenet

    monkeypatch.setattr(torchvision.models, "densenet121", tiny_densenet)
