"""A live server as the checks see it: testinfra's view of it, over one connection as root that only reads."""

import base64
import json
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from components.files import ServerFile
from components.settings import Settings
from uds.stack import OperatorError

# One line of JSON a command, one a result. A connection for each command would take minutes.
_AGENT = """
import base64, json, subprocess, sys
for line in sys.stdin:
    done = subprocess.run(["sh", "-c", json.loads(line)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    texts = (base64.b64encode(text).decode() for text in (done.stdout, done.stderr))
    print(json.dumps([done.returncode, *texts]), flush=True)
"""


class RootShell(BaseBackend, AbstractContextManager["RootShell"]):  # type: ignore[misc] # testinfra has no types
    """testinfra's way to a server: a program there that runs what it is told, as root, until the connection ends."""

    NAME = "uds"

    def __init__(self, server: str, ssh: Sequence[str], sudo_password: str) -> None:
        """Log in to `server` with the command line `ssh`.

        Raises:
            OperatorError: there is no way in.
        """
        super().__init__(server)
        # Python's own locale would be asked for at the first text that isn't ASCII.
        self._encoding = "utf-8"
        command = f"sudo -k -S -p '' -- python3 -c {shlex.quote(_AGENT)}"
        self._process = subprocess.Popen(
            [*ssh, server, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._send(sudo_password)
        self._ask("true")

    def run(self, command: str, *args: str, **_kwargs: Any) -> CommandResult:  # noqa: ANN401 - testinfra's signature
        """Run one command."""
        text = self.get_command(command, *args)
        status, stdout, stderr = self._ask(text)
        return self.result(status, self.encode(text), base64.b64decode(stdout), base64.b64decode(stderr))

    def __exit__(self, *_: object) -> None:
        """Log out."""
        self._process.kill()
        self._process.wait()

    def _ask(self, command: str) -> tuple[int, str, str]:
        self._send(json.dumps(command))
        answer = self._process.stdout.readline() if self._process.stdout else ""
        if not answer:
            said = self._process.stderr.read().strip() if self._process.stderr else ""
            raise OperatorError(f"{self.hostname}: {said or 'the connection ended'}")
        status, stdout, stderr = json.loads(answer)
        return status, stdout, stderr

    def _send(self, line: str) -> None:
        if self._process.stdin is None:  # it is a pipe, as asked for above
            raise OperatorError("ssh could not be started.")
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer that doesn't come says why


@dataclass(frozen=True)
class Server:
    """A server, and what the stack says that it is.

    `files` is what the last `pulumi up` put there, by capability. `ssh` begins a command line that reaches any server.
    """

    name: str
    role: str
    host: Host
    settings: Settings
    outputs: dict[str, Any]
    files: dict[str, list[ServerFile]]
    ssh: list[str]

    @property
    def facts(self) -> dict[str, str]:
        """What the stack's outputs say of it."""
        facts: dict[str, str] = self.outputs["servers"][self.name]
        return facts

    def read(self, command: str) -> str:
        """What a command prints; it must succeed."""
        return str(self.host.check_output(command))
