"""The demo application: notes in a database, served over HTTPS only. See README.md."""

import html
import json
import logging
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pymysql

CONFIGURATION = Path("/usr/local/application/config/config-production.json")
LONGEST_NOTE = 500
LARGEST_BODY = 16 * 1024

log = logging.getLogger("demo")

HEADERS = {
    # Two years: a browser that was here once never asks over HTTP again.
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Notes</title>
<h1>Notes</h1>
<p>Served over HTTPS, kept in a database over TLS that was verified.</p>
<ul>{notes}</ul>
</html>
"""


class Notes:
    """The notes in the database. All SQL of the demo is here (guide, 4.4)."""

    def __init__(self, database: Mapping[str, Any]) -> None:
        """Use the `database` of the configuration."""
        self._database = database

    def newest(self) -> list[dict[str, Any]]:
        """Up to 50 notes, the newest first."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id, text FROM demo_notes ORDER BY id DESC LIMIT %s", (50,))
            return [{"id": number, "text": text} for number, text in cursor.fetchall()]

    def write(self, text: str) -> int:
        """Keep a note; returns its number."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO demo_notes (text) VALUES (%s)", (text,))
            connection.commit()
            return int(cursor.lastrowid)

    def _connect(self) -> Any:  # noqa: ANN401 - PyMySQL has no types
        database = self._database
        return pymysql.connect(
            host=database["host"],
            port=database["port"],
            user=database["user"],
            password=database["password"],
            database=database["name"],
            charset="utf8mb4",
            connect_timeout=5,
            read_timeout=10,
            write_timeout=10,
            # Nobody else may play the database: its certificate must be our authority's, and for this address.
            ssl=ssl.create_default_context(cafile=database["caFile"]),
        )


def _plain(client_address: Sequence[Any]) -> str:
    # How an IPv4 visitor of an IPv6 socket is written.
    return str(client_address[0]).removeprefix("::ffff:")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "demo"
    sys_version = ""
    # Somebody who sends nothing holds a thread no longer than this.
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - as inherited
        # Visitors must not write lines of their own into the log.
        log.info("%s %s", _plain(self.client_address), (format % args).encode("unicode_escape").decode())

    def answer(self, status: HTTPStatus, kind: str, text: str, headers: Mapping[str, str]) -> None:
        """Send a whole answer."""
        content = text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Redirect(_Handler):
    """Sends every visitor of HTTP to HTTPS (guide, 4.2)."""

    host: str

    def do_GET(self) -> None:
        """Say where to go. The name is ours, never the visitor's word for it."""
        path = self.path if self.path.startswith("/") else "/"
        self.answer(HTTPStatus.PERMANENT_REDIRECT, "text/plain", "", {"Location": f"https://{self.host}{path}"})

    do_HEAD = do_POST = do_GET  # noqa: N815 - as inherited


class Application(_Handler):
    """What is served over HTTPS."""

    notes: Notes

    def do_GET(self) -> None:
        """Pages and lists."""
        match self.path:
            case "/health":
                self._send(HTTPStatus.OK, "text/plain; charset=utf-8", "ok\n")
            case "/notes":
                self._guarded(lambda: self._json(HTTPStatus.OK, self.notes.newest()))
            case "/":
                self._guarded(self._page)
            case _:
                self._json(HTTPStatus.NOT_FOUND, {"error": "There is no such page."})

    do_HEAD = do_GET  # noqa: N815 - as inherited

    def do_POST(self) -> None:
        """A new note."""
        length = self.headers.get("Content-Length", "")
        # What isn't read would be taken for the next request.
        self.close_connection = True
        if self.path != "/notes":
            self._json(HTTPStatus.NOT_FOUND, {"error": "There is no such page."})
        elif not length.isdigit() or int(length) > LARGEST_BODY:
            self._json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "Send at most 16 KiB, and say how much."})
        # A page of somebody else's can't make a browser send this type.
        elif self.headers.get_content_type() != "application/json":
            self._json(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "Send JSON."})
        else:
            text = self._text(self.rfile.read(int(length)))
            if text is None:
                self._json(HTTPStatus.BAD_REQUEST, {"error": 'Send {"text": "1 to 500 characters"}.'})
            else:
                self._guarded(lambda: self._json(HTTPStatus.CREATED, {"id": self.notes.write(text), "text": text}))

    @staticmethod
    def _text(body: bytes) -> str | None:
        try:
            value = json.loads(body)
        except ValueError:
            return None
        text = value.get("text") if isinstance(value, dict) else None
        return text if isinstance(text, str) and text.strip() and len(text) <= LONGEST_NOTE else None

    def _page(self) -> None:
        items = "".join(f"<li>{html.escape(note['text'])}</li>" for note in self.notes.newest())
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.format(notes=items))

    def _guarded(self, work: Callable[[], None]) -> None:
        """The visitor learns nothing of an error but that there was one (guide, 4.4)."""
        try:
            work()
        except (pymysql.MySQLError, OSError, ssl.SSLError) as error:
            log.warning("database: %s", error)
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "Something went wrong. Please try again."})

    def _json(self, status: HTTPStatus, value: object) -> None:
        self._send(status, "application/json", json.dumps(value) + "\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        self.answer(status, kind, text, HEADERS)


class Server(ThreadingHTTPServer):
    """A server on IPv4 and IPv6, where a slow visitor keeps nobody else waiting."""

    daemon_threads = True
    request_queue_size = 128
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, handler: type[_Handler], tls: ssl.SSLContext | None = None) -> None:
        """Listen on `port`, with TLS where a context for it is given."""
        self._tls = tls
        super().__init__(("", port), handler)

    def server_bind(self) -> None:
        """Both families on one socket."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as inherited
        """In the visitor's own thread: so is the handshake, which waits for the visitor."""
        request.settimeout(_Handler.timeout)
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with self._tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - as inherited
        """A visitor who went away is no news; anything else belongs in the log."""
        log.info("%s %s", _plain(client_address), sys.exc_info()[1])


def main() -> None:
    """Serve until somebody ends it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    configuration = json.loads(CONFIGURATION.read_text())
    ports, tls = configuration["ports"], configuration["tls"]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls["certificateFile"], tls["keyFile"])
    # Of TLS 1.2; all of 1.3 are good.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    Application.notes = Notes(configuration["database"])
    Redirect.host = configuration["settings"]["host"]
    servers = [Server(ports["http"], Redirect), Server(ports["https"], Application, context)]
    # In a thread: `shutdown` waits for the loop that it ends.
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    log.info("serving on %s", ", ".join(str(port) for port in ports.values()))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    for server in servers:
        server.shutdown()
        server.server_close()
    # Whoever is being answered gets a moment; a new release waits for us.
    time.sleep(0.3)
    log.info("ended")


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
