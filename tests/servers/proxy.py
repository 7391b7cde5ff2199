"""A proxy in front of an object store that fails on request: a share of the answers is 503, or all are 403.

What is signed stays as it is (the Host header names the proxy, so the store verifies a signature over that); of
the head only `Connection` changes, because every request gets a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator

ANSWERS = {
    "SlowDown": "503 Slow Down",
    "ServiceUnavailable": "503 Service Unavailable",
    "AccessDenied": "403 Forbidden",
}
THROTTLING = ("SlowDown", "ServiceUnavailable")
PIECE = 1 << 16


def bound_socket() -> socket.socket:
    """A socket with a free port of its own that nobody can connect to yet."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


class FaultProxy:
    """Serves a bound socket in a thread, passing everything to a port of this machine unless told to fail."""

    def __init__(self, bound: socket.socket, upstream: int) -> None:
        self._bound, self._upstream = bound, upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fault-proxy")
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draw = random.Random(0)
        self._share, self._codes, self._methods = 0.0, THROTTLING, frozenset[str]()
        self.passed: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def start(self) -> None:
        self._bound.listen(512)
        self._bound.setblocking(False)
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    @contextlib.contextmanager
    def failing(self, share: float, *codes: str, seed: int = 0, methods: str = "") -> Iterator[Counter[str]]:
        """Fails a share of the requests for the length of a block; gives the count of those failed so far, by method.

        Args:
            share: Of the requests, drawn at random.
            codes: S3 error codes to answer with, in turn at random; throttling if there are none.
            seed: Of the draw.
            methods: The only methods that fail, with spaces between; all if empty.
        """
        self._refused = Counter()
        self._draw = random.Random(seed)
        self._codes, self._methods = codes or THROTTLING, frozenset(methods.split())
        self._share = share
        try:
            yield self._refused
        finally:
            self._share = 0.0

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._bound, limit=1 << 20))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)  # asyncio itself holds no task that waits for a peer: it may be collected
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await client.readuntil(b"\r\n\r\n")
            method = head.split(b" ", 1)[0].decode()
            fails = not self._methods or method in self._methods
            if self._share and fails and self._draw.random() < self._share:
                self._refused[method] += 1
                await self._refuse(method, head, client, answer)
            else:
                self.passed[method] += 1
                await self._pass(head, client, answer)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            answer.close()
            await answer.wait_closed()

    async def _refuse(
        self, method: str, head: bytes, client: asyncio.StreamReader, answer: asyncio.StreamWriter
    ) -> None:
        """Answers with an error of S3's shape, after the body: a client that is still sending would not read it."""
        headers = headers_of(head)
        left = 0 if "expect" in headers else int(headers.get("content-length", "0"))
        while left and (piece := await client.read(min(left, PIECE))):
            left -= len(piece)
        code = self._draw.choice(self._codes)
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>fault</Message></Error>'
        lines = [f"HTTP/1.1 {ANSWERS[code]}", "Content-Type: application/xml", f"Content-Length: {len(body)}"]
        lines += ["Connection: close", "", "" if method == "HEAD" else body]
        answer.write("\r\n".join(lines).encode())
        await answer.drain()

    async def _pass(self, head: bytes, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        lines = head[:-4].split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(b"connection:")]
        upstream, request = await asyncio.open_connection("127.0.0.1", self._upstream)
        request.write(b"\r\n".join([*kept, b"Connection: close", b"", b""]))
        body = asyncio.ensure_future(copy(client, request))
        try:
            await copy(upstream, answer)
        finally:
            body.cancel()
            request.close()


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Passes bytes on as they come, until there are no more or nobody takes them."""
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(PIECE):
            sink.write(piece)
            await sink.drain()


def headers_of(head: bytes) -> dict[str, str]:
    """The headers of a request, names in lower case."""
    pairs = (line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:] if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
