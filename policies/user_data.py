"""What a server is told to be: by its user data at the first boot, or by a command over SSH.

Both come to the same shape, so that a rule on a server's files holds for both.
"""

import base64
import binascii
import gzip
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml

from policies.policy import Resource, each

# libyaml's parser is ten times as fast; not every build of PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_HEREDOC = re.compile(
    r"(?:cat|tee)\b(?P<before>[^\n]*?)<<-?\s*(?P<quote>['\"]?)(?P<end>\w+)(?P=quote)(?P<behind>[^\n]*)\n"
    r"(?P<content>.*?)\n\s*(?P=end)\b",
    re.S,
)
_TARGET = re.compile(r"(/[\w./-]+)")


@dataclass(frozen=True)
class Told:
    """What a server is told.

    `files` are path -> text. `script` is everything that runs, without comments. `cloud_config` is cloud-init's
    document, empty for others. `text` is all as it was written. `first_boot` says that it is all that the server knows.
    """

    text: str
    files: Mapping[str, str] = field(default_factory=dict)
    script: str = ""
    cloud_config: Mapping[str, Any] = field(default_factory=dict)
    first_boot: bool = False

    def commands(self) -> str:
        """All that runs, and all files, without comments."""
        return "\n".join([self.script, *(without_comments(text) for text in self.files.values())])

    def sshd(self) -> dict[str, str] | None:
        """sshd's global settings by lower-case name, as sshd reads them (the first value wins); None without any file.

        sshd's own defaults are not among them.
        """
        folder = sorted(path for path in self.files if re.fullmatch(r"/etc/ssh/sshd_config\.d/[^/]+\.conf", path))
        paths = [*folder, *(path for path in self.files if path == "/etc/ssh/sshd_config")]
        if not paths:
            return None
        settings: dict[str, str] = {}
        for path in paths:
            for line in without_comments(self.files[path]).splitlines():
                key, _, value = line.strip().partition(" ")
                if key.lower() == "match" and value.strip().lower() != "all":
                    break
                if key:
                    settings.setdefault(key.lower(), value.strip().strip('"'))
        return settings


def told(resource: Resource) -> Told | None:
    """What this resource tells a server; None if it tells nothing.

    Raises:
        UnknownValueError: a preview doesn't know it yet.
    """
    if resource.resource_type.startswith("command:"):
        return _told_by_command(resource)
    text = user_data(resource)
    return parse(text) if text else None


def user_data(resource: Resource) -> str:
    """An instance's or launch template's user data as text; empty if it has none."""
    props = resource.props
    if resource.resource_type == "linode:index/instance:Instance":
        texts = list(each(props.get("metadatas"), lambda metadata: metadata.get("userData") or ""))
        return decoded(texts[0]) if texts else ""
    plain: str = props.get("userData") or ""
    if resource.resource_type == "aws:ec2/launchTemplate:LaunchTemplate":
        return decoded(plain)
    return plain or decoded(props.get("userDataBase64") or "")


@lru_cache(maxsize=64)
def decoded(text: str) -> str:
    """Base64, and gzip below it, as clouds take user data; anything else as it is."""
    try:
        data = base64.b64decode(text, validate=False)
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode()
    except (binascii.Error, OSError, EOFError, UnicodeDecodeError):
        return text


@lru_cache(maxsize=64)
def parse(text: str) -> Told:
    """User data of the kinds that cloud-init knows: cloud-config, a script, or several of these as MIME parts."""
    if text.lstrip().lower().startswith(("content-type: multipart", "mime-version:")):
        return _multipart(text)
    if not text.lstrip().startswith("#cloud-config"):
        return _script(text)
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - both are safe loaders
    except yaml.YAMLError:
        document = None
    if not isinstance(document, dict):
        return Told(text=text, first_boot=True)
    script = "\n".join(_lines(document, "bootcmd", "runcmd"))
    return Told(
        text=text,
        files=dict(_written(document)) | dict(_heredocs(script)),
        script=without_comments(script),
        cloud_config=document,
        first_boot=True,
    )


def without_comments(text: str) -> str:
    """The text less the lines that are comments."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", ";", "//")))


def packages(data: Told) -> set[str]:
    """The packages that the first boot installs, as far as it says so."""
    named = data.cloud_config.get("packages") or []
    names = {str(item[0] if isinstance(item, list) and item else item) for item in named}
    for line in re.findall(r"\b(?:apt|apt-get|dnf|yum)\b[^\n;&|]*\binstall\b([^\n;&|]*)", data.script):
        names |= {word for word in line.split() if not word.startswith("-")}
    # Ours are in a file of their own, with alternatives.
    for path, text in data.files.items():
        if path.endswith("/packages"):
            names |= {name for line in without_comments(text).splitlines() for name in line.strip().split("|")}
    return names


def _multipart(text: str) -> Told:
    # Loaded for those who use it: it takes a while.
    from email import message_from_string  # noqa: PLC0415

    parts = [
        parse(part.get_payload(decode=True).decode(errors="replace"))  # type: ignore[union-attr] # bytes, being no multipart
        for part in message_from_string(text).walk()
        if not part.is_multipart()
    ]
    return Told(
        text="\n".join(part.text for part in parts),
        files={path: content for part in parts for path, content in part.files.items()},
        script="\n".join(part.script for part in parts),
        cloud_config={key: value for part in parts for key, value in part.cloud_config.items()},
        first_boot=True,
    )


def _script(text: str) -> Told:
    return Told(text=text, files=dict(_heredocs(text)), script=without_comments(text), first_boot=True)


def _written(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for file in document.get("write_files") or []:
        if isinstance(file, Mapping) and "path" in file:
            content = str(file.get("content") or "")
            encoded = str(file.get("encoding") or "")
            yield str(file["path"]), decoded(content) if encoded.startswith(("b64", "base64", "gz")) else content


def _lines(document: Mapping[str, Any], *keys: str) -> Iterator[str]:
    for key in keys:
        for command in document.get(key) or []:
            yield " ".join(str(word) for word in command) if isinstance(command, list) else str(command)


def _heredocs(script: str) -> Iterator[tuple[str, str]]:
    for match in _HEREDOC.finditer(script):
        target = _TARGET.search(match["before"] + " " + match["behind"])
        if target:
            yield target[1], match["content"] + "\n"


def _told_by_command(resource: Resource) -> Told | None:
    keys = ("create", "update", "stdin")
    create, update, stdin = (str(resource.props.get(key) or "") for key in keys)
    return _command(create, update, stdin)


@lru_cache(maxsize=64)
def _command(create: str, update: str, stdin: str) -> Told:
    files, scripts = _bundle(stdin)
    script = "\n".join([create, update, *scripts])
    return Told(text=script, files=files | dict(_heredocs(script)), script=without_comments(script))


def _bundle(stdin: str) -> tuple[dict[str, str], list[str]]:
    """A standard input: files and scripts of an archive in base64 (the last of its lines), or a script itself."""
    first, _, rest = stdin.partition("\n")
    for candidate in (rest, stdin) if rest else (first,):
        packed = "".join(candidate.split())
        if len(packed) < 1024 or not re.match(r"[A-Za-z0-9+/]{64}", packed):
            continue
        try:
            data = base64.b64decode(packed, validate=True)
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                return _members(archive)
        except (binascii.Error, tarfile.TarError, EOFError):
            continue
    return {}, [stdin]


def _members(archive: tarfile.TarFile) -> tuple[dict[str, str], list[str]]:
    files, scripts = {}, []
    for member in archive:
        file = archive.extractfile(member)
        if file is None:
            continue
        content = file.read().decode(errors="replace")
        name = member.name.removeprefix("./")
        # As RemoteScript lays it out: files as they are to lie on the server, and values in `data/`.
        if name.startswith("files/"):
            files[name.removeprefix("files")] = content
        else:
            scripts.append(content)
    return files, scripts
