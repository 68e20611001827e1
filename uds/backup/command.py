"""`uds backup`: what the operator types and sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from components.settings import parse
from uds.backup import run
from uds.backup.catalogue import Backup, age_text, chosen, size_text
from uds.backup.fetch import fetch as fetch_files
from uds.backup.identity import Identities
from uds.backup.places import Kept, Place, place_of
from uds.backup.restore import Restorer, name, other_counts, stored, waiting
from uds.backup.restore import drill as run_drill
from uds.backup.servers import DATABASE, Servers
from uds.init import BACKUP_IDENTITY
from uds.options import PassphraseFile, Rehearsal, StackName, passphrase_of
from uds.stack import OperatorError, Stack

backup_app = typer.Typer(no_args_is_help=True, help="The backups of the database server: made, listed, restored.")
# No emoji: a table's name may look like one.
out = Console(highlight=False, emoji=False)
log = Console(stderr=True, highlight=False, emoji=False)

Id = Annotated[str, typer.Argument(metavar="ID", help="The backup's name, as `uds backup list` shows it.")]
IdOrNewest = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help="The backup's name, as `uds backup list` shows it; else the newest."),
]
IdentityFile = Annotated[
    Path | None, typer.Option("--identity", help="The age identity, if it isn't the one that `uds init` made.")
]

From = Annotated[Kept | None, typer.Option("--from", help="Where it is read; else the backup server, if there is one.")]


@backup_app.command("now")
def now(stack: StackName, rehearsal: Rehearsal = False) -> None:
    """Make a backup now, as the night does, and say how it went."""
    with _opened(Stack.open(stack, rehearsal=rehearsal)) as (servers, place):
        with log.status(f"{DATABASE} makes a backup"):
            made = run.now(servers, place)
        _print_backups([made], [])


@backup_app.command("list")
def list_backups(stack: StackName, place: From = None, rehearsal: Rehearsal = False) -> None:
    """List the backups that are kept, newest first, and those that wait on the database server."""
    with _opened(Stack.open(stack, rehearsal=rehearsal), place) as (servers, found):
        kept = stored(found)
        try:
            unsent = waiting(servers)
        except OperatorError as error:
            # What is kept is asked for above all when the database server is gone.
            unsent = []
            log.print(f"What waits on {DATABASE} is not known: {error}", style="yellow", markup=False)
        _print_backups(kept, unsent)


@backup_app.command("fetch")
def fetch(
    stack: StackName,
    backup: Id,
    to: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
    place: From = None,
    rehearsal: Rehearsal = False,
) -> None:
    """Copy a backup's files, encrypted as they are, to this machine. Run it again if it was interrupted."""
    with _opened(Stack.open(stack, rehearsal=rehearsal), place) as (_, kept), _progress() as progress:
        found = chosen(stored(kept), backup)
        fetch_files(kept, found, to, progress)
    for file in (*(file.name for file in found.files), f"{found.id}.manifest.json"):
        out.print(str(to / file), markup=False, soft_wrap=True)


@backup_app.command("restore")
def restore(
    stack: StackName,
    backup: IdOrNewest = None,
    *,
    database: Annotated[str | None, typer.Option(help="Only this database; else all of the backup.")] = None,
    new_name: Annotated[
        str | None, typer.Option("--as", help="Name of the new database; else DATABASE_restored_ID.")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Put it in the place of the live database, which is kept as DATABASE_before_ID."
        ),
    ] = False,
    accounts: Annotated[
        bool, typer.Option("--accounts", help="Make the backup's accounts and their rights too.")
    ] = False,
    files: Annotated[
        str | None,
        typer.Option(
            metavar="[db-1:]FOLDER", help="Unpack the saved files into this new folder instead, here or on db-1."
        ),
    ] = None,
    place: From = None,
    identity: IdentityFile = None,
    passphrase_file: PassphraseFile = None,
    rehearsal: Rehearsal = False,
) -> None:
    """Restore a backup beside the live databases, under new names; or, only with --replace, in their place."""
    if replace and new_name:
        raise OperatorError("--as and --replace don't go together: one is for a new name, the other for the old one.")
    opened = Stack.open(stack, rehearsal=rehearsal)
    with _opened(opened, place) as (servers, kept):
        found = chosen(stored(kept), backup)
        databases = [database] if database else list(found.databases)
        if new_name and len(databases) != 1:
            raise OperatorError(f"--as is for one database: choose with --database one of {', '.join(databases)}.")
        identities = _identities(opened, identity, passphrase_file)
        with _progress() as progress:
            restorer = Restorer(servers, kept, identities, progress)
            if files:
                folder = files.removeprefix(f"{DATABASE}:")
                restorer.files(found, folder, here=folder == files)
                out.print(f"The files of {found.id} are in {files}.", markup=False, soft_wrap=True)
                return
            for one in databases:
                if replace:
                    before = restorer.replace(found, one, lambda text: out.print(text, markup=False, soft_wrap=True))
                    out.print(f"{one} is that of {found.id} now.", soft_wrap=True)
                    if before:
                        out.print(
                            f"What it was before is in {before}: drop that when nobody misses it.", soft_wrap=True
                        )
                else:
                    target = new_name or name(f"{one}_restored", found)
                    restorer.into_new(found, one, target)
                    out.print(f"{one} of {found.id} is restored, as {target}.", soft_wrap=True)
            if accounts:
                restorer.accounts(found)
                out.print(f"The accounts of {found.id} are there.", soft_wrap=True)


@backup_app.command("drill")
def drill(
    stack: StackName,
    *,
    place: From = None,
    identity: IdentityFile = None,
    passphrase_file: PassphraseFile = None,
    rehearsal: Rehearsal = False,
) -> None:
    """Restore the newest backup into a scratch database, compare that with the live one. Exits 1 on any problem."""
    opened = Stack.open(stack, rehearsal=rehearsal)
    settings = parse(opened.config())
    with _opened(opened, place) as (servers, kept):
        identities = _identities(opened, identity, passphrase_file)
        with _progress() as progress:
            found = run_drill(
                Restorer(servers, kept, identities, progress), [settings.database.name, *settings.backup.databases]
            )
    for database, comparison in found.comparisons.items():
        out.print(f"{database}: restored from {found.backup.id}, {len(comparison.counts)} tables", soft_wrap=True)
        for line in other_counts(comparison):
            out.print(f"  {line}", markup=False, soft_wrap=True)
    if found.problems:
        for line in found.problems:
            out.print(line, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    out.print("The newest backup restores, and is built as the live databases are.", style="green")


def _identities(stack: Stack, file: Path | None, passphrase_file: Path | None) -> Identities:
    passphrase = passphrase_of(stack, passphrase_file, "Passphrase of the backup identity")
    return Identities.load(file or stack.keys / BACKUP_IDENTITY, passphrase)


@contextmanager
def _opened(stack: Stack, wanted: Kept | None = None) -> Iterator[tuple[Servers, Place]]:
    """The way to the stack's servers, and the place of its backups."""
    with Servers.of(stack) as servers:
        yield servers, place_of(stack, servers, wanted)


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log, transient=True) as bars:

        def begin(what: str, size: int) -> Callable[[int], None]:
            task = bars.add_task(what, total=size)
            return lambda count: bars.advance(task, count)

        yield begin


def _print_backups(stored_ones: list[Backup], waiting_ones: list[Backup]) -> None:
    table = Table("backup", "databases", "size", "age", "complete")
    moment = datetime.now(UTC)
    for backup in stored_ones:
        state = "; ".join(backup.problems) or "yes"
        table.add_row(backup.id, *_facts(backup, moment), state, style="red" if backup.problems else None)
    known = {backup.id for backup in stored_ones}
    for backup in waiting_ones:
        if backup.id not in known:
            table.add_row(backup.id, *_facts(backup, moment), f"waits on {DATABASE}", style="yellow")
    out.print(table)


def _facts(backup: Backup, moment: datetime) -> tuple[str, str, str]:
    return ", ".join(backup.databases) or "-", size_text(backup.size), age_text(moment - backup.begun)
