"""Backups and restores, each beside the simplest way to do the same."""

import json
import statistics
import subprocess
from pathlib import Path

from rich.table import Table

from components.settings import parse
from rehearsal.bench.backup_stream import FILL, ROW_BYTES
from rehearsal.bench.clock import seconds
from rehearsal.workspace import Workspace
from uds import ssh
from uds.backup.identity import Identities
from uds.backup.restore import Restorer
from uds.backup.run import now
from uds.backup.servers import DATABASE, Servers
from uds.stack import OperatorError, Stack

STREAM_BYTES = 10**9
RESTORE_BYTES = 3 * 10**8
RUNS = 3


def stream(stack: Stack) -> Table | None:
    """The backup's stream against the dump alone and the guide's own pipeline, in turn, if the stack makes backups."""
    settings = parse(stack.config())
    if not settings.backup.server:
        return None
    program = Path(__file__).with_name("backup_stream.py").read_text()
    password = settings.deploy.sudo_password.get_secret_value()
    with ssh.connected(stack, "db-1") as command:
        done = subprocess.run(
            [*command, f"sudo -k -S -p '' -- python3 - {STREAM_BYTES} {RUNS}"],
            input=f"{password}\n{program}",
            text=True,
            capture_output=True,
            check=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    took = found["seconds"]
    table = Table(f"backup of {found['bytes'] / 1e9:.2f} GB", "median of seconds", "ours is")
    for way, what in (
        ("dump", "the dump alone, to /dev/null"),
        ("ours", "dumped, compressed, encrypted"),
        ("guide", "the guide's own pipeline"),
    ):
        # Of each turn by itself: a busy moment of the machine meets all three.
        ratio = statistics.median(other / own for other, own in zip(took[way], took["ours"], strict=True))
        table.add_row(what, f"{statistics.median(took[way]):.1f}", f"{ratio:.2f} times as fast")
    table.add_row("most memory of the stream", f"{found['memory'] / 2**20:.0f} MiB", "")
    return table


def restore(stack: Stack) -> Table | None:
    """A restore from the backup server against loading the same dump that lies ready, in turn, if there are backups."""
    settings = parse(stack.config())
    if not settings.backup.server:
        return None
    database, plain = settings.database.name, "/var/tmp/bench.sql"  # noqa: S108 - on the server, in a folder of its own

    def root(script: str) -> None:
        status, text = servers.run(DATABASE, "sh", "-e", "-c", script)
        if status:
            raise OperatorError(text)

    fill = FILL.replace("CREATE DATABASE bench;\nUSE bench;", "").replace("ROWS", str(RESTORE_BYTES // ROW_BYTES))
    theirs, ours = [], []
    with Servers.of(stack) as servers:
        identities = Identities.load(
            stack.keys / "backup-identity.age", Workspace(stack.name).passphrase_file.read_text
        )
        restorer = Restorer(servers, identities, lambda _name, _size: lambda _count: None)
        root(f"mariadb {database} <<'END'\n{fill}\nEND\nmariadb-dump --hex-blob {database} > {plain}")
        backup = now(servers)
        for _ in range(RUNS):
            root("mariadb -e 'CREATE DATABASE plain'")
            theirs.append(seconds(lambda: root(f"mariadb plain < {plain}")))
            ours.append(seconds(lambda: restorer.into_new(backup, database, "ours")))
            root("mariadb -e 'DROP DATABASE plain; DROP DATABASE ours'")
        root(f"rm {plain}; mariadb -e 'DROP TABLE users' {database}")
    table = Table(f"restore of {RESTORE_BYTES / 1e9:.1f} GB", "median of seconds")
    table.add_row("mariadb < dump, on the server", f"{statistics.median(theirs):.1f}")
    table.add_row("fetched, decrypted, loaded, checked", f"{statistics.median(ours):.1f}")
    ratio = statistics.median(one / own for one, own in zip(theirs, ours, strict=True))
    table.add_row("ours is", f"{ratio:.2f} times as fast")
    return table
