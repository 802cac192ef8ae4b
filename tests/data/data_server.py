"""A local web server that misbehaves on request; no test goes to the real network."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from processes import GUARD


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content``; ``server.mode`` says how badly."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        content = server.files.get(self.path)
        mode = server.mode
        if content is None:
            self.send_error(404)
            return
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and mode != "no_range" and self.headers.get("If-Range", server.tag) == server.tag:
            start, status = int(asked[1]), 206
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = content[start:]
        self.send_response(status)
        self.send_header("ETag", server.tag)
        if mode != "no_length":
            self.send_header("Content-Length", str(len(body)))
        if status == 206:
            span = f"{start + (mode == 'wrong_range')}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {span}")
        self.end_headers()
        if server.drops > 0 or mode == "truncate":
            server.drops -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if mode == "stall":
            self.wfile.flush()
            server.release.wait(GUARD)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """The server and what it has seen."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.mode = "good"
        self.drops = 0  # so many answers end halfway
        self.tag = '"v1"'
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.release = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def stop(self):
        self.release.set()
        self.shutdown()
        self.server_close()
