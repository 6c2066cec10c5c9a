"""A local server that answers, fails, hangs, throttles and talks nonsense, for tests of HTTPLabelService."""

import io
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL import Image

from lit_methods.ppba.service import HTTPLabelService

CAT = [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.05}]
PAIRS = [("cat", 0.9), ("dog", 0.05)]
KEY = "s3cr3tK3y"


@dataclass
class Reply:
    body: bytes = json.dumps(CAT).encode()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    length: int | None = None  # announced; what is missing is never sent
    chunked: bool = False
    wait: float = 0.0  # before anything is sent
    trickle: float = 0.0  # between two bytes
    silent: bool = False  # hangs up


def saying(answer: Any) -> Reply:
    return Reply(json.dumps(answer).encode())


class Server(ThreadingHTTPServer):
    """Gives its replies one after the other, then good ones; keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.seen: list[dict[str, Any]] = []
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/classify"

    def service(self, *args: Any, **kwargs: Any) -> HTTPLabelService:
        return HTTPLabelService(self.url, *args, **{"timeout": 5.0, "backoff": 0.001} | kwargs)

    def handle_error(self, *args: Any) -> None:  # a client that has gone
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        server.seen.append({"method": self.command, "path": self.path, "headers": self.headers, "body": body})
        reply = server.replies.pop(0) if server.replies else Reply()
        server.closing.wait(reply.wait)
        if reply.silent:
            self.close_connection = True
            return
        self.send_response(reply.status, reply.reason)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            reply.body = b"%x\r\n%s\r\n" % (len(reply.body), reply.body) + (b"" if reply.length else b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(reply.length or len(reply.body)))
        self.end_headers()
        for part in [reply.body] if not reply.trickle else [bytes([byte]) for byte in reply.body]:
            self.wfile.write(part)
            server.closing.wait(reply.trickle)
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


class Time:
    """A clock that only sleeping moves."""

    def __init__(self, service: HTTPLabelService) -> None:
        self.now, self.slept = 100.0, []
        service._clock, service._sleep = lambda: self.now, self.sleep

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(seconds)
        self.now += seconds


def pictures(count: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 5, 7, generator=torch.Generator().manual_seed(0))


def sent_pixels(seen: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(seen["body"])))
