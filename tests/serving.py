"""A web server on loopback that misbehaves as real ones do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = bytes(range(256)) * 4096  # 1 MiB, every block of 256 alike: offsets must be right


class Server(ThreadingHTTPServer):
    """Serves one file at every path; a test says how badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.tag: str | None = '"one"'
        self.drop_after: list[int] = []  # bytes after which each next connection breaks
        self.statuses: list[int] = []  # what the next answers are instead
        self.ranges = True
        self.announces = True
        self.wrong_range = False
        self.stalls = False
        self.paths: list[str] = []
        self.requests: list[dict[str, str]] = []
        self.done = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/folder/data.bin"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that a test breaks."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.requests.append(dict(self.headers))
        self.close_connection = True
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        content, first = self.server.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.server.ranges and self.headers["If-Range"] == self.server.tag:
            first = int(asked[1])
            if first >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            told = first - 1 if self.server.wrong_range else first
            self.send_header("Content-Range", f"bytes {told}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.tag:
            self.send_header("ETag", self.server.tag)
        if self.server.announces:
            self.send_header("Content-Length", str(len(content) - first))
        self.send_header("Connection", "close")
        self.end_headers()
        last = self.server.drop_after.pop(0) if self.server.drop_after else len(content)
        self.wfile.write(content[first : first + last])
        self.wfile.flush()
        if self.server.stalls:
            self.server.stalls = False
            self.server.done.wait(10)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server in a thread."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.done.set()
            server.shutdown()
            thread.join()
