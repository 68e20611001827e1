"""The queue on the disk: every alert waits there, for each channel, until that channel has taken it.

What was put is safe when `put` returns, together with how far the journal has been read: so nothing is lost and nothing
is read twice, whenever this server or the program ends.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .alert import Alert

# Waiting alerts of a channel. The first ones tell how something began, so it is the later ones that are dropped.
LIMIT = 1000

_TABLES = """
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS alerts (number INTEGER PRIMARY KEY AUTOINCREMENT, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS waiting (channel TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (channel, number));
CREATE TABLE IF NOT EXISTS dropped (channel TEXT PRIMARY KEY, count INTEGER NOT NULL, since REAL NOT NULL);
CREATE TABLE IF NOT EXISTS memory (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Spool:
    """The queue in the file `path`, for these channels. May be used by several threads."""

    def __init__(self, path: Path, channels: Sequence[str], limit: int = LIMIT) -> None:
        """Open it, or make it. What waited for a channel that is no more is given up."""
        self._channels = tuple(channels)
        self._limit = limit
        self._changed = threading.Condition(threading.RLock())
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.executescript(_TABLES)
        with self._database:
            for table in ("waiting", "dropped"):
                # Only question marks and a name from above go into the statement: values are given apart.
                marks = ", ".join("?" * len(self._channels))
                self._database.execute(f"DELETE FROM {table} WHERE channel NOT IN ({marks})", self._channels)  # noqa: S608 - see above
            self._clear()

    def put(self, alerts: Sequence[Alert], memory: object = None) -> None:
        """Queue alerts for every channel, and remember `memory` (JSON), in one step."""

        def work() -> None:
            for alert in alerts:
                self._put(alert, self._channels)
            if memory is not None:
                self._database.execute("INSERT OR REPLACE INTO memory VALUES ('journal', ?)", (json.dumps(memory),))

        self._durably(work)

    def memory(self) -> Any:  # noqa: ANN401 - JSON
        """What was remembered last; None at the first start."""
        with self._changed:
            found = self._database.execute("SELECT value FROM memory WHERE key = 'journal'").fetchone()
        return json.loads(found[0]) if found else None

    def next(self, channel: str) -> Alert:
        """The oldest alert that waits for a channel. Waits until there is one."""
        with self._changed:
            while not (alert := self._oldest(channel)):
                self._changed.wait()
            return alert

    def delivered(self, channel: str, alert: Alert) -> None:
        """The channel has taken it."""

        def work() -> None:
            self._database.execute("DELETE FROM waiting WHERE channel = ? AND number = ?", (channel, alert.number))
            self._clear()
            self._confess(channel)

        self._durably(work)

    def waiting(self, channel: str) -> int:
        """How many alerts wait for a channel."""
        with self._changed:
            row = self._database.execute("SELECT count(*) FROM waiting WHERE channel = ?", (channel,)).fetchone()
            return int(row[0])

    def _oldest(self, channel: str) -> Alert | None:
        row = self._database.execute(
            "SELECT number, content FROM waiting JOIN alerts USING (number) WHERE channel = ? ORDER BY number LIMIT 1",
            (channel,),
        ).fetchone()
        return Alert.from_json(json.dumps({**json.loads(row[1]), "number": row[0]})) if row else None

    def _put(self, alert: Alert, channels: Sequence[str]) -> None:
        free = [channel for channel in channels if self.waiting(channel) < self._limit]
        for channel in set(channels) - set(free):
            self._database.execute(
                "INSERT INTO dropped VALUES (?, 1, ?) ON CONFLICT (channel) DO UPDATE SET count = count + 1",
                (channel, alert.time),
            )
        if free:
            number = self._database.execute("INSERT INTO alerts (content) VALUES (?)", (alert.to_json(),)).lastrowid
            rows = [(channel, number) for channel in free]
            self._database.executemany("INSERT INTO waiting VALUES (?, ?)", rows)

    def _confess(self, channel: str) -> None:
        """Say what was dropped. Only when there is room again, or the queue would fill with such confessions."""
        if self.waiting(channel) > self._limit // 2:
            return
        row = self._database.execute("SELECT count, since FROM dropped WHERE channel = ?", (channel,)).fetchone()
        if row:
            count, since = row
            self._database.execute("DELETE FROM dropped WHERE channel = ?", (channel,))
            words = f"{channel} did not take alerts, and its queue of {self._limit} was full. The journal has them all."
            moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
            self._put(Alert(f"{count} alerts were dropped since {moment}", words, "critical"), [channel])

    def _clear(self) -> None:
        self._database.execute("DELETE FROM alerts WHERE number NOT IN (SELECT number FROM waiting)")

    def _durably(self, work: Callable[[], None]) -> None:
        """Do it in one transaction. A full disk is waited for: an alert that was sent must not be sent again."""
        with self._changed:
            while True:
                try:
                    with self._database:
                        work()
                    break
                except sqlite3.OperationalError as error:
                    print(f"the queue can't be written: {error}", flush=True)
                    self._changed.wait(1)
            self._changed.notify_all()
