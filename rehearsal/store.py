"""The stand-in cloud's database: one JSON file a resource, under WORKSPACE/cloud.

A record is written before the thing that it describes is made, and removed after that thing is gone: whatever moment a
process dies at, no machine or network is left that the database doesn't know.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

FIRST_ID = 1001


class RealmError(Exception):
    """A rehearsal's machine, network or record can't be had; the message says why, in one line."""


class Store:
    """Records in a folder that only its owner can read (user data and keys pass through it)."""

    def __init__(self, folder: Path) -> None:
        """Use `folder` (made if missing, mode 0700)."""
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep out every other thread and process while a decision is made (an address, a label); not re-entrant."""
        with (self.folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def new_id(self) -> int:
        """The next id, never given twice even when its resource is gone; call it under `lock`."""
        counter = self.folder / "next-id"
        number = int(counter.read_text()) if counter.exists() else FIRST_ID
        write_atomically(counter, str(number + 1))
        return number

    def put(self, kind: str, number: int, record: Record) -> None:
        """Write the record whole: a reader sees the old one or the new one."""
        folder = self.folder / kind
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder / f"{number}.json", json.dumps(record, indent=1))

    def get(self, kind: str, number: int) -> Record | None:
        """The record, or None when there is none."""
        try:
            return _read(self.folder / kind / f"{number}.json")
        except FileNotFoundError:
            return None

    def all(self, kind: str) -> dict[int, Record]:
        """Every record of a kind by id, oldest first."""
        records = {}
        for path in (self.folder / kind).glob("*.json"):
            # A record may be removed by another process between the listing and the reading.
            with contextlib.suppress(FileNotFoundError):
                records[int(path.stem)] = _read(path)
        return dict(sorted(records.items()))

    def remove(self, kind: str, number: int) -> None:
        """Forget the record; no error if it's gone already."""
        (self.folder / kind / f"{number}.json").unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by a 0600 file with `text` that is whole on disk even if the power fails."""
    descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> Record:
    record: Record = json.loads(path.read_text())
    return record
