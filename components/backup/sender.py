#!/usr/bin/python3 -IB
"""Makes a backup of the databases, encrypts it, and brings it to where it is kept (guide, 3.11.2).

Runs as root on the database server. What it reads goes through compression and encryption in one stream: nothing is
on the disk in clear, and no password is anywhere, since the engine knows root by the socket. The encrypted files wait
in the spool until every place has them, the backup server, the bucket, or both; what an outage left there goes with the
next run.
"""

import base64
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, Protocol

ETC = Path("/etc/uds/backup")
SPOOL = Path("/var/spool/uds-backup")
STAMP = Path("/var/lib/uds/backup/success")

# The spool leaves this much of its disk free: a full disk would stop the database.
RESERVE = 0.05

# The largest pipe that everyone may have. With the usual 64 KiB, programs wait for each other more often.
PIPE_BYTES = 1 << 20
BLOCK = 1 << 18

MANIFEST = ".manifest.json"
PART = ".part"
# An empty file beside one that waits: the place whose name follows has it already.
TAKEN = ".at-"

# The system's, as for every other program of the server.
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
# In larger files, S3 wants parts; two of them at a time keep a connection busy, and memory small.
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 2

# mysqldump and mariadb-dump write it when all went well.
DUMP_END = b"-- Dump completed"
# An archive of tar ends with two empty records.
TAR_END = bytes(1024)
END_BYTES = 1024

SUCCESS = frozenset({0})

# Python has splice(2), and not tee(2).
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.tee.restype = ctypes.c_ssize_t

# The engine's own programs. `--no-defaults`, so that nobody's file changes what is saved.
CLIENT = ("--no-defaults", "--protocol=socket", "--user=root")
DUMP = (
    *CLIENT,
    "--single-transaction",
    "--quick",
    "--routines",
    "--events",
    "--triggers",
    "--hex-blob",
    "--no-tablespaces",
    "--default-character-set=utf8mb4",
    "--max-allowed-packet=1G",
)
# The dumps write 4 KiB at a time otherwise, and wake up the next program for each.
BUFFERED = ("stdbuf", "--output=256K")
# The dump is the slowest of a stream: those behind it take the processors that it and the database leave.
BEHIND = ("nice", "--adjustment=10")
# Without the transactions' ids, which belong to one server: a copy in another could not be filled.
MYSQL_DUMP = (*DUMP, "--set-gtid-purged=OFF")


class BackupError(Exception):
    """A backup, or a part of it, can't be made or brought away. The message says why."""


@dataclass(frozen=True)
class Source:
    """What becomes one file of a backup: `begin`, then what a program prints, which must end as it should.

    `allowed` are the program's exit statuses that are no failure.
    """

    what: str
    name: str
    command: Sequence[str]
    ends: Callable[[bytes], bool]
    begin: bytes = b""
    allowed: frozenset[int] = SUCCESS


@dataclass(frozen=True)
class Entry:
    """A file of a backup, as its manifest names it."""

    name: str
    size: int
    sha256: str


class Program:
    """A program of a stream."""

    def __init__(
        self,
        command: Sequence[str],
        stdin: int | IO[bytes],
        allowed: frozenset[int] = SUCCESS,
        *,
        through: Sequence[str],
    ) -> None:
        """Start it; `allowed` are its exit statuses that are no failure, `through` is what becomes it."""
        self._name, self._allowed = Path(command[0]).name, allowed
        # A file, which never fills up as a pipe does.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the program
        self.process = subprocess.Popen(
            [*through, *command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            bufsize=0,
            pipesize=PIPE_BYTES,
        )

    @property
    def input(self) -> IO[bytes]:
        """The end of a pipe that it reads."""
        return _there(self.process.stdin)

    @property
    def output(self) -> IO[bytes]:
        """The end of a pipe that it writes."""
        return _there(self.process.stdout)

    def end(self) -> str:
        """Wait for it; returns what it said.

        Raises:
            BackupError: it failed.
        """
        status = self.process.wait()
        with self._complaints as file:
            file.seek(0)
            text = file.read().decode(errors="replace").strip()[-500:]
        if status not in self._allowed:
            raise BackupError(f"{self._name} failed with {status}: {text or 'it does not say why'}")
        return f"{self._name}: {text}" if text else ""


def encrypt(source: Source, target: Path) -> Entry:
    """source | zstd | age > target, in constant memory.

    Raises:
        BackupError: a program failed, the source ended too early, or the disk is full.
    """
    begun = time.monotonic()
    dump = Program(source.command, subprocess.DEVNULL, source.allowed, through=BUFFERED)
    # One thread: the database and its dump need the other processors.
    zstd = Program(["zstd", "-q", "-1", "--single-thread"], subprocess.PIPE, through=BEHIND)
    age = Program(["age", "--encrypt", "--recipients-file", str(ETC / "recipients")], zstd.output, through=BEHIND)
    # age's alone: as long as it is open here too, zstd would not hear that age has ended.
    zstd.output.close()
    programs = (age, zstd, dump)
    kept: list[Entry | Exception] = []

    def keep() -> None:
        try:
            kept.append(_keep(age.output, target))
        except (OSError, BackupError) as error:
            kept.append(error)
            # Nobody reads any more.
            for program in programs:
                program.process.kill()

    keeper = threading.Thread(target=keep)
    keeper.start()
    clear, end = 0, b""
    # It breaks where a program behind it has ended, which says why.
    with suppress(BrokenPipeError):
        _write(zstd.input, memoryview(source.begin))
        clear, end = _pass_on(dump.output.fileno(), zstd.input.fileno())
    dump.output.close()
    zstd.input.close()
    keeper.join()
    (entry,) = kept
    if isinstance(entry, Exception):
        for program in programs:
            program.process.wait()
        raise BackupError(str(entry))
    # The last one first: those before it only ended because it did.
    for said in [program.end() for program in programs]:
        if said:
            say(f"{source.what}: {said}")
    if not source.ends(source.begin + end):
        raise BackupError("it ends too early, though every program says that all went well")
    seconds = time.monotonic() - begun
    say(f"{source.what}: {clear / 1e6:.1f} MB in {seconds:.1f} s, {entry.size / 1e6:.1f} MB encrypted")
    return entry


def _pass_on(reader: int, writer: int) -> tuple[int, bytes]:
    """All of one pipe into another; returns how much it was, and its end.

    The kernel hands the pages on, instead of copying them in and out; the end is kept back in a third pipe.
    """
    with _pipe() as (kept_reader, kept_writer), Path(os.devnull).open("wb", 0) as nowhere:
        clear = kept = 0
        while size := _tee(reader, kept_writer):
            kept += size
            while size:
                passed = os.splice(reader, writer, size)
                size, clear = size - passed, clear + passed
            # The next one must find room.
            while kept > END_BYTES:
                kept -= os.splice(kept_reader, nowhere.fileno(), kept - END_BYTES)
        return clear, os.read(kept_reader, kept) if kept else b""


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def _tee(reader: int, writer: int) -> int:
    """Give what is in one pipe to another as well, without taking it; returns how much, and 0 at the end: tee(2)."""
    size = _LIBC.tee(reader, writer, ctypes.c_size_t(PIPE_BYTES), 0)
    if size < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(size)


def _keep(stream: IO[bytes], target: Path) -> Entry:
    """Write what comes out to the disk, and work out its checksum on the way."""
    digest, size = hashlib.sha256(), 0
    # Closed at once where it fails, so that the programs end.
    with stream, target.open("xb", 0) as file:
        for block in _blocks(stream):
            check_space(target.parent)
            _write(file, block)
            digest.update(block)
            size += len(block)
        os.fsync(file)
    return Entry(target.name.removesuffix(PART), size, digest.hexdigest())


def _blocks(stream: IO[bytes]) -> Iterator[memoryview]:
    """What comes out of a pipe; each block is there until the next one is asked for."""
    buffer = memoryview(bytearray(BLOCK))
    while size := os.readv(stream.fileno(), [buffer]):
        yield buffer[:size]


def _write(stream: IO[bytes], block: memoryview) -> None:
    while block:
        block = block[os.write(stream.fileno(), block) :]


def _there(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise BackupError("this program has no such pipe")
    return stream


def check_space(folder: Path) -> None:
    """Keep the reserve of the disk.

    Raises:
        BackupError: there is no more than that.
    """
    status = os.statvfs(folder)
    if status.f_bavail < RESERVE * status.f_blocks:
        raise BackupError(f"the disk of {folder} is full: {RESERVE:.0%} of it stay free for the database")


class Engine:
    """MariaDB or MySQL, whichever is here."""

    def __init__(self) -> None:
        """Find its programs."""
        self.is_mariadb = shutil.which("mariadb-dump") is not None

    def database(self, run: str, name: str) -> Source:
        """All of a database: tables, views, triggers, routines and events.

        Raises:
            BackupError: there is no such database, or the engine doesn't answer.
        """
        rows = self._ask(
            "SELECT schema_name, default_character_set_name, default_collation_name FROM information_schema.schemata"
        )
        found = [row[1:] for row in rows if row[0] == name]
        if not found:
            raise BackupError("there is no such database")
        (charset, collation) = found[0]
        # Of the database that it is loaded into, whatever that is called.
        begin = f"ALTER DATABASE CHARACTER SET {charset} COLLATE {collation};\n".encode()
        return Source(name, f"{run}_{name}.sql.zst.age", [*self._dump(), "--", name], _ends_as_a_dump, begin)

    def accounts(self, run: str) -> Source:
        """The accounts and their rights, as statements.

        Raises:
            BackupError: the engine doesn't answer.
        """
        name = f"{run}.accounts.sql.zst.age"
        if self.is_mariadb:
            return Source("accounts", name, [*self._dump(), "--system=users", "--insert-ignore"], _ends_as_a_dump)
        rows = self._ask(
            "SELECT user, host FROM mysql.user WHERE user NOT IN ('root', 'mysql.sys', 'mysql.session',"
            " 'mysql.infoschema', 'debian-sys-maint')"
        )
        named = ["@".join("'" + part.replace("\\", "\\\\").replace("'", "\\'") + "'" for part in row) for row in rows]
        # All accounts before any right: one may be granted another.
        statements = [f"SHOW CREATE USER {one}" for one in named] + [f"SHOW GRANTS FOR {one}" for one in named]
        lines = ["\t".join(row) for row in self._ask("SET print_identified_with_as_hex = ON", *statements)]
        # At the beginning only: there is a right of that name.
        text = "".join(re.sub(r"^CREATE USER ", "CREATE USER IF NOT EXISTS ", line) + ";\n" for line in lines)
        return Source("accounts", name, ["true"], _ends_as_a_dump, f"{text}{DUMP_END.decode()}\n".encode())

    def _dump(self) -> Sequence[str]:
        return ["mariadb-dump", *DUMP] if self.is_mariadb else ["mysqldump", *MYSQL_DUMP]

    def _ask(self, *statements: str) -> list[list[str]]:
        """The rows of all answers."""
        client = ["mariadb" if self.is_mariadb else "mysql", *CLIENT, "--batch", "--raw", "--skip-column-names"]
        done = subprocess.run(client, input=";\n".join(statements), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackupError(done.stderr.strip()[-500:])
        return [line.split("\t") for line in done.stdout.splitlines()]


def _ends_as_a_dump(end: bytes) -> bool:
    return end.rpartition(DUMP_END)[2][-1:] == b"\n" and DUMP_END in end


def files(run: str, paths: Sequence[str]) -> Source:
    """Files and folders, as an archive of tar with owners, access lists and attributes."""
    tar = ["tar", "--create", "--directory=/", "--numeric-owner", "--acls", "--xattrs", "--"]
    return Source(
        "files",
        f"{run}.files.tar.zst.age",
        [*tar, *(path.lstrip("/") for path in paths)],
        lambda end: end == TAR_END,
        # 1: a file changed while it was read, which happens to logs.
        allowed=frozenset({0, 1}),
    )


class Place(Protocol):
    """Where backups are kept. It takes a file at a time, and says nothing of what it has."""

    @property
    def key(self) -> str:
        """A short name, for files."""

    @property
    def name(self) -> str:
        """As it is called in sentences."""

    def push(self, path: Path, entry: Entry) -> None:
        """Hand one file over.

        Raises:
            UnreachableError: it did not answer.
            BackupError: it does not take the file.
        """


class Spool:
    """The encrypted files that not every place has yet. A backup is complete with its manifest."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`."""
        self._folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one run at a time.

        Raises:
            BackupError: there is another.
        """
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError("another backup is running") from None
            yield
        finally:
            os.close(folder)

    def clean(self) -> None:
        """Remove what is left of a backup that never became complete, or that is everywhere."""
        whole = {path.name for manifest in self._manifests() for path in self._files(manifest)}
        for path in self._folder.iterdir():
            if path.name.partition(TAKEN)[0] not in whole:
                path.unlink()

    def make(self, run: str, parts: Sequence[tuple[str, Callable[[], Source]]]) -> None:
        """Make a backup of all parts, or none.

        Raises:
            BackupError: what can't be made, a line each.
        """
        entries, failures = [], []
        for what, prepare in parts:
            try:
                check_space(self._folder)
                source = prepare()
                entries.append(encrypt(source, self._folder / (source.name + PART)))
            except BackupError as error:
                failures.append(f"{what}: {error}")
        if failures:
            self.clean()
            raise BackupError("\n".join(failures))
        for entry in entries:
            (self._folder / (entry.name + PART)).rename(self._folder / entry.name)
        manifest = self._folder / (run + MANIFEST)
        text = json.dumps({"id": run, "files": [asdict(entry) for entry in entries]}, indent=1) + "\n"
        part = manifest.with_name(manifest.name + PART)
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.rename(manifest)

    def bring(self, places: Sequence[Place]) -> Iterator[str]:
        """Bring everything to every place, oldest first; yields what a place does not take, or that it isn't reached.

        What one of them has to do with is none of the others' business.
        """
        for place in places:
            try:
                for manifest in self._manifests():
                    try:
                        self._bring(manifest, place)
                    except UnreachableError:
                        raise
                    except BackupError as error:
                        yield f"{manifest.name.removesuffix(MANIFEST)}: {error}"
            except UnreachableError as error:
                yield f"{error}; {self.waiting(place)} encrypted backups wait in {self._folder} for the next run"
        # Also what waited for a place that is none any more.
        for manifest in self._manifests():
            if all(self._has(place, manifest) for place in places):
                # The manifest first: without it, the rest is removed by the next run.
                manifest.unlink()
        self.clean()

    def waiting(self, place: Place) -> int:
        """How many backups a place doesn't have yet."""
        return sum(not self._has(place, manifest) for manifest in self._manifests())

    def _bring(self, manifest: Path, place: Place) -> None:
        if self._has(place, manifest):
            return
        *files, last = self._files(manifest)
        for path, entry in zip(files, _entries(manifest), strict=True):
            if not self._has(place, path):
                place.push(path, entry)
                self._taken(place, path).touch()
        content = last.read_bytes()
        place.push(last, Entry(last.name, len(content), hashlib.sha256(content).hexdigest()))
        self._taken(place, last).touch()
        say(f"{manifest.name.removesuffix(MANIFEST)}: is {place.name}")

    def _files(self, manifest: Path) -> list[Path]:
        """A backup's files, in the order in which they go."""
        return [*(self._folder / entry.name for entry in _entries(manifest)), manifest]

    def _has(self, place: Place, path: Path) -> bool:
        # Not there any more: everyone had it, and only its manifest is left.
        return self._taken(place, path).exists() or not path.exists()

    def _taken(self, place: Place, path: Path) -> Path:
        return path.with_name(path.name + TAKEN + place.key)

    def _manifests(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{MANIFEST}"))


def _entries(manifest: Path) -> list[Entry]:
    return [Entry(**file) for file in json.loads(manifest.read_text())["files"]]


class UnreachableError(BackupError):
    """A place does not answer, or the connection broke."""


@dataclass(frozen=True)
class BackupServer:
    """The backup server, which takes a file by SSH."""

    address: str
    key = "server"
    name = "on the backup server"

    def push(self, path: Path, entry: Entry) -> None:
        """See `Place`."""
        header = json.dumps(asdict(entry)).encode() + b"\n"
        with tempfile.TemporaryFile() as complaints, path.open("rb") as file:
            ssh = subprocess.Popen(self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)
            # It breaks where the file is refused before all of it is there.
            with suppress(BrokenPipeError), _there(ssh.stdin) as target:
                target.write(header)
                shutil.copyfileobj(file, target, BLOCK)
            answer = _there(ssh.stdout).read().decode(errors="replace").strip()
            ssh.wait()
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip()[-500:]
        if answer == f"stored {entry.name}":
            return
        if answer.startswith("refused: "):
            raise BackupError(f"the backup server does not take {entry.name}: {answer.removeprefix('refused: ')}")
        raise UnreachableError(
            f"the backup server ({self.address}) can't be reached: {said or answer or 'it ended early'}"
        )

    def _command(self) -> Sequence[str]:
        options = {
            "BatchMode": "yes",
            # The fastest that both have.
            "Ciphers": "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com",
            "ConnectTimeout": "15",
            "GlobalKnownHostsFile": "none",
            "HostKeyAlias": "backup",
            "IdentitiesOnly": "yes",
            "IdentityFile": ETC / "key",
            # The banner is for people.
            "LogLevel": "ERROR",
            "ServerAliveInterval": "15",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": ETC / "known_hosts",
        }
        arguments = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", "-T", *arguments, f"backup-push@{self.address}"]


@dataclass(frozen=True)
class Bucket:
    """An S3 bucket, to which this server may add objects, and nothing else.

    Who it is, it learns from the cloud's metadata service, which answers root only. An object that is there already
    gets a version beside its first one, which is locked; the first one is what counts.
    """

    bucket: str
    region: str
    key = "bucket"
    name = "in the bucket"

    def push(self, path: Path, entry: Entry) -> None:
        """See `Place`."""
        # Here and below: a server without a bucket has no such packages.
        from boto3.exceptions import S3UploadFailedError  # noqa: PLC0415 - only servers with a bucket have it
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - only servers with a bucket have it

        try:
            if entry.size < PART_BYTES:
                self._put(path, entry)
            else:
                self._put_in_parts(path, entry)
        except (ClientError, S3UploadFailedError) as error:
            raise BackupError(f"the bucket {self.bucket} does not take {entry.name}: {error}") from None
        except BotoCoreError as error:
            raise UnreachableError(f"the bucket {self.bucket} can't be reached: {error}") from None

    def _put(self, path: Path, entry: Entry) -> None:
        # S3 takes it only if it has this checksum.
        digest = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
        with path.open("rb") as file:
            self._client.put_object(
                Bucket=self.bucket, Key=entry.name, Body=file, ChecksumAlgorithm="SHA256", ChecksumSHA256=digest
            )

    def _put_in_parts(self, path: Path, entry: Entry) -> None:
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - only servers with a bucket have it

        parts = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )
        # With a checksum for each.
        checked = {"ChecksumAlgorithm": "SHA256"}
        self._client.upload_file(str(path), self.bucket, entry.name, ExtraArgs=checked, Config=parts)

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401 - made by boto3 at run time
        import boto3  # noqa: PLC0415 - only servers with a bucket have it
        import botocore.session  # noqa: PLC0415 - only servers with a bucket have it
        from botocore.config import Config  # noqa: PLC0415 - only servers with a bucket have it

        session = botocore.session.get_session()
        # A busy server's first answer may take longer than the one second that it gets.
        session.set_config_variable("metadata_service_timeout", 5)
        session.set_config_variable("metadata_service_num_attempts", 4)
        patience = Config(connect_timeout=15, read_timeout=60, retries={"mode": "standard", "max_attempts": 4})
        return boto3.Session(botocore_session=session).client(
            "s3", region_name=self.region, verify=AUTHORITIES, config=patience
        )


def say(text: str) -> None:
    """A line for the journal, or for whoever runs it by hand."""
    print(text, file=sys.stderr, flush=True)


def back_up(settings: dict[str, Any]) -> Iterator[str]:
    """Make a backup and bring it away; yields what went wrong."""
    spool = Spool(SPOOL)
    with spool.locked():
        spool.clean()
        run = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        engine = Engine()
        parts: list[tuple[str, Callable[[], Source]]] = [
            *((name, partial(engine.database, run, name)) for name in settings["databases"]),
            ("accounts", partial(engine.accounts, run)),
        ]
        if settings["paths"]:
            parts.append(("files", partial(files, run, settings["paths"])))
        try:
            spool.make(run, parts)
        except BackupError as error:
            yield f"no backup was made:\n{error}"
        # Also where none was made: earlier ones may be waiting.
        yield from spool.bring(places(settings))


def places(settings: dict[str, Any]) -> list[Place]:
    """Where backups are kept."""
    server = [BackupServer(settings["address"])] if settings["address"] else []
    bucket = json.loads((ETC / "bucket.json").read_text())
    return [*server, *([Bucket(bucket["name"], bucket["region"])] if bucket else [])]


def main() -> int:
    """Make a backup; the exit status says whether every place has it."""
    try:
        problems = list(back_up(json.loads((ETC / "config.json").read_text())))
    except BackupError as error:
        problems = [str(error)]
    except OSError as error:
        problems = [f"{error}"]
    for problem in problems:
        say(f"BACKUP FAILED: {problem}")
    if not problems:
        STAMP.touch()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
