"""A proxy in front of a real HTTP server that resets, delays, corrupts and refuses requests on demand.

    with FaultProxy(endpoint) as proxy:                          # "http://127.0.0.1:8333"
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)        # the keys must be set too
        fault = proxy.answer(503, times=2, path="part-00001")    # for two requests
        proxy.cut(seconds=3)                                     # resets all connections for 3 s
        proxy.heal()                                             # ends all faults
        assert fault.hits == 2 and proxy.count("GET", "part-00001") == 3

It listens on loopback, on a port that the system chooses. Requests without a fault are passed on byte for
byte, the Host header included, so that signatures stay valid. Faults are applied in the order in which they
were added, each to requests whose method and target (path and query) contain its patterns, `times` times or
until `heal`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

CHUNK = 64 * 1024


class Request(NamedTuple):
    """A client's request: method, target (`/bucket/key?query`) and header lines in lower case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Fault:
    """A fault for matching requests; `hits` counts them."""

    kind: str
    amount: float
    method: str
    path: str
    times: int | None
    hits: int = 0


class FaultProxy:
    """The proxy; see the module's description."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._healed = threading.Event()
        self._cut_until = 0.0
        self._closed = False
        threading.Thread(target=self._accept, name="fault proxy", daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._healed.set()
        # Wakes the thread in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset_all()

    # Faults.

    def cut(self, seconds: float = 1e9) -> None:
        """Resets all connections, new ones too, for `seconds` or until `heal`."""
        self._cut_until = time.monotonic() + seconds
        self._reset_all()

    def heal(self) -> None:
        """Ends all faults; stalled requests continue."""
        self._cut_until = 0.0
        with self._lock:
            self._faults.clear()
            self._healed.set()
            self._healed = threading.Event()

    def answer(self, status: int, *, method: str = "", path: str = "", times: int | None = None) -> Fault:
        """Answers instead of the server: 503 as SlowDown, 403 as ExpiredToken, others as InternalError."""
        return self._add("answer", status, method, path, times)

    def delay(self, seconds: float, *, method: str = "", path: str = "", times: int | None = None) -> Fault:
        """Waits before a request is passed on."""
        return self._add("delay", seconds, method, path, times)

    def stall(self, *, method: str = "", path: str = "", times: int | None = None) -> Fault:
        """Accepts the request and does not answer until `heal`."""
        return self._add("stall", 0, method, path, times)

    def throttle(
        self, bytes_per_second: float, *, method: str = "", path: str = "", times: int | None = None
    ) -> Fault:
        """Limits the rate of the response's body."""
        return self._add("throttle", bytes_per_second, method, path, times)

    def corrupt(self, *, method: str = "GET", path: str = "", times: int | None = None) -> Fault:
        """Flips a bit in the middle of the response's body."""
        return self._add("corrupt", 0, method, path, times)

    def truncate(self, *, method: str = "GET", path: str = "", times: int | None = None) -> Fault:
        """Resets the connection after half of the response's body."""
        return self._add("truncate", 0, method, path, times)

    def count(self, method: str = "", path: str = "") -> int:
        """The number of requests received, answered or not."""
        with self._lock:
            return sum(method in request.method and path in request.target for request in self.requests)

    def _add(self, kind: str, amount: float, method: str, path: str, times: int | None) -> Fault:
        fault = Fault(kind, amount, method, path, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    # Serving.

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _reset_all(self) -> None:
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _reset(connection)

    def _serve(self, client: socket.socket) -> None:
        """Serves the requests of one client's connection, over one connection to the server."""
        server: socket.socket | None = None
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(client)
            if time.monotonic() < self._cut_until:
                return _reset(client)
            server = socket.create_connection(self._target, timeout=60)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(server)
            with client.makefile("rb") as asked, server.makefile("rb") as answered:
                while self._exchange(client, asked, server, answered):
                    pass
        except (OSError, ValueError):
            _reset(client)
        finally:
            for connection in (client, server):
                if connection is not None:
                    with self._lock:
                        self._open.discard(connection)
                    connection.close()

    def _exchange(
        self, client: socket.socket, asked: BinaryIO, server: socket.socket, answered: BinaryIO
    ) -> bool:
        """Passes on a request and its response; returns whether another may follow."""
        head = _read_head(asked)
        if not head:
            return False
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        request = Request(method, target, _headers(head))
        faults = self._apply_to(request)
        if "answer" in faults:
            client.sendall(_answer(int(faults["answer"])))
            return False
        if "stall" in faults:
            self._healed.wait()
        time.sleep(faults.get("delay", 0))
        server.sendall(head)
        # Another thread sends the body: a server may answer, or send 100 Continue, before it has all of it.
        body = threading.Thread(target=_pass_request, args=(asked, server, request.headers), daemon=True)
        body.start()
        while True:
            reply = _read_head(answered)
            if not reply:
                return False
            client.sendall(reply)
            status = int(reply.split(b" ", 2)[1])
            if status == 101:
                _pass_both_ways(client, asked, server, answered)
                return False
            if status >= 200:
                break
        headers = _headers(reply)
        empty = method == "HEAD" or status in (204, 304)
        if not empty:
            _pass_answer(answered, client, headers, faults)
        body.join(timeout=60)
        return "close" not in headers.get("connection", "") and not body.is_alive()

    def _apply_to(self, request: Request) -> dict[str, float]:
        """The faults that apply to this request; each hit is counted."""
        with self._lock:
            self.requests.append(request)
            met = {}
            for fault in self._faults:
                spent = fault.times is not None and fault.hits >= fault.times
                if not spent and fault.method in request.method and fault.path in request.target:
                    fault.hits += 1
                    met[fault.kind] = fault.amount
            return met


def _reset(connection: socket.socket) -> None:
    """Closes a connection by a TCP reset, as a crash does."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()


def _read_head(stream: BinaryIO) -> bytes:
    """The bytes of a message's head with its empty line; nothing if the connection was closed."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line in (b"\r\n", b"\n"):
            return b"".join(lines)
    return b""


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").lower().split("\r\n")[1:]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def _blocks(stream: BinaryIO, headers: dict[str, str]) -> Iterator[bytes]:
    """The body's bytes as received."""
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := stream.readline():
            length = int(size.split(b";")[0], 16)
            yield size
            if length == 0:
                while (line := stream.readline()) not in (b"\r\n", b"\n", b""):
                    yield line
                yield b"\r\n"
                return
            yield stream.read(length + 2)
    elif "content-length" in headers:
        left = int(headers["content-length"])
        while left > 0:
            block = stream.read(min(left, CHUNK))
            if not block:
                raise OSError("the other side hung up")
            left -= len(block)
            yield block


def _pass_request(stream: BinaryIO, server: socket.socket, headers: dict[str, str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for block in _blocks(stream, headers):
            server.sendall(block)


def _pass_both_ways(
    client: socket.socket, asked: BinaryIO, server: socket.socket, answered: BinaryIO
) -> None:
    """Passes bytes between both sides of a web socket until one closes it."""

    def pass_on(stream: BinaryIO, target: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while block := stream.read1(CHUNK):  # type: ignore[attr-defined]
                target.sendall(block)
        _reset(target)

    back = threading.Thread(target=pass_on, args=(asked, server), daemon=True)
    back.start()
    pass_on(answered, client)
    back.join(timeout=60)


def _pass_answer(
    stream: BinaryIO, client: socket.socket, headers: dict[str, str], faults: dict[str, float]
) -> None:
    half = int(headers.get("content-length", 0)) // 2
    passed = 0
    for block in _blocks(stream, headers):
        if passed <= half < passed + len(block):
            if "truncate" in faults:
                client.sendall(block[: half - passed])
                time.sleep(0.05)  # So that the sent bytes arrive before the reset.
                raise OSError("cut in the middle")
            if "corrupt" in faults:
                changed = bytearray(block)
                changed[half - passed] ^= 1
                block = bytes(changed)
        client.sendall(block)
        passed += len(block)
        if "throttle" in faults:
            time.sleep(len(block) / faults["throttle"])


def _answer(status: int) -> bytes:
    code = {503: "SlowDown", 403: "ExpiredToken"}.get(status, "InternalError")
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>told to</Message></Error>'
    )
    head = f"HTTP/1.1 {status} Fault\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
