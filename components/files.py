"""Files as they lie on a server: read from a folder of the repository, rendered, and described by a digest."""

import hashlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

# Folders on the server whose files only root may read. Everything else is 0644, or 0755 where the repository's file is
# executable.
_PRIVATE_FOLDERS = ("/etc/ssh/sshd_config.d/", "/etc/uds/", "/etc/iptables/", "/etc/monit/")
_SUDOERS_FOLDER = "/etc/sudoers.d/"

# Undefined names are errors: an empty value in a security setting would pass unnoticed. What is made here is no HTML.
_TEMPLATES = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - see above
)


@dataclass(frozen=True)
class ServerFile:
    """A file on a server, owned by root: absolute path, permission bits and text."""

    path: str
    mode: int
    content: str


def render(template: str, values: Mapping[str, object]) -> str:
    """Fill in a Jinja2 template.

    Raises:
        jinja2.UndefinedError: the template asks for a value that isn't given.
    """
    return _compiled(template).render(values)


@cache
def _compiled(template: str) -> jinja2.Template:
    # Most are filled in for every server of the stack, and compiling takes longer than that.
    return _TEMPLATES.from_string(template)


def read_tree(folder: Path, values: Mapping[str, object]) -> list[ServerFile]:
    """The files below `folder`, at the same place below `/`; those named `*.j2` are filled in with `values`."""
    files = []
    for source in sorted(path for path in folder.rglob("*") if path.is_file()):
        if source.parent.name == "__pycache__":  # somebody's Python ran a module there, as the tests and editors do
            continue
        path = "/" + source.relative_to(folder).as_posix()
        content = source.read_text()
        if source.suffix == ".j2":
            path = path.removesuffix(".j2")
            content = render(content, values)
        files.append(ServerFile(path, _mode(path, source), content))
    return files


def digest(files: Sequence[ServerFile]) -> str:
    """A short name for exactly these files. Not for secrets: a weak one could be guessed from it."""
    text = "".join(f"{file.path}\0{file.mode}\0{file.content}\0" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _mode(path: str, source: Path) -> int:
    if path.startswith(_SUDOERS_FOLDER):
        return 0o440
    if source.stat().st_mode & stat.S_IXUSR:
        return 0o755
    return 0o600 if path.startswith(_PRIVATE_FOLDERS) else 0o644
