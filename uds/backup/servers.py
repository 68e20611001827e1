"""The servers that have to do with backups: what root does there, and the stream of a backup's file."""

import hashlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Protocol, Self

from uds import ssh
from uds.stack import ROOT, OperatorError, Stack

# Modules go to the server by standard input, as everything does: sudo writes arguments into its log.
_BOOT = """
import json, sys, types
for name, text in json.loads(sys.stdin.buffer.readline()):
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
"""
# By their files: to import them here would bring Pulumi, which takes a while.
_MODULES = {
    "components.mysql.reconcile": ROOT / "components" / "mysql" / "reconcile.py",
    "uds.backup.on_server": ROOT / "uds" / "backup" / "on_server.py",
}

DATABASE = "db-1"


@dataclass(frozen=True)
class Servers:
    """A way to the servers as root. `ssh` begins a command line."""

    ssh: list[str]
    sudo_password: str

    @classmethod
    @contextmanager
    def of(cls, stack: Stack) -> Iterator[Self]:
        """Of this stack.

        Raises:
            OperatorError: it has no servers yet, or there is no ssh on this machine.
        """
        with ssh.opened(stack, stack.outputs()) as command:
            yield cls(command, stack.section("deploy")["sudoPassword"])

    def ask(self, server: str, action: str, feed: Callable[[IO[bytes]], None] | None = None, **request: object) -> Any:  # noqa: ANN401 - JSON
        """Have `on_server` do something on a server, with what `feed` writes as its input, and return its answer.

        Raises:
            OperatorError: the server refused it, or can't be reached.
        """
        program = ["python3", "-I", "-X", "utf8", "-c", _BOOT]
        with tempfile.TemporaryFile() as errors, self._root(server, program, errors) as process:
            stdin, stdout = _pipes(process)
            try:
                modules = [(name, path.read_text()) for name, path in _MODULES.items()]
                for line in (modules, {"action": action, **request}):
                    stdin.write(json.dumps(line).encode() + b"\n")
                if feed:
                    feed(stdin)
            except BrokenPipeError:
                # The answer says why.
                pass
            finally:
                with suppress(BrokenPipeError):
                    stdin.close()
                answer = stdout.read()
            if process.wait() or not answer:
                raise OperatorError(f"{server}: {_said(errors)}") from None
        found = json.loads(answer)
        if "error" in found:
            raise OperatorError(f"{server}: {found['error']}")
        return found

    def run(self, server: str, *command: str) -> tuple[int, str]:
        """Run a program as root; its exit status and what it printed.

        Raises:
            OperatorError: the server can't be reached.
        """
        with tempfile.TemporaryFile() as errors, self._root(server, command, errors) as process:
            stdin, stdout = _pipes(process)
            stdin.close()
            text = stdout.read().decode(errors="replace")
            status = process.wait()
            # ssh's own.
            if status == 255:
                raise OperatorError(f"{server}: {_said(errors)}")
        return status, text

    @contextmanager
    def file(self, server: str, path: str, offset: int, seen: Callable[[int], None]) -> Iterator["Download"]:
        """A file of a server from `offset` (in bytes) on; `seen` hears how many bytes have come.

        Raises:
            OperatorError: it can't be read to its end, if the end was asked for.
        """
        command = ["tail", "-c", f"+{offset + 1}", "--", path]
        with tempfile.TemporaryFile() as errors, self._root(server, command, errors) as process:
            stdin, stdout = _pipes(process)
            stdin.close()
            download = Download(stdout, seen)
            try:
                yield download
            finally:
                # A connection that breaks looks like a file that ends.
                if download.ended and process.wait():
                    raise OperatorError(f"{server}: {_said(errors)}") from None

    @contextmanager
    def _root(
        self, server: str, command: list[str] | tuple[str, ...], errors: IO[bytes]
    ) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [*self.ssh, server, f"sudo -k -S -p '' -- {shlex.join(command)}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        stdin, stdout = _pipes(process)
        try:
            with suppress(BrokenPipeError):
                stdin.write(self.sudo_password.encode() + b"\n")
                stdin.flush()
            yield process
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                stdin.close()
            stdout.close()


class Readable(Protocol):
    """Whatever bytes come from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""


class Download:
    """Reads a stream, and knows what it has read."""

    def __init__(self, stream: Readable, seen: Callable[[int], None]) -> None:
        """Read from `stream`, and tell `seen` how much."""
        self._stream = stream
        self._seen = seen
        self._digest = hashlib.sha256()
        self.ended = False
        """Whether there is nothing more."""

    def add(self, earlier: bytes) -> None:
        """What was read before, by another one."""
        self._digest.update(earlier)

    def read(self, size: int) -> bytes:
        """The next bytes: as many as asked for, unless the stream ends."""
        block = self._stream.read(size)
        self._digest.update(block)
        self._seen(len(block))
        self.ended = len(block) < size
        return block

    @property
    def sha256(self) -> str:
        """Of all that was read, in hexadecimal."""
        return self._digest.hexdigest()


def _said(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read(1000).decode(errors="replace").strip() or "the connection ended"


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:  # they are pipes, as asked for
        raise OperatorError("ssh could not be started.")
    return process.stdin, process.stdout
