"""A Hugging Face Hub on the loopback interface, for the real client: protocol, permissions, faults.

It supports the requests of `huggingface_hub` 2.4: accounts, repositories, preupload, LFS (in one or
several parts, with verification), commits and pull requests, listings, downloads with ETags, ranges
and redirects to another host, and tokens for Xet storage. A test specifies the faults in advance.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_routes import ROUTES, Request, Response
from hub_state import LFS_SUFFIXES, HubState

CHUNK = 1 << 16


@dataclass
class Fault:
    """A fault in the next requests that match.

    Attributes:
        pattern: regular expression for ``METHOD /path``.
        kind: "status" (respond with it), "drop" (close the connection after some bytes of the
            request's body), "lose" (execute the request, and close without a response), "truncate"
            (close after some bytes of the response), "corrupt" (change one byte of the response),
            "damage" (change one byte of an upload) or "slow" (a pause before each piece of the
            response).
        times: how many requests it affects.
    """

    pattern: str
    kind: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    pause: float = 0.0


@dataclass(frozen=True)
class Seen:
    """A received request, for assertions of tests."""

    line: str
    token: str | None
    sent: int
    headers: dict[str, str]


class LocalHub:
    """The server; use it as a context. ``url`` is its address."""

    def __init__(self, folder: Path) -> None:
        self.state = HubState(folder)
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.hooks: list[tuple[str, Callable[[], object]]] = []
        self.static: dict[str, bytes] = {}  # files outside of repositories, by path
        self.part_size: int | None = None  # uploads of more than this come in several parts
        self.page_size = 3  # entries of a page of a listing, so that there are several
        self.lfs_suffixes = LFS_SUFFIXES
        self.xet = False
        self.xet_store = f"local://{folder / 'xet'}"
        self._server = Server(("127.0.0.1", 0), self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host, like a content delivery network, which must not receive a token.
        self.cdn = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def xet_hashes(self) -> dict[str, str]:
        """Return SHA-256 → Xet hash of the files in Xet storage."""
        return xet_hashes(self.state.folder / "xet" / "xet" / "xorbs" / "shards")

    def fail(self, pattern: str, kind: str, **options: Any) -> None:
        """Add a fault to the next requests that match."""
        self.faults.append(Fault(pattern, kind, **options))

    def meanwhile(self, pattern: str, action: Callable[[], object]) -> None:
        """Call `action` just before the next request that matches, as a change by someone else."""
        self.hooks.append((pattern, action))

    def run_hooks(self, line: str) -> None:
        """Run the hooks that precede a request."""
        with self.state.lock:
            due = [hook for hook in self.hooks if re.search(hook[0], line)]
            for hook in due:
                self.hooks.remove(hook)
                hook[1]()

    def fault_for(self, line: str) -> Fault | None:
        """Return the fault that applies to a request, and count it."""
        with self.state.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def lines(self, pattern: str) -> list[str]:
        """Return the requests that matched so far."""
        return [seen.line for seen in self.seen if re.search(pattern, seen.line)]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub: LocalHub) -> None:
        super().__init__(address, Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: several tests close the connection on purpose."""


class Handler(BaseHTTPRequestHandler):
    """Reads a request, and sends the response of its route with a fault, if there is one."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would wait 40 ms for the acknowledgement of its headers
    server: Server

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def handle_any(self) -> None:
        """Handle one request."""
        hub, line = self.server.hub, f"{self.command} {self.path}"
        hub.run_hooks(line)
        fault = hub.fault_for(line)
        length = int(self.headers.get("Content-Length") or 0)
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        hub.seen.append(Seen(line, bearer, length, self.titled()))
        if fault and fault.kind == "drop":
            self.rfile.read(min(fault.after, length))
            return self.hang_up()
        request = self.read_request(length, bearer)
        if fault and fault.kind == "damage" and request.uploaded is not None:
            data = request.uploaded.read_bytes()
            request.uploaded.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        if fault and fault.kind == "status":
            body = json.dumps({"error": "a fault of the test"}).encode()
            return self.send(Response(fault.status, fault.headers, body), None)
        with hub.state.lock:
            response = self.route(request)
        if fault and fault.kind == "lose":
            return self.hang_up()
        return self.send(response, fault)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def read_request(self, length: int, token: str | None) -> Request:
        """Read the body: large ones to a file, so that the server's memory stays small."""
        split = urlsplit(self.path)
        uploaded = None
        body = b""
        if self.command == "PUT":
            uploaded = self.server.hub.state.folder / f"upload-{threading.get_ident()}"
            with uploaded.open("wb") as stream:
                while length > 0:
                    chunk = self.rfile.read(min(CHUNK, length))
                    if not chunk:
                        break
                    stream.write(chunk)
                    length -= len(chunk)
        else:
            body = self.rfile.read(length)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        return Request(
            self.server.hub, self.command, split.path, query, self.titled(), body, uploaded,
            self.server.hub.state.accounts.get(token or ""), token,
        )  # fmt: skip

    def titled(self) -> dict[str, str]:
        """Return the request's headers, with names written as in the RFCs."""
        return {name.title(): value for name, value in self.headers.items()}

    def route(self, request: Request) -> Response:
        """Find the route of a request."""
        for pattern, respond in ROUTES:
            method, _, path = pattern.partition(" ")
            match = re.fullmatch(path, request.path)
            if match and self.command in method.split("|"):
                return respond(request, *(unquote(group) for group in match.groups()))
        return Response(404, {}, json.dumps({"error": f"no route for {self.path}"}).encode())

    def send(self, response: Response, fault: Fault | None) -> None:
        """Send a response, with a fault if there is one."""
        size = response.size
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in response.headers:
            self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        for chunk in response.chunks(CHUNK):
            if fault and fault.kind == "slow":
                threading.Event().wait(fault.pause)
            if fault and fault.kind == "truncate" and sent + len(chunk) > fault.after:
                self.wfile.write(chunk[: fault.after - sent])
                self.close_connection = True
                return
            if fault and fault.kind == "corrupt" and sent <= fault.after < sent + len(chunk):
                at = fault.after - sent
                chunk = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]  # noqa: PLW2901
            self.wfile.write(chunk)
            sent += len(chunk)

    def hang_up(self) -> None:
        """Close the connection immediately, as after a network failure."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.rfile = self.wfile = Nowhere()  # type: ignore[assignment]


class Nowhere:
    """A stream that discards the rest of a closed connection."""

    closed = False

    def readline(self, *_: object) -> bytes:
        return b""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def xet_hashes(shards: Path) -> dict[str, str]:
    """Return SHA-256 → Xet hash of the files in Xet storage on the disk.

    A shard lists files in records of 48 bytes: the file's hash and flags; its segments; if the
    flags specify it, as many records of verification; and a record with the SHA-256.
    """
    hashes = {}
    for shard in shards.glob("*.mdb"):
        data, at = shard.read_bytes(), 48
        while at + 48 <= len(data) and data[at : at + 32] != b"\xff" * 32:
            flags, count = struct.unpack_from("<II", data, at + 32)
            verification, metadata = bool(flags >> 31), bool(flags >> 30 & 1)
            last = at + 48 * (count * (2 if verification else 1) + 1)
            if metadata:
                hashes[_xet_text(data[last : last + 32])] = _xet_text(data[at : at + 32])
            at = last + 48 * metadata
    return hashes


def _xet_text(digest: bytes) -> str:
    """Return a hash as Xet writes it: four little-endian words in hexadecimal digits."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until a condition is true, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        threading.Event().wait(0.01)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
