"""Where backups are kept: the backup server or the bucket, which are read in one way."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from uds.backup.catalogue import FOLDER, Listing
from uds.backup.servers import Download, Servers
from uds.stack import OperatorError, Stack


class Kept(StrEnum):
    """The kinds of places, as the operator names them."""

    SERVER = "server"
    BUCKET = "bucket"


class Place(Protocol):
    """Where backups are kept."""

    @property
    def name(self) -> str:
        """As it is called in sentences."""

    def listing(self) -> Listing:
        """What is there.

        Raises:
            OperatorError: it can't be read.
        """

    def file(self, name: str, offset: int, seen: Callable[[int], None]) -> AbstractContextManager[Download]:
        """A file from `offset` (in bytes) on; `seen` hears how many bytes have come.

        Raises:
            OperatorError: it can't be read to its end, if the end was asked for.
        """


@dataclass(frozen=True)
class BackupServer:
    """The backup server `server`."""

    servers: Servers
    server: str
    name = "the backup server"

    def listing(self) -> Listing:
        """See `Place`."""
        found = self.servers.ask(self.server, "list_folder", folder=FOLDER)
        return Listing(found["files"], found["manifests"])

    def file(self, name: str, offset: int, seen: Callable[[int], None]) -> AbstractContextManager[Download]:
        """See `Place`."""
        return self.servers.file(self.server, f"{FOLDER}/{name}", offset, seen)


def place_of(stack: Stack, servers: Servers, wanted: Kept | None = None) -> Place:
    """The place that is asked for, or else the backup server, or else the bucket.

    Raises:
        OperatorError: the stack doesn't have it.
    """
    outputs = stack.outputs()
    server = next((name for name, facts in outputs["servers"].items() if facts["role"] == "backup"), None)
    bucket = outputs.get("backupBucket")
    if server and wanted is not Kept.BUCKET:
        return BackupServer(servers, server)
    if bucket and wanted is not Kept.SERVER:
        # Only where it is used: its SDK takes a while.
        from uds.backup.bucket import Bucket  # noqa: PLC0415

        return Bucket.of(bucket["name"], bucket["region"], stack.environment)
    if wanted:
        what = "backup server" if wanted is Kept.SERVER else "bucket for backups"
        raise OperatorError(f"The stack {stack.name} has no {what}: backup.{wanted} is false.")
    raise OperatorError(f"The stack {stack.name} has no backups: backup.server and backup.bucket are false.")
