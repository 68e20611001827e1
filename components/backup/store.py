#!/usr/bin/python3 -IB
"""Keeps backups on the backup server (guide, 3.11.2): takes one file a connection, and only ever adds.

Runs as root at the other end of the socket that the account of the backups writes to. Whoever writes there may be an
intruder on the database server, so that nothing that is kept depends on their word: times are this server's own, a name
is used once, a complete backup takes no more files, and a day has its limits.

What comes in: a line of JSON (`name`, `size`, `sha256`), then the file. What goes out: `stored NAME`, or
`refused: ...`. A backup is complete with its manifest, which comes last and names all of its files.
"""

import fcntl
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

STORE = Path("/var/backups/uds")
STAMP = Path("/var/lib/uds/backup/success")

# Kept are the newest seven complete backups, and everything that is younger than seven days.
KEEP_RUNS = 7
DAY = 86400.0
KEEP_SECONDS = 7 * DAY

# More than a day of honest work ever needs, also after a long outage; an intruder gets no further.
RUNS_A_DAY = 30
FILES_A_RUN = 200
SHARE_A_DAY = 0.5
RESERVE = 0.05

MANIFEST_BYTES = 1 << 20
HEADER_BYTES = 4096
SILENCE = 60.0
PATIENCE = 120.0

_NAME = re.compile(
    r"(?P<run>\d{8}T\d{6}Z)"
    r"(?:_[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.sql\.zst\.age|\.files\.tar\.zst\.age|\.accounts\.sql\.zst\.age|\.manifest\.json)"
)
_MANIFEST = ".manifest.json"
_PART = ".part"
_AGE = b"age-encryption.org/v1\n"


class RefusedError(Exception):
    """What was sent is not taken. The message says why, and nothing of what is kept."""


@dataclass(frozen=True)
class Held:
    """A file that is kept. `arrived` is when all of it was there, in seconds since 1970 by this server's clock."""

    name: str
    size: int
    arrived: float

    @property
    def run(self) -> str:
        """The backup that it belongs to."""
        return self.name[:16]

    @property
    def is_manifest(self) -> bool:
        """Whether it completes its backup."""
        return self.name.endswith(_MANIFEST)


@dataclass(frozen=True)
class Disk:
    """The file system of the store, in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class Announced:
    """What the sender says of the file that follows."""

    name: str
    size: int
    sha256: str

    @classmethod
    def parse(cls, line: bytes) -> "Announced":
        """Read the first line of a connection.

        Raises:
            RefusedError: it isn't what is expected.
        """
        try:
            said = json.loads(line)
            name, size, sha256 = said["name"], said["size"], said["sha256"]
        except (ValueError, TypeError, KeyError):
            raise RefusedError("the first line must be JSON with name, size and sha256") from None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RefusedError("this is no name of a backup's file")
        if type(size) is not int or size <= 0:
            raise RefusedError("size must be a number of bytes")
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise RefusedError("sha256 must be 64 hexadecimal digits")
        if name.endswith(_MANIFEST) and size > MANIFEST_BYTES:
            raise RefusedError(f"a manifest has at most {MANIFEST_BYTES} bytes")
        return cls(name, size, sha256)


def superfluous(held: Iterable[Held], now: float) -> set[str]:
    """The backups that need not be kept any longer, by the time at which they arrived.

    Whatever the clock says, the newest complete ones stay.
    """
    arrived: dict[str, float] = {}
    complete: dict[str, float] = {}
    for file in held:
        arrived[file.run] = max(arrived.get(file.run, 0.0), file.arrived)
        if file.is_manifest:
            complete[file.run] = file.arrived
    newest = sorted(complete, key=lambda run: (complete[run], run), reverse=True)[:KEEP_RUNS]
    return {run for run, when in arrived.items() if run not in newest and now - when >= KEEP_SECONDS}


def check(announced: Announced, held: Iterable[Held], disk: Disk, now: float) -> None:
    """Whether this file may be added to what is there.

    Raises:
        RefusedError: its backup is complete, or it is over a limit.
    """
    held = list(held)
    run = announced.name[:16]
    if any(file.run == run and file.is_manifest for file in held):
        raise RefusedError("this backup is complete: it takes no more files")
    if sum(file.run == run for file in held) >= FILES_A_RUN:
        raise RefusedError(f"a backup has at most {FILES_A_RUN} files")
    today = [file for file in held if abs(now - file.arrived) < DAY]
    runs = {file.run for file in today}
    if run not in runs and len(runs) >= RUNS_A_DAY:
        raise RefusedError(f"at most {RUNS_A_DAY} backups are taken in 24 hours")
    if sum(file.size for file in today) + announced.size > SHARE_A_DAY * disk.total:
        raise RefusedError(f"at most {SHARE_A_DAY:.0%} of the disk is taken in 24 hours")
    if disk.free - announced.size < RESERVE * disk.total:
        raise RefusedError(f"the disk is full: {RESERVE:.0%} of it stay free")


def check_manifest(text: bytes, run: str, held: Iterable[Held]) -> None:
    """Whether a manifest names exactly the files that are there.

    Raises:
        RefusedError: it doesn't.
    """
    try:
        named = {file["name"]: file["size"] for file in json.loads(text)["files"]}
    except (ValueError, TypeError, KeyError):
        raise RefusedError("the manifest is not one") from None
    if not named or named != {file.name: file.size for file in held if file.run == run}:
        raise RefusedError("the manifest names other files than those that have arrived")


class Store:
    """The folder in which backups are kept."""

    def __init__(self, folder: Path, stamp: Path) -> None:
        """Keep them in `folder`, and touch `stamp` for each that is complete."""
        self._folder, self._stamp = folder, stamp

    def held(self) -> Iterator[Held]:
        """Every file that is kept."""
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name):
                status = path.stat()
                yield Held(path.name, status.st_size, status.st_mtime)

    def take(self, connection: socket.socket) -> str:
        """Take one file, and return its name.

        Raises:
            RefusedError: it is not taken, or did not arrive whole.
        """
        stream = _Stream(connection)
        announced = Announced.parse(stream.line())
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(folder)
            # Whoever left one is gone: the lock was theirs.
            for part in self._folder.glob(f"*{_PART}"):
                part.unlink()
            self.prune()
            path = self._folder / announced.name
            if path.exists():
                # Sent again, because the answer got lost.
                if path.stat().st_size == announced.size and _digest(path) == announced.sha256:
                    return announced.name
                raise RefusedError("this file is here already, with another content")
            check(announced, self.held(), self._disk(), time.time())
            self._add(announced, stream, path)
            os.fsync(folder)
            if path.name.endswith(_MANIFEST):
                self.prune()
                self._stamp.touch()
        finally:
            os.close(folder)
        return announced.name

    def prune(self) -> None:
        """Remove what the rule doesn't keep."""
        held = list(self.held())
        unneeded = superfluous(held, time.time())
        # The manifest goes first: what is left by a kill in between is no backup any more.
        for file in sorted(held, key=lambda file: not file.is_manifest):
            if file.run in unneeded:
                (self._folder / file.name).unlink()
        for run in sorted(unneeded):
            print(f"removed: {run}", file=sys.stderr)

    def _add(self, announced: Announced, stream: "_Stream", path: Path) -> None:
        part = path.with_name(path.name + _PART)
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb", 0) as target:  # noqa: PTH123 - the mode from its first moment
                digest, first = hashlib.sha256(), b""
                for block in stream.blocks(announced.size):
                    first = (first + block[: len(_AGE)])[: len(_AGE)]
                    digest.update(block)
                    target.write(block)
                if digest.hexdigest() != announced.sha256:
                    raise RefusedError("it arrived with another checksum")
                os.fsync(target)
            if path.suffix == ".age" and first != _AGE:
                raise RefusedError("it is not encrypted with age")
            if path.name.endswith(_MANIFEST):
                check_manifest(part.read_bytes(), announced.name[:16], self.held())
            os.utime(part)
            # Unlike a rename, it fails where there is one already.
            path.hardlink_to(part)
        finally:
            part.unlink(missing_ok=True)

    def _disk(self) -> Disk:
        status = os.statvfs(self._folder)
        return Disk(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)


class _Stream:
    """What comes in, a line and then blocks; never more of it in memory than one block."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._rest = connection, b""

    def line(self) -> bytes:
        while b"\n" not in self._rest:
            block = self._receive(HEADER_BYTES)
            self._rest += block
            if not block or len(self._rest) > HEADER_BYTES:
                raise RefusedError("the first line is missing or too long")
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def blocks(self, size: int) -> Iterator[bytes]:
        missing = size
        while missing:
            block = self._rest or self._receive(1 << 18)
            self._rest = b""
            if not block:
                raise RefusedError(f"the connection broke: {missing} of {size} bytes are missing")
            missing -= len(block)
            if missing < 0:
                raise RefusedError("it is larger than was said")
            yield block
        if self._receive(1):
            raise RefusedError("it is larger than was said")

    def _receive(self, size: int) -> bytes:
        try:
            return self._connection.recv(size)
        except TimeoutError:
            raise RefusedError(f"nothing came for {SILENCE:.0f} seconds") from None


def _lock(folder: int) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise RefusedError("another file is just arriving") from None
            time.sleep(0.2)
        else:
            return


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Serve the connection that systemd hands over as standard input."""
    connection = socket.socket(fileno=0)
    connection.settimeout(SILENCE)
    try:
        answer = f"stored {Store(STORE, STAMP).take(connection)}"
        status = 0
    except RefusedError as error:
        answer, status = f"refused: {error}", 1
    except OSError as error:
        # A full or broken disk; without the path, which is none of the sender's business.
        answer, status = f"refused: the backup server's own fault: {error.strerror}", 1
    print(answer, file=sys.stderr)
    try:
        connection.sendall(f"{answer}\n".encode())
    except OSError:
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
