"""Nightly backups: made and encrypted on the database server, and kept where it can only add (guide, 3.11.2)."""

import json
from collections.abc import Sequence
from pathlib import Path

import pulumi

from components.clouds import Bucket
from components.files import ServerFile, read_tree
from components.monit.watch import recent
from components.server import Server
from components.settings import Settings

# Of the database server.
PACKAGES = ("age", "zstd")
BUCKET_PACKAGES = ("python3-boto3",)

# Touched when a backup is complete, on the server that made it and on the one that keeps it.
STAMP = "/var/lib/uds/backup/success"

# On the backup server: where backups are kept, and the account that adds them.
STORE = "/var/backups/uds"
PUSH_ACCOUNT = "backup-push"

_FOLDER = Path(__file__).parent


def _program(name: str, source: str) -> ServerFile:
    """A program of ours; what is written in Python is a module here, so that it is checked and tested as one."""
    return ServerFile(f"/usr/local/sbin/{name}", 0o755, (_FOLDER / source).read_text())


def store_files(settings: Settings, pushed_from: str) -> list[ServerFile]:
    """The files of the backup server; the database server's address is `pushed_from`."""
    values = {"database_address": pushed_from, "public_key": settings.backup.public_key}
    return [
        *read_tree(_FOLDER / "files" / "backup", values),
        _program("uds-backup-receive", "receive.py"),
        _program("uds-backup-store", "store.py"),
        _program("uds-backup-report", "report.sh"),
    ]


def sender_files(settings: Settings, store: str | None) -> list[ServerFile]:
    """The files of the database server; the backup server's address, if there is one, is `store`."""
    backup = settings.backup
    config = {
        "address": store,
        "databases": [settings.database.name, *backup.databases],
        "paths": list(backup.paths),
    }
    # Emptied where there is no backup server: a key that was there would still open one that comes later.
    key = backup.private_key.get_secret_value().strip() + "\n" if backup.server and backup.private_key else ""
    return [
        *read_tree(_FOLDER / "files" / "db", {}),
        ServerFile("/etc/uds/backup/config.json", 0o600, json.dumps(config, indent=1) + "\n"),
        ServerFile("/etc/uds/backup/key", 0o600, key),
        ServerFile("/etc/uds/backup/recipients", 0o600, "".join(f"{one}\n" for one in backup.recipients)),
        _program("uds-backup", "sender.py"),
        _program("uds-backup-report", "report.sh"),
    ]


def watch() -> str:
    """What monit is to watch on both servers: that the newest backup isn't too old."""
    return recent("backup", STAMP, hours=26)


class BackupStore(pulumi.ComponentResource):
    """The backup server's side: an account that only adds, and what it adds to."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        server: Server,
        pushed_from: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Have `server` take backups from the database server, whose address there is `pushed_from`."""
        super().__init__("uds:backup:Store", name, None, opts)
        files = pulumi.Output.from_input(pushed_from).apply(lambda address: store_files(settings, address))
        server.apply(name, (_FOLDER / "apply-store.sh").read_text(), files=files, parent=self)
        self.register_outputs({})


class Backup(pulumi.ComponentResource):
    """The database server's side: a backup every night, or, where there is no place for them, none any more."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        server: Server,
        store: Server | None,
        bucket: Bucket | None,
        *,
        after: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Have `server` make backups every night and bring them to `store` and `bucket`, once all of `after` is there.

        What is known of these places only when they are there comes as data: the one's host key, the other's name.
        """
        super().__init__("uds:backup:Backup", name, None, opts)
        address = pulumi.Output.from_input(store.address if store else None)
        server.apply(
            name,
            (_FOLDER / "apply.sh").read_text(),
            files=address.apply(lambda known: sender_files(settings, known) if settings.backup.are_made else []),
            data={
                "known_hosts": pulumi.Output.format("backup {}\n", store.host_key) if store else "",
                "bucket.json": pulumi.Output.json_dumps({"name": bucket.name, "region": bucket.region})
                if bucket
                else "null",
            },
            parent=self,
            after=after,
        )
        self.register_outputs({})
