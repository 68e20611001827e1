"""The ways to people: e-mail, Slack and Pushover. Each takes one alert, and says what the other side answered.

TLS is verified always, and a failure is an exception: `RefusedError` with the other side's words, or the library's own.
"""

import http.client
import json
import smtplib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from .alert import Alert, plain, subject, text

_SECONDS = 15

# What the vendors take: https://docs.slack.dev/messaging/formatting-message-text, https://pushover.net/api.
_PUSHOVER = "https://api.pushover.net/1/messages.json"
_PUSHOVER_TITLE, _PUSHOVER_TEXT = 250, 1024
_PUSHOVER_PRIORITY = {"info": -1, "warning": 0, "critical": 1}
_SLACK_MARKS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

FAILURES = (OSError, http.client.HTTPException, smtplib.SMTPException)


class RefusedError(OSError):
    """The other side didn't take the alert. The message is what it answered."""


class Channel(Protocol):
    """A way to people."""

    @property
    def name(self) -> str:
        """Of the channel, not of anybody."""

    def send(self, alert: Alert) -> str:
        """Deliver one alert, and return what the other side answered."""


@dataclass(frozen=True)
class Place:
    """Where alerts come from: the server, and the time zone of who reads them."""

    server: str
    zone: str


@dataclass(frozen=True)
class Email:
    """SMTP with authentication, inside TLS from the beginning (`tls`) or from STARTTLS on."""

    place: Place
    context: ssl.SSLContext
    host: str
    port: int
    security: str
    user: str
    password: str
    sender: str
    recipients: Sequence[str]
    name: str = "email"

    def send(self, alert: Alert) -> str:
        """Deliver one alert by e-mail."""
        with self._connected() as smtp:
            smtp.ehlo_or_helo_if_needed()
            if self.security == "starttls":
                smtp.starttls(context=self.context)
                smtp.ehlo()
            smtp.login(self.user, self.password)
            self._check(*smtp.mail(self.sender))
            for recipient in self.recipients:
                self._check(*smtp.rcpt(recipient))
            return self._check(*smtp.data(self._message(alert)))

    def _connected(self) -> smtplib.SMTP:
        if self.security == "tls":
            return smtplib.SMTP_SSL(self.host, self.port, self.place.server, timeout=_SECONDS, context=self.context)
        return smtplib.SMTP(self.host, self.port, self.place.server, timeout=_SECONDS)

    def _message(self, alert: Alert) -> bytes:
        # Nothing is folded: a subject is shorter than a mail's longest line.
        message = EmailMessage(policy=SMTP.clone(max_line_length=998))
        message["From"], message["To"] = self.sender, ", ".join(self.recipients)
        message["Subject"] = subject(alert, self.place.server)
        message["Date"] = format_datetime(datetime.fromtimestamp(alert.time, UTC))
        # The same for every try: where a connection broke after the last word, a mail server can tell.
        message["Message-ID"] = f"<{alert.number}.{alert.time:.0f}@{self.place.server}>"
        if alert.severity == "critical":
            message["X-Priority"] = "1"
        message.set_content(text(alert, self.place.server, self.place.zone))
        return bytes(message)

    @staticmethod
    def _check(code: int, answer: bytes) -> str:
        said = f"{code} {plain(answer.decode(errors='replace'))}"
        if not 200 <= code < 300:
            raise RefusedError(said)
        return said


@dataclass(frozen=True)
class Slack:
    """An incoming webhook. Its address is the secret."""

    place: Place
    context: ssl.SSLContext
    webhook: str
    name: str = "slack"

    def send(self, alert: Alert) -> str:
        """Deliver one alert to the webhook."""
        words = f"{subject(alert, self.place.server)}\n{text(alert, self.place.server, self.place.zone)}"
        escaped = "".join(_SLACK_MARKS.get(char, char) for char in words)
        return _post(self.webhook, "application/json", json.dumps({"text": escaped}), self.context)


@dataclass(frozen=True)
class Pushover:
    """Pushover's message API."""

    place: Place
    context: ssl.SSLContext
    token: str
    user: str
    name: str = "pushover"

    def send(self, alert: Alert) -> str:
        """Deliver one alert to the user's phones."""
        form = {
            "token": self.token,
            "user": self.user,
            "title": subject(alert, self.place.server)[:_PUSHOVER_TITLE],
            "message": text(alert, self.place.server, self.place.zone)[:_PUSHOVER_TEXT],
            "priority": str(_PUSHOVER_PRIORITY[alert.severity]),
            "timestamp": f"{alert.time:.0f}",
        }
        return _post(_PUSHOVER, "application/x-www-form-urlencoded", urlencode(form), self.context)


def channels(config: Mapping[str, Any]) -> Iterator[Channel]:
    """The channels that the configuration has (see `Monit.script_data` in the project)."""
    place = Place(config["server"], config["timezone"])
    context = ssl.create_default_context()
    if config.get("caCertificate"):
        context.load_verify_locations(cadata=config["caCertificate"])
    if "email" in config:
        yield Email(place, context, **config["email"])
    if "slack" in config:
        yield Slack(place, context, **config["slack"])
    if "pushover" in config:
        yield Pushover(place, context, **config["pushover"])


def _post(url: str, kind: str, body: str, context: ssl.SSLContext) -> str:
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.netloc, timeout=_SECONDS, context=context)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target or "/", body.encode(), {"Content-Type": kind})
        response = connection.getresponse()
        said = f"{response.status} {plain(response.read(200).decode(errors='replace'))}"
    finally:
        connection.close()
    if response.status != 200:
        raise RefusedError(said)
    return said
