"""A release: the application's files as one archive, the same bytes for the same content on every machine."""

import hashlib
import io
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.settings import SettingsError

# What differs from one working copy to the next and is no part of an application.
_LEFT_OUT = frozenset({".git", "__pycache__"})


class ReleaseError(SettingsError):
    """The release can't be delivered. The message says what is wrong and what is allowed."""


@dataclass(frozen=True)
class Release:
    """A release as it goes to the servers."""

    archive: bytes
    digest: str
    """SHA-256 of the archive."""

    @property
    def name(self) -> str:
        """What it is called on the servers, in previews and in messages."""
        return self.digest[:12]


def pack(source: Path, command: tuple[str, ...]) -> Release:
    """Pack a folder or a .tar.gz archive, of which `command` is to be started.

    Owners, times and permissions other than "executable" are left out, and nothing is compressed: compressors give
    other bytes in another version, and a release must not be new because another machine packed it.

    Raises:
        ReleaseError: there is something in it that must not get to a server, or `command` is not in it.
    """
    found = _of_folder(source) if source.is_dir() else _of_archive(source)
    entries = {info.name: (info, content) for info, content in found}
    if not entries:
        raise ReleaseError(f"application.release: {source} is empty; allowed is what `command` starts")
    _can_be_started(entries, command[0], source)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(entries):
            info, content = entries[name]
            archive.addfile(info, io.BytesIO(content))
    return Release(buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest())


def _can_be_started(entries: dict[str, tuple[tarfile.TarInfo, bytes]], program: str, source: Path) -> None:
    # Of an absolute path only the server knows.
    if program.startswith("/"):
        return
    info, _ = entries.get(posixpath.normpath(program), (None, b""))
    if info is None or info.isdir():
        raise ReleaseError(f"application.command: {program} is not in {source}; allowed is a file of the release")
    if info.isreg() and not info.mode & stat.S_IXUSR:
        raise ReleaseError(f"application.command: {program} in {source} is not executable; `chmod +x` makes it so")


def _of_folder(folder: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if _LEFT_OUT.intersection(relative.parts) or path.suffix == ".pyc":
            continue
        name = relative.as_posix()
        if path.is_symlink():
            yield _link(name, path.readlink().as_posix()), b""
        elif path.is_dir():
            yield _folder(name), b""
        elif path.is_file():
            yield _file(name, content := path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR)), content
        else:
            raise ReleaseError(f"application.release: {path} is neither a file, a folder nor a link")


def _of_archive(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if name == ".":
                    continue
                if name.startswith(("/", "../")) or name == "..":
                    raise ReleaseError(f"application.release: {path} has {member.name}, which lies outside of it")
                if member.issym():
                    yield _link(name, member.linkname), b""
                elif member.isdir():
                    yield _folder(name), b""
                # A hard link is delivered as the file that it is.
                elif (member.isfile() or member.islnk()) and (file := archive.extractfile(member)):
                    yield _file(name, content := file.read(), bool(member.mode & stat.S_IXUSR)), content
                else:
                    raise ReleaseError(f"application.release: {path} has {name}, neither a file, a folder nor a link")
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise ReleaseError(f"application.release: {path} is not a folder or a whole .tar.gz archive: {error}") from None


def _file(name: str, content: bytes, executable: bool) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    # The group is the application's on the server; nobody else may read it (guide, "Keep it on the server").
    info.size, info.mode = len(content), 0o750 if executable else 0o640
    return info


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o750
    return info


def _link(name: str, target: str) -> tarfile.TarInfo:
    end = posixpath.normpath(posixpath.join(PurePosixPath(name).parent.as_posix(), target))
    if target.startswith("/") or end == ".." or end.startswith("../"):
        raise ReleaseError(f"application.release: {name} links to {target}; allowed are links that stay in the release")
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    return info
