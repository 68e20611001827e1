"""The service `uds-alerts`: reads the journal, takes what `uds-alert` brings, and delivers it.

It runs as an account of its own that may read the journal. A thread for each thing that can be waited for; whatever
ends unexpectedly ends the whole, and systemd starts it again where it was.
"""

import json
import os
import pwd
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .alert import Alert
from .channels import FAILURES, Channel, RefusedError, channels
from .events import IDENTIFIERS, Observer, Quiet
from .spool import Spool

# Seconds between tries, at most.
_PATIENCE = 60
# Tries after which the other channels say so: about ten minutes.
_TRIES = 14

# More than any alert has.
_LONGEST = 65536


class Service:
    """What the threads share."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        """Go on from what is in `folder`."""
        self.channels: Sequence[Channel] = tuple(channels(config))
        self.spool = Spool(folder / "queue.sqlite", [channel.name for channel in self.channels])
        self._lock = threading.Lock()
        self._memory = self.spool.memory() or {"cursor": "", "started": time.time(), "observer": {}}
        quiet = Quiet(config["allowedSources"], config["automation"])
        self._observer = Observer(quiet, _name_of, self._memory["observer"])

    def follow(self) -> None:
        """Read the journal for ever, from where it was left."""
        cursor = self._memory["cursor"]
        # At the very first start, this boot's entries tell who is logged in already. Nobody is alerted of the past.
        where = [f"--after-cursor={cursor}"] if cursor else ["--boot"]
        identifiers = [f"--identifier={name}" for name in IDENTIFIERS]
        command = ["journalctl", "--quiet", "--follow", "--no-tail", "--output=json", *where, *identifiers]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as journal:
            for line in journal.stdout or ():
                self.see(json.loads(line))
        raise RuntimeError(f"journalctl ended with {journal.returncode}")

    def see(self, entry: Mapping[str, object]) -> None:
        """Take note of one entry of the journal."""
        with self._lock:
            before = self._observer.state
            alert = self._observer.see(entry)
            if alert and alert.time < self._memory["started"]:
                alert = None
            # Most entries say nothing. To read them again would do no harm.
            if alert or self._observer.state != before:
                self._memory |= {"cursor": entry["__CURSOR"], "observer": self._observer.state}
                self.put([alert] if alert else [], self._memory)

    def put(self, alerts: Sequence[Alert], memory: object = None) -> None:
        """Queue alerts. The journal has them all, whatever becomes of the channels."""
        self.spool.put(alerts, memory)
        for alert in alerts:
            print(f"alert: {alert.to_json()}", flush=True)

    def listen(self, listener: socket.socket) -> None:
        """Answer who comes to the socket, which is root only."""
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                try:
                    connection.sendall(json.dumps(self._answer(_read(connection))).encode())
                except (OSError, ValueError) as error:
                    print(f"nothing came of a request: {error}", flush=True)

    def _answer(self, request: bytes) -> object:
        what = json.loads(request)
        if "test" in what:
            return self._test(Alert("A test of the alerts", "Somebody ran `uds alert test`. All is well.", "info"))
        if "changes" in what:
            return self._changed(what["changes"])
        self.put([Alert.from_json(request)])
        return {}

    def _changed(self, changes: Sequence[str]) -> object:
        """Something of root's changed. By whom nobody can say for certain; who was there, one can."""
        now = time.time()
        with self._lock:
            present = list(self._observer.present(now))
        who = ", ".join(sorted({str(login) for login in present})) or "nobody"
        if present and all(login.quiet for login in present):
            print(f"changed, with only {who} logged in: {'; '.join(changes)}", flush=True)
            return {}
        kinds = sorted({change.partition(":")[0] for change in changes})
        lines = [*changes, f"Logged in: {who}", "Method: seen in the files and in the kernel"]
        self.put([Alert(f"Changed: {', '.join(kinds)}", "\n".join(lines), "critical", now)])
        return {}

    def _test(self, alert: Alert) -> object:
        answers = []
        for channel in self.channels:
            try:
                answers.append([channel.name, True, channel.send(alert)])
            except FAILURES as error:
                answers.append([channel.name, False, str(error)])
        return {"answers": answers}

    def deliver(self, channel: Channel) -> None:
        """Hand a channel's alerts over for ever, in their order."""
        failures = 0
        while True:
            alert = self.spool.next(channel.name)
            try:
                answer = channel.send(alert)
            except FAILURES as error:
                pause = min(_PATIENCE, 2**failures)
                failures += 1
                if isinstance(error, RefusedError) and failures % _TRIES == 0 and self._told_instead(channel, alert):
                    failures = 0
                    self.spool.delivered(channel.name, alert)
                    continue
                if failures == _TRIES:
                    self.put([Alert(f"No alerts go through {channel.name}", str(error), "critical")])
                print(f"{channel.name} did not take alert {alert.number}, again in {pause} s: {error}", flush=True)
                time.sleep(pause)
                continue
            failures = 0
            self.spool.delivered(channel.name, alert)
            print(f"{channel.name} took alert {alert.number}: {answer}", flush=True)

    def _told_instead(self, channel: Channel, alert: Alert) -> bool:
        """Whether a channel takes another alert in the place of one that it refuses again and again.

        Then it is that alert's words, and not the channel: those behind it would wait for ever. Its own words are not
        among the new one's.
        """
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(alert.time))
        words = f"Its number is {alert.number}. The journal has it: journalctl -u uds-alerts"
        try:
            answer = channel.send(Alert(f"An alert of {moment} is refused by {channel.name}", words, "critical"))
        except FAILURES:
            return False
        print(f"{channel.name} refuses alert {alert.number}, and took word of it instead: {answer}", flush=True)
        return True


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _read(connection: socket.socket) -> bytes:
    found = b""
    while len(found) < _LONGEST and (part := connection.recv(_LONGEST)):
        found += part
    return found


def _or_end(work: Callable[[], None]) -> Callable[[], None]:
    """A thread that ends takes the whole service with it; systemd starts it again."""

    def run() -> None:
        try:
            work()
        finally:
            traceback.print_exc()
            os._exit(1)

    return run


def main() -> None:
    """The entry of the unit: standard input is the configuration, and systemd's first descriptor the socket."""
    service = Service(json.load(sys.stdin), Path(os.environ["STATE_DIRECTORY"]))
    listener = socket.socket(fileno=3)
    work = [service.follow, lambda: service.listen(listener)]
    work += [lambda channel=channel: service.deliver(channel) for channel in service.channels]  # type: ignore[misc] # mypy infers no lambda with a default
    threads = [threading.Thread(target=_or_end(one)) for one in work]
    for thread in threads:
        thread.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
