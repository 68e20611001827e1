"""What a place of backups holds, from its files and manifests."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from uds.stack import OperatorError

FOLDER = "/var/backups/uds"
SPOOL = "/var/spool/uds-backup"
MANIFEST = ".manifest.json"

_NAME = re.compile(r"(?P<id>\d{8}T\d{6}Z)[_.](?P<rest>.+)")
_DATABASE = re.compile(r"_(?P<name>[^.]+)\.sql\.zst\.age")


@dataclass(frozen=True)
class Listing:
    """Sizes of files in bytes, and the texts of manifests, by name."""

    files: Mapping[str, int]
    manifests: Mapping[str, str]


@dataclass(frozen=True)
class File:
    """A file of a backup as its manifest describes it. Size in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Backup:
    """One run's files: those of the manifest, and what is wrong with what is really there. `manifest` is its text."""

    id: str
    files: tuple[File, ...]
    problems: tuple[str, ...]
    manifest: str = ""

    @property
    def begun(self) -> datetime:
        """When it was begun, in UTC."""
        return datetime.strptime(self.id, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def databases(self) -> dict[str, File]:
        """The databases in it."""
        matches = ((_DATABASE.fullmatch(file.name.removeprefix(self.id)), file) for file in self.files)
        return {match["name"]: file for match, file in matches if match}

    @property
    def archive(self) -> File | None:
        """The files and folders that were saved beside the databases."""
        return self._named(f"{self.id}.files.tar.zst.age")

    @property
    def accounts(self) -> File | None:
        """The databases' accounts and rights."""
        return self._named(f"{self.id}.accounts.sql.zst.age")

    def _named(self, name: str) -> File | None:
        return next((file for file in self.files if file.name == name), None)

    def checked(self) -> "Backup":
        """Itself.

        Raises:
            OperatorError: something of it is missing or has another size.
        """
        if self.problems:
            raise OperatorError(f"The backup {self.id} isn't complete: {'; '.join(self.problems)}.")
        return self


def parse(listing: Listing) -> list[Backup]:
    """The backups of a place, newest first."""
    ids = {match["id"] for match in map(_NAME.fullmatch, listing.files) if match}
    return [_backup(one, listing.files, listing.manifests) for one in sorted(ids, reverse=True)]


def _backup(one: str, files: Mapping[str, int], manifests: Mapping[str, str]) -> Backup:
    text = manifests.get(one + MANIFEST)
    if text is None:
        return Backup(one, (), ("its manifest is missing",))
    try:
        described = tuple(File(file["name"], int(file["size"]), file["sha256"]) for file in json.loads(text)["files"])
    except (ValueError, KeyError, TypeError):
        return Backup(one, (), ("its manifest can't be read",))
    problems = []
    for file in described:
        found = files.get(file.name)
        # A name from a manifest becomes a path, here and there.
        if not file.name.startswith(one) or "/" in file.name:
            return Backup(one, (), (f"its manifest has a strange name in it: {file.name!r}",))
        if found is None:
            problems.append(f"{file.name} is missing")
        elif found != file.size:
            problems.append(f"{file.name} has {found} bytes instead of {file.size}")
    return Backup(one, described, tuple(problems), text)


def chosen(backups: Sequence[Backup], wanted: str | None) -> Backup:
    """The one with this id, or the newest, which has to be complete.

    Raises:
        OperatorError: there is none, or it isn't complete; with what else there is.
    """
    if not backups:
        raise OperatorError("There are no backups yet: `uds backup now` makes one.")
    complete = [backup.id for backup in backups if not backup.problems]
    if wanted is None:
        newest = backups[0]
        if newest.problems:
            others = f" The newest complete one: {complete[0]}." if complete else " No other one is complete either."
            raise OperatorError(f"The newest backup {newest.id} isn't complete: {'; '.join(newest.problems)}.{others}")
        return newest
    found = next((backup for backup in backups if backup.id == wanted), None)
    if found is None:
        raise OperatorError(f"There is no backup {wanted}. There are: {', '.join(complete) or 'none'}.")
    return found.checked()


def age_text(age: timedelta) -> str:
    """`3 days 4 h`, `5 h 12 min`."""
    minutes = max(0, int(age.total_seconds())) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def size_text(size: int) -> str:
    """`1.5 MiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
