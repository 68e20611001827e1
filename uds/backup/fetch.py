"""The encrypted files of a backup, copied to this machine: what the standard tools restore from."""

import os
from collections.abc import Callable
from pathlib import Path

from uds.backup.catalogue import MANIFEST, Backup, File
from uds.backup.places import Place
from uds.backup.restore import Progress
from uds.backup.servers import Download
from uds.stack import OperatorError

_BLOCK = 1 << 20


def fetch(place: Place, backup: Backup, folder: Path, progress: Progress) -> None:
    """Copy a backup's files into `folder`. What was begun by an earlier run goes on; what is there already is checked.

    Raises:
        OperatorError: a file can't be read, isn't what its manifest says, or another one of its name is in the folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in backup.files:
        seen = progress(file.name, file.size)
        target = folder / file.name
        if target.exists():
            if _digest(target, seen).sha256 != file.sha256:
                raise OperatorError(f"{target} exists, and is something else: move it away first.")
        else:
            _copy(place, file, target, seen)
    (folder / f"{backup.id}{MANIFEST}").write_text(backup.manifest)


def _copy(place: Place, file: File, target: Path, seen: Callable[[int], None]) -> None:
    part = target.with_name(target.name + ".part")
    part.touch(mode=0o600)
    earlier = _digest(part, seen)
    offset = part.stat().st_size
    with place.file(file.name, offset, seen) as download, part.open("ab") as handle:
        while block := download.read(_BLOCK):
            earlier.add(block)
            handle.write(block)
        handle.flush()
        os.fsync(handle.fileno())
    if earlier.sha256 != file.sha256:
        part.unlink()
        raise OperatorError(f"{file.name} isn't what was sent to {place.name}: its SHA-256 differs.")
    part.rename(target)


def _digest(path: Path, seen: Callable[[int], None]) -> Download:
    with path.open("rb") as handle:
        done = Download(handle, seen)
        while done.read(_BLOCK):
            pass
    return done
