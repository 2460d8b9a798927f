"""An S3 server over HTTP on loopback, behind a proxy that can cut the line."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from ingest_runs import ROOT


class Cutter:
    """A proxy before the S3 server that cuts the line within the body of some requests."""

    def __init__(self, port: int) -> None:
        self.target, self.cut, self.cuts = port, b"", 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                if self.cut and self.cut in data:
                    self.cuts += 1
                    head, _, body = data.partition(b"\r\n\r\n")
                    source.shutdown(socket.SHUT_RDWR)  # first: the server may be quick to answer
                    sink.sendall(head + b"\r\n\r\n" + body[: len(body) // 2])
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@contextmanager
def s3_server(bucket: str) -> Iterator[Cutter]:
    """moto's server behind the proxy, with a new bucket; the environment names it and its
    credentials. fsspec would keep the file system of an earlier server's address, so it forgets."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    proxy = Cutter(server.get_host_and_port()[1])
    kept = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "planted-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        kept.clear_instance_cache()
        fsspec.filesystem("s3").mkdir(bucket)
        yield proxy
        kept.clear_instance_cache()
        proxy.close()
        server.stop()


def run(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """A command as users run it, with few and short repetitions."""
    script = (
        "import sys, runpy\n"
        "from shards import remote_errors\n"
        "remote_errors.TRIES, remote_errors.WAIT_S = 2, 0.1\n"
        "sys.argv[0] = 'x'\n"
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", "XDG_CACHE_HOME": str(cache)},
    )
