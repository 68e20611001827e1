"""Where a rehearsal's alerts arrive: a mail server, Slack and Pushover of our own, on the operator's address.

They speak the real protocols, with certificates of an authority made for the occasion, which servers trust because
`alerts.caCertificate` says so. Slack's address is the webhook's; Pushover's is fixed, so a server finds it by its hosts
file (`HOSTS`).
"""

import json
import logging
import ssl
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from uds.certificates import Authority

# aiosmtpd warns with every login of what it does itself, and takes no TLS for one but that of STARTTLS.
logging.getLogger("mail.log").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS", UserWarning)

STARTTLS, TLS = 587, 465
_PUSHOVER = "api.pushover.net"
_WEBHOOK = "/services/T00000000/B00000000/rehearsal"
_USER, _PASSWORD = "alerts", "rehearsal-of-a-password"
_TOKEN, _PUSHOVER_USER = "rehearsal-of-a-token", "rehearsal-of-a-user"


@dataclass(frozen=True)
class Received:
    """An alert that came. `moment` is when, on this machine's monotonic clock."""

    channel: str
    title: str
    text: str
    moment: float


@dataclass
class Sinks:
    """A mail server, Slack and Pushover, listening as long as the context lasts; `stop` and `start` are an outage."""

    address: str
    authority: Authority = field(default_factory=lambda: Authority.new("alerts of a rehearsal"))
    received: list[Received] = field(default_factory=list)
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    _mail: list[Controller] = field(default_factory=list)
    _web: ThreadingHTTPServer | None = None

    @property
    def hosts(self) -> str:
        """The line for a server's hosts file."""
        return f"{self.address} {_PUSHOVER}"

    def settings(self, security: str = "starttls") -> dict[str, object]:
        """The stack's `alerts` for these sinks."""
        return {
            "email": {
                "host": self.address,
                "port": STARTTLS if security == "starttls" else TLS,
                "security": security,
                "user": _USER,
                "password": _PASSWORD,
                "sender": "alerts@rehearsal.test",
                "recipients": ["operator@rehearsal.test", "other@rehearsal.test"],
            },
            "slack": {"webhook": f"https://{self.address}{_WEBHOOK}"},
            "pushover": {"token": _TOKEN, "user": _PUSHOVER_USER},
            "caCertificate": self.authority.certificate_pem,
        }

    def of(self, channel: str, word: str = "") -> list[Received]:
        """What came on a channel, in its order, with `word` in its title."""
        return [one for one in self.received if one.channel == channel and word in one.title]

    def start(self, authority: Authority | None = None) -> None:
        """Listen; with certificates of another authority, if one is given."""
        context = self._context(authority or self.authority)
        for port, implicit in ((STARTTLS, None), (TLS, context)):
            # The context of STARTTLS is what aiosmtpd calls tls_context.
            controller = Controller(
                _Mailbox(self),
                hostname=self.address,
                port=port,
                ssl_context=implicit,
                tls_context=None if implicit else context,
                require_starttls=not implicit,
                # It takes STARTTLS alone for TLS.
                auth_require_tls=not implicit,
                auth_required=True,
                authenticator=_authenticate,
            )
            controller.start()
            self._mail.append(controller)
        self._web = _Web((self.address, 443), _handler(self))
        self._web.socket = context.wrap_socket(self._web.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more."""
        for controller in self._mail:
            controller.stop()
        self._mail.clear()
        if self._web:
            self._web.shutdown()
            self._web.server_close()
            self._web = None

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and forget the certificates."""
        self.stop()
        self._folder.cleanup()

    def _context(self, authority: Authority) -> ssl.SSLContext:
        certificate, key = authority.issue_server(_PUSHOVER, IPv4Address(self.address))
        # Python's TLS reads its own certificate from files only.
        pem = Path(self._folder.name) / "sink.pem"
        pem.write_text(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context


class _Web(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A server that doesn't trust this one is no news."""


class _Mailbox:
    def __init__(self, sinks: Sinks) -> None:
        self._sinks = sinks

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        message = message_from_bytes(content, policy=default)
        body = message.get_body()
        text = str(body.get_content()).replace("\r\n", "\n") if body else ""
        self._sinks.received.append(Received("email", str(message["Subject"]), text, time.monotonic()))
        return "250 taken by the rehearsal"


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:  # noqa: ANN401 - aiosmtpd's
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (_USER.encode(), _PASSWORD.encode())
    return AuthResult(success=known)


def _handler(sinks: Sinks) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 15

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            alert = None
            if self.path == _WEBHOOK and self.headers["Content-Type"] == "application/json":
                alert = _slack(json.loads(body))
            elif self.path == "/1/messages.json" and self.headers["Host"] == _PUSHOVER:
                alert = _pushover({name: values[0] for name, values in parse_qs(body).items()})
            if alert:
                sinks.received.append(alert)
            self.send_response(200 if alert else 403)
            self.end_headers()
            self.wfile.write(b"ok" if alert else b"invalid_token")

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    return Handler


def _slack(message: Mapping[str, str]) -> Received:
    title, _, text = message["text"].partition("\n")
    return Received("slack", title, text, time.monotonic())


def _pushover(form: Mapping[str, str]) -> Received | None:
    if (form.get("token"), form.get("user")) != (_TOKEN, _PUSHOVER_USER):
        return None
    return Received("pushover", form["title"], form["message"], time.monotonic())
