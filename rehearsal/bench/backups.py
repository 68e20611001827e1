"""Backups and restores, each beside the simplest way to do the same."""

import json
import statistics
import subprocess
from operator import truediv
from pathlib import Path

from components.settings import parse
from rehearsal.bench.backup_stream import FILL, ROW_BYTES
from rehearsal.bench.clock import seconds
from rehearsal.bench.figures import Figure
from rehearsal.workspace import Workspace
from uds import ssh
from uds.backup.identity import Identities
from uds.backup.places import Kept, place_of
from uds.backup.restore import Restorer
from uds.backup.run import now
from uds.backup.servers import DATABASE, Servers
from uds.stack import OperatorError, Stack

STREAM_BYTES = 10**9
RESTORE_BYTES = 3 * 10**8
RUNS = 3


def stream(stack: Stack) -> list[Figure]:
    """The backup's stream against the dump alone and the guide's own pipeline, in turn."""
    settings = parse(stack.config())
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
    # Of each turn by itself: a busy moment of the machine meets all three.
    faster = {way: statistics.median(map(truediv, took[way], took["ours"])) for way in ("dump", "guide")}
    return [
        Figure(f"dump of {found['bytes'] / 1e9:.2f} GB alone, to /dev/null", statistics.median(took["dump"])),
        Figure("dumped, compressed, encrypted", statistics.median(took["ours"])),
        Figure("the guide's own pipeline", statistics.median(took["guide"])),
        Figure("as fast as the dump alone", faster["dump"], "times", "at least 0.75 times"),
        Figure("as fast as the guide's", faster["guide"], "times", "at least 3.5 times"),
        Figure("most memory of the stream", found["memory"] / 2**20, "MiB", "256 MiB"),
    ]


def filling(size: int) -> str:
    """Statements that make a table of about this many bytes in the database that is in use."""
    return FILL.replace("CREATE DATABASE bench;\nUSE bench;", "").replace("ROWS", str(size // ROW_BYTES))


def restore(stack: Stack) -> list[Figure]:
    """A restore from the backup server against loading the same dump that lies ready, in turn."""
    database, plain = parse(stack.config()).database.name, "/var/tmp/bench.sql"  # noqa: S108 - on the server, in a folder of its own

    def root(script: str) -> None:
        status, text = servers.run(DATABASE, "sh", "-e", "-c", script)
        if status:
            raise OperatorError(text)

    theirs, ours = [], []
    with Servers.of(stack) as servers:
        identities = Identities.load(
            stack.keys / "backup-identity.age", Workspace(stack.name).passphrase_file.read_text
        )
        place = place_of(stack, servers, Kept.SERVER)
        restorer = Restorer(servers, place, identities, lambda _name, _size: lambda _count: None)
        root(f"mariadb {database} <<'END'\n{filling(RESTORE_BYTES)}\nEND\nmariadb-dump --hex-blob {database} > {plain}")
        backup = now(servers, place)
        for _ in range(RUNS):
            root("mariadb -e 'CREATE DATABASE plain'")
            theirs.append(seconds(lambda: root(f"mariadb plain < {plain}")))
            ours.append(seconds(lambda: restorer.into_new(backup, database, "ours")))
            root("mariadb -e 'DROP DATABASE plain; DROP DATABASE ours'")
        root(f"rm {plain}; mariadb -e 'DROP TABLE users' {database}")
    return [
        Figure(f"`mariadb < dump` of {RESTORE_BYTES / 1e9:.1f} GB, on the server", statistics.median(theirs)),
        Figure("restored: fetched, decrypted, loaded, checked", statistics.median(ours)),
        Figure("as fast as that", statistics.median(map(truediv, theirs, ours)), "times", "at least 0.7 times"),
    ]
