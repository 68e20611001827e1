"""From where backups are kept to a database: decrypted on this machine, loaded on the database server, checked there.

A database is loaded under a name that nothing uses, and counts as restored when every byte of its file was what the
manifest says, the encryption was authentic to its end, the dump has its last line, and the server took every statement.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from uds.backup.catalogue import SPOOL, Backup, File, Listing, age_text, chosen, parse
from uds.backup.compare import Comparison, compare
from uds.backup.identity import Identities
from uds.backup.places import Place
from uds.backup.servers import DATABASE, Servers
from uds.stack import OperatorError

# A night and two hours: the same as what raises the alert of a backup that didn't come.
MAX_AGE = timedelta(hours=26)

# What hears of a file's progress: called with its name and size, gives what hears of its bytes.
Progress = Callable[[str, int], Callable[[int], None]]


def stored(place: Place) -> list[Backup]:
    """What is kept there, newest first."""
    return parse(place.listing())


def waiting(servers: Servers) -> list[Backup]:
    """What the database server could not bring to every place yet, newest first."""
    found = servers.ask(DATABASE, "list_folder", folder=SPOOL)
    return parse(Listing(found["files"], found["manifests"]))


@dataclass(frozen=True)
class Restorer:
    """Opens the backups of a place and puts them where they are wanted."""

    servers: Servers
    place: Place
    identities: Identities
    progress: Progress

    def into_new(self, backup: Backup, database: str, target: str) -> None:
        """Restore into the new database `target`.

        Raises:
            OperatorError: it exists, or the backup can't be opened or loaded; then there is no such database.
        """
        with self._loaded(backup, database, target):
            self.servers.ask(DATABASE, "accept", database=target)

    def replace(self, backup: Backup, database: str, say: Callable[[str], None]) -> str | None:
        """Restore into the place of `database`, and return the name of the database that has its old content.

        First the backup is loaded beside it. Goes on where an earlier run was interrupted.

        Raises:
            OperatorError: the backup can't be opened or loaded, and nothing has changed; or the exchange was
                interrupted, and has to be run again.
        """
        new, before = name(f"{database}_replacing", backup), name(f"{database}_before", backup)
        state = self.servers.ask(DATABASE, "state", database=database, new=new, before=before)
        if state["planned"] not in (None, new):
            other = state["planned"].rpartition("_")[2]
            raise OperatorError(f"The replacement of {database} by {other} isn't finished: run that one again first.")
        if state["planned"]:
            say(f"{database}: an interrupted replacement goes on")
        elif state["loaded"]:
            say(f"{database}: was loaded by an earlier run")
        else:
            self.into_new(backup, database, new)
        if state["exists"] and not state["planned"]:
            found = self.comparison(new, database)
            for line in (*found.structure, *other_counts(found)):
                say(f"{database}: {line}")
        answer = self.servers.ask(DATABASE, "replace", database=database, new=new, before=before)
        kept: str | None = answer["before"]
        return kept

    def accounts(self, backup: Backup) -> None:
        """Make the accounts of a backup, with their rights.

        Raises:
            OperatorError: there are none in it, or it can't be opened or run.
        """
        if backup.accounts is None:
            raise OperatorError(f"The backup {backup.id} has no accounts.")
        self._send(backup.accounts, "accounts")

    def files(self, backup: Backup, folder: str, *, here: bool) -> None:
        """Unpack the files and folders of a backup into a new folder of this machine or of the database server.

        Raises:
            OperatorError: there are none in it, the folder exists, or the backup can't be opened.
        """
        if backup.archive is None:
            raise OperatorError(f"The backup {backup.id} has no files: backup.paths was empty.")
        if here:
            self._unpack(backup.archive, folder)
        else:
            self._send(backup.archive, "extract", folder=folder)

    def trial(self, backup: Backup, database: str) -> Comparison:
        """Restore into a scratch database, compare it with the live one, and drop it.

        Raises:
            OperatorError: the backup can't be opened or loaded, or there is no live database.
        """
        scratch = f"uds_drill_{database}"[:64]
        with self._loaded(backup, database, scratch):
            comparison = self.comparison(scratch, database)
            self.servers.ask(DATABASE, "drop", database=scratch)
        return comparison

    def comparison(self, copy: str, live: str) -> Comparison:
        """Two databases side by side."""
        one, other = (self.servers.ask(DATABASE, "describe", database=database) for database in (copy, live))
        return compare(one, other)

    @contextmanager
    def _loaded(self, backup: Backup, database: str, target: str) -> Iterator[None]:
        """A half, which goes again if anything fails."""
        file = backup.databases.get(database)
        if file is None:
            raise OperatorError(
                f"The backup {backup.id} has no database {database}. It has: {', '.join(backup.databases) or 'none'}."
            )
        self._send(file, "load", database=target, source=database, size=file.size)
        try:
            yield
        except BaseException:
            self.servers.ask(DATABASE, "drop", database=target)
            raise

    def _send(self, file: File, action: str, **request: object) -> None:
        """Stream a file, in clear, to an action on the database server; not one byte of it to a file here."""
        problems: list[OperatorError] = []

        def feed(target: IO[bytes]) -> None:
            try:
                self._decrypt(file, target)
            except OperatorError as error:
                problems.append(error)

        try:
            self.servers.ask(DATABASE, action, feed, **request)
        except OperatorError:
            # What is wrong with the file is the reason for whatever the server says of its content.
            if problems:
                raise problems[0] from None
            raise
        if problems:
            if action == "load":
                self.servers.ask(DATABASE, "drop", database=request["database"])
            raise problems[0]

    def _unpack(self, file: File, folder: str) -> None:
        # Only here: it brings Pulumi, which takes a while.
        from uds.backup import on_server  # noqa: PLC0415

        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as content:
            sender = pool.submit(self._decrypt_and_close, file, os.fdopen(writing, "wb"))
            try:
                on_server.extract({"folder": folder}, content)
            except FileNotFoundError as error:
                raise OperatorError(f"There is no {error.filename} on this machine: install it.") from None
            except on_server.RefusedError as error:
                content.close()
                raise sender.exception() or OperatorError(str(error)) from None
            sender.result()

    def _decrypt_and_close(self, file: File, target: IO[bytes]) -> None:
        with suppress(BrokenPipeError), target:
            self._decrypt(file, target)

    def _decrypt(self, file: File, target: IO[bytes]) -> None:
        with opened(self.place, file, self.progress(file.name, file.size)) as source:
            self.identities.decrypt(source, target, file.name)


@contextmanager
def opened(place: Place, file: File, seen: Callable[[int], None]) -> Iterator[Any]:
    """A file of a backup, which has to be what its manifest says when it was read to its end.

    Raises:
        OperatorError: it isn't, or can't be read.
    """
    with place.file(file.name, 0, seen) as download:
        yield download
    if download.ended and download.sha256 != file.sha256:
        raise OperatorError(f"{file.name} isn't what was sent to {place.name}: its SHA-256 differs.")


def name(prefix: str, backup: Backup) -> str:
    """A database's name for what is made of a backup.

    Raises:
        OperatorError: it would be too long for a database server.
    """
    found = f"{prefix}_{backup.id}"
    if len(found) > 64:
        raise OperatorError(
            f"{found} is too long for a database's name: choose one with --as, of at most 64 characters."
        )
    return found


def other_counts(comparison: Comparison) -> Iterator[str]:
    """The tables that don't have as many rows as live, in words: somebody has written since the backup."""
    for table, (copy, live) in comparison.counts.items():
        if copy != live:
            yield f"table {table}: {copy} rows in the backup, {live} live"


@dataclass(frozen=True)
class Drill:
    """What a drill found: of each database what is different, and all that is wrong."""

    backup: Backup
    comparisons: Mapping[str, Comparison]
    problems: Sequence[str]


def drill(restorer: Restorer, wanted: Sequence[str], now: datetime | None = None) -> Drill:
    """Restore the newest backup into scratch databases and compare them with the live ones. It must have `wanted`.

    Raises:
        OperatorError: there is no backup, the newest isn't complete, or it can't be opened or loaded.
    """
    backup = chosen(stored(restorer.place), None)
    problems = []
    age = (now or datetime.now(UTC)) - backup.begun
    if age > MAX_AGE:
        problems.append(f"the newest backup is {age_text(age)} old: see `journalctl -u uds-backup` on {DATABASE}")
    if age < timedelta(minutes=-5):
        problems.append(f"the newest backup is from the future: {backup.id}; which clock is wrong?")
    problems += [
        f"the newest backup has no {database} in it" for database in wanted if database not in backup.databases
    ]
    comparisons = {database: restorer.trial(backup, database) for database in backup.databases}
    problems += [f"{database}: {line}" for database, found in comparisons.items() for line in found.structure]
    return Drill(backup, comparisons, problems)
