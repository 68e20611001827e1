"""Nightly backups: made and encrypted on the database server, and kept on the backup server (guide, 3.11.2)."""

from collections.abc import Sequence

import pulumi

from components.server import Server
from components.settings import Settings

# Of the database server.
PACKAGES = ("age", "zstd")


class BackupStore(pulumi.ComponentResource):
    """The backup server's side."""

    def __init__(
        self, name: str, settings: Settings, server: Server, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Have `server` take backups from the database server."""
        super().__init__("uds:backup:Store", name, None, opts)
        self.register_outputs({})


class Backup(pulumi.ComponentResource):
    """The database server's side."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        server: Server,
        store: Server,
        *,
        after: Sequence[pulumi.Resource],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Have `server` make backups every night and bring them to `store`."""
        super().__init__("uds:backup:Backup", name, None, opts)
        self.register_outputs({})
