"""An alert, and the words in which people read it."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

SEVERITIES = ("info", "warning", "critical")

# Longer than anybody reads on a phone. The journal has everything.
_SUBJECT, _TEXT = 200, 4000


@dataclass(frozen=True)
class Alert:
    """What happened. `number` is the queue's own; `time` is in seconds since 1970."""

    subject: str
    text: str = ""
    severity: str = "warning"
    time: float = field(default_factory=time.time)
    number: int = 0

    def to_json(self) -> str:
        """On one line, whatever is in it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Alert":
        """Read `to_json`, and what others send in that form.

        Raises:
            ValueError: it is something else.
        """
        values = json.loads(text)
        if not isinstance(values, Mapping) or not isinstance(values.get("subject"), str):
            raise ValueError("an alert has a subject")
        try:
            alert = cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if alert.severity not in SEVERITIES or not isinstance(alert.text, str):
            raise ValueError(f"the severity is one of {', '.join(SEVERITIES)}, and the text is a text")
        return alert


def plain(text: str) -> str:
    """The text with everything invisible made visible, so that no name can forge a line, a header or a direction."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def subject(alert: Alert, server: str) -> str:
    """One line that says what happened, and where."""
    return f"[{server}] {plain(alert.subject)}"[:_SUBJECT]


def text(alert: Alert, server: str, zone: str) -> str:
    """The whole: what happened, on which server, and when, in UTC and in local time."""
    utc = datetime.fromtimestamp(alert.time, UTC)
    local = utc.astimezone(ZoneInfo(zone))
    said = "\n".join(plain(line) for line in alert.text.splitlines())[:_TEXT]
    lines = (
        said,
        f"Server: {server}",
        f"Severity: {alert.severity}",
        f"Time: {utc:%Y-%m-%d %H:%M:%S} UTC",
        f"Local time: {local:%Y-%m-%d %H:%M:%S %Z} ({zone})",
    )
    return "\n".join(line for line in lines if line)
