"""A person at a server's console, as the provider shows it: a terminal on which somebody logs in and types."""

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from select import select

from rehearsal.podman import global_options
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.people import Person

_SECONDS = 60

_QUESTION = re.compile(r"[Pp]assword[^\n]*: $")
# What is typed before the shell shows it is lost.
_PROMPT = re.compile(r"[$] $")
# Typed behind a line, and told from its own echo.
_END = r"; printf 'uds-%s-end\n' $?"
_ENDED = re.compile(r"uds-(\d+)-end\n.*[$] $", re.DOTALL)


class Terminal(AbstractContextManager["Terminal"]):
    """The console of a server, with a person logged in by name and password."""

    def __init__(self, up: Rehearsal, server: str, person: Person) -> None:
        """Log in."""
        name = up.realm().network.namespace(up.machine(server).number)
        login = ["podman", *global_options(), "exec", "-it", name, "login", person.name]
        # `script` is the screen and keyboard that podman asks for.
        self._process = subprocess.Popen(
            ["script", "-qec", " ".join(login), "/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._password = person.password
        self._seen = ""
        self._until(_QUESTION)
        self._send(person.password)
        self._until(_PROMPT)

    def type(self, line: str, answers: Sequence[str] = ()) -> str:
        """Type a line, with the person's password where sudo asks for it, and answer other questions in this order.

        Returns what was shown. Fails if the line ends with another status than 0.
        """
        left = list(answers)
        self._send(line + _END)
        shown = ""
        while (found := self._until(_QUESTION, _ENDED)).re is _QUESTION:
            shown += self._seen
            self._send(self._password if "[sudo]" in self._seen else left.pop(0))
        shown += self._seen
        assert found[1] == "0", shown
        return shown

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin
        self._seen = ""
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def _until(self, *patterns: re.Pattern[str]) -> re.Match[str]:
        """Wait until one of these is shown; what was is in `_seen`."""
        assert self._process.stdout
        while True:
            for pattern in patterns:
                if found := pattern.search(self._seen):
                    return found
            ready, _, _ = select([self._process.stdout], [], [], _SECONDS)
            read = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            assert read, f"the console says nothing more than {self._seen!r}"
            self._seen += read.decode(errors="replace").replace("\r", "")
