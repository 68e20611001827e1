"""Somebody who calls the application all the time, and knows how long nobody answered."""

import socket
import ssl
import threading
import time
from typing import Self

# Between two calls. What is measured is not finer than this.
_PAUSE = 0.02


class Visitor:
    """Calls as long as the context lasts, with a new connection each time, and trusts one certificate."""

    def __init__(self, address: str, certificate: str, path: str) -> None:
        """Ask `https://address` for `path`."""
        self._address = address
        self._request = f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode()
        # It is for the public name, which need not lead here.
        self._context = ssl.create_default_context(cadata=certificate)
        self._context.check_hostname = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self.answers = 0
        """How often somebody answered."""
        self.away = 0.0
        """The longest time, in seconds, from a call that nobody answered to the next one that somebody did."""

    def __enter__(self) -> Self:
        """Begin to call."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self._end.set()
        self._thread.join()

    def _call(self) -> None:
        away_since = None
        while not self._end.wait(_PAUSE):
            begun = time.monotonic()
            answered = self._is_answered()
            if not answered and away_since is None:
                away_since = begun
            if away_since is not None:
                self.away = max(self.away, time.monotonic() - away_since)
            if answered:
                self.answers += 1
                away_since = None

    def _is_answered(self) -> bool:
        try:
            with (
                socket.create_connection((self._address, 443), timeout=3) as plain,
                self._context.wrap_socket(plain, server_hostname=self._address) as connection,
            ):
                connection.sendall(self._request)
                return connection.recv(12).split(b" ")[1:] == [b"200"]
        except OSError:
            return False
