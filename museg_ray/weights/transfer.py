"""Spans of a weights file from one machine to another: out of the kernel's pages into a socket, and out of a socket
into the mapped file, so that no process ever holds them."""

import hmac
import json
import secrets
import socket
import socketserver
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Thread
from typing import BinaryIO, NamedTuple

from museg_ray.errors import WeightsLostError
from museg_ray.weights.spans import Span

SILENCE_S = 60.0
"""A connection over which nothing has come for so long is given up."""
_MAX_REQUEST_BYTES = 64 * 1024**2
Giving = Callable[[int], AbstractContextManager[BinaryIO]]
"""The file of a version, which stays as it is inside the block; KeyError where there is none."""


class Address(NamedTuple):
    """Of a machine's server."""

    host: str
    port: int
    token: str
    """Who has it gets weights; it travels through Ray alone."""


class Server:
    """Gives a machine's weights to others, each in a thread of its own."""

    def __init__(self, host: str, giving: Giving) -> None:
        token = secrets.token_hex()

        class Handler(socketserver.StreamRequestHandler):
            timeout = SILENCE_S

            def handle(self) -> None:
                asked = json.loads(self.rfile.readline(_MAX_REQUEST_BYTES))
                if not hmac.compare_digest(str(asked["token"]), token):
                    return
                with giving(asked["version"]) as file:
                    for start, end in asked["spans"]:
                        self.connection.sendfile(file, start, end - start)

        self._server = socketserver.ThreadingTCPServer((host, 0), Handler)
        self._server.daemon_threads = True
        # Whoever asks for what is not there, or goes away, finds out by the end of the connection.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        Thread(target=self._server.serve_forever, name="weights", daemon=True).start()
        self.address = Address(host, self._server.server_address[1], token)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def fetch(address: Address, version: int, spans: Sequence[Span], target: memoryview) -> int:
    """Fill `target`, a whole weights file, with these spans of another machine's; how many bytes came.

    Raises:
        WeightsLostError: it does not have them, or does not answer.
    """
    asked = {"token": address.token, "version": version, "spans": spans}
    try:
        with socket.create_connection(address[:2], timeout=SILENCE_S) as connection:
            connection.sendall(json.dumps(asked).encode() + b"\n")
            for start, end in spans:
                _receive(connection, target[start:end])
    except OSError as error:
        raise WeightsLostError(f"{address.host} did not give all of weights {version} ({error}).") from None
    return sum(end - start for start, end in spans)


def _receive(connection: socket.socket, target: memoryview) -> None:
    while target:
        if not (count := connection.recv_into(target)):
            raise ConnectionError("it has ended the connection")
        target = target[count:]
