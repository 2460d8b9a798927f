"""Scoring from a plain HTTP server, which lists folders as pages and sends no parts of files."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from test_archives import write_folder, write_tar
from test_score import config, picture, rows
from tiny_model import write_model

from serve.score import score
from serve.score_inputs import find_archives
from shards import web_pages
from shards.codec import encode
from shards.console import UserError
from shards.urls import path_of


class Quiet(SimpleHTTPRequestHandler):
    fetched: ClassVar[list[str]] = []  # by GET, with all bytes
    sent: ClassVar[list[int]] = []  # bytes of an endless page

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.fetched.append(self.path)
        if self.path.startswith("/endless"):
            self.send_endless()
        elif self.path.startswith("/deep"):
            self.send_page(b'<a href="x/">', "text/html")
        elif self.path.startswith("/strange"):
            self.send_page(b'<a href="0.png">', "text/html; charset=none")
        else:
            super().do_GET()

    def send_page(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def send_endless(self) -> None:
        """Without a length, as pages made on the way are sent."""
        data = b'<a href="x.png">' * (1 << 12)
        try:
            self.send_page(b"", "text/html")
            while len(self.sent) < 4000:
                self.wfile.write(data)
                self.sent.append(len(data))
        except ConnectionError:
            pass

    def do_HEAD(self) -> None:
        if self.path.startswith(("/endless", "/deep", "/strange")):
            self.send_page(b"", "text/html")
        else:
            super().do_HEAD()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100), dtype=np.uint8)
    drawn = {f"{i}.png": encode(picture(i, (40, 48)), "png") for i in range(3)}
    write_folder(tmp_path / "web/images", drawn)
    write_folder(tmp_path / "web/images/more", {"3.png": drawn["0.png"]})
    write_folder(tmp_path / "web/none", {"notes.txt": b"no image"})
    write_tar(tmp_path / "web/a.tar", {"noise.png": encode(noise, "png")})  # over 1 MiB
    write_model(tmp_path / "m.onnx")
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "local"), [("images/", "images"), ("a.tar", "a.tar")])
def test_the_rows_are_those_of_the_local_files(url: str, tmp_path: Path, name: str, local: str):
    score(config(tmp_path, path_of(f"{url}/{name}"), out=str(tmp_path / "there")))
    score(config(tmp_path, tmp_path / "web" / local, out=str(tmp_path / "here")))
    assert rows(tmp_path / "there") == rows(tmp_path / "here")
    assert len(rows(tmp_path / "here")) == (4 if local == "images" else 1)


def test_a_folder_without_images_is_refused(url: str):
    with pytest.raises(UserError, match="no image and no archive in the folder http"):
        find_archives([path_of(f"{url}/none/")])


def test_the_page_of_a_folder_is_read_up_to_a_limit(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web_pages, "MAX_PAGE_BYTES", 1 << 20)
    Quiet.sent.clear()
    for named in ("endless/", "endless/*.png", "endless/?key=secret"):
        with pytest.raises(UserError, match=r"/endless/?: the page .* over 1048576 bytes") as told:
            find_archives([path_of(f"{url}/{named}")])
        assert "secret" not in str(told.value)
    # Of 250 MiB what lies in the sockets of five requests, up to 10 MiB in each.
    assert sum(Quiet.sent) < 100 << 20


def test_folders_in_each_other_without_end_are_refused(url: str):
    with pytest.raises(UserError, match=r"more than 64 folders in each other: http.*/deep/x/x/"):
        find_archives([path_of(f"{url}/deep/")])


def test_a_page_of_a_charset_that_nobody_knows_is_read(url: str):
    assert [path.name for path in path_of(f"{url}/strange/").iterdir()] == ["0.png"]


def test_an_archive_is_not_fetched_to_tell_that_it_is_no_folder(url: str, tmp_path: Path):
    Quiet.fetched.clear()
    assert not path_of(f"{url}/a.tar").is_dir()
    assert Quiet.fetched == []
    assert path_of(f"{url}/images/").is_dir()
