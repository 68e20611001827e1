"""The application: a locked account, its configuration and certificate, and a release in a sandbox (guide, 4)."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi_command import remote

from components.application.release import Release, pack
from components.files import ServerFile, read_tree
from components.firewall import METADATA_V4, METADATA_V6
from components.monit.watch import certificate, https
from components.server import Server
from components.settings import DEPLOY_USER, PROJECT, PROJECT_FOLDER, Settings

# The application isn't root, and only root may listen on ports below 1024 (guide, 3.9).
HTTP_PORT = 3000
HTTPS_PORT = 3003

HOME = "/usr/local/application"
CA_FILE = f"{HOME}/config/database-ca.pem"
CERTIFICATE_FILE = f"{HOME}/ssl/certificate.pem"
KEY_FILE = f"{HOME}/ssl/private-key.pem"

_FOLDER = Path(__file__).parent

# No run takes longer.
_KEPT_SECONDS = 24 * 3600


def configuration(settings: Settings) -> str:
    """The text of config-production.json (guide, 4.5): a secret."""
    database, application = settings.database, settings.application
    values: dict[str, Any] = {
        "database": {
            "host": str(settings.database_address),
            "port": database.port,
            "name": database.name,
            "user": database.user,
            "password": database.password.get_secret_value(),
            "caFile": CA_FILE,
        },
        "ports": {"http": HTTP_PORT, "https": HTTPS_PORT},
        # Apart, so that none of these can take the place of one of the others.
        "settings": application.settings,
    }
    if application.certificate:
        values["tls"] = {"certificateFile": CERTIFICATE_FILE, "keyFile": KEY_FILE}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def unit(command: tuple[str, ...]) -> list[ServerFile]:
    """The systemd unit that runs `command`."""
    program, *arguments = command
    # systemd wants an absolute path.
    if not program.startswith("/"):
        program = f"{HOME}/current/{program}"
    values = {
        "command": " ".join(_quoted(word) for word in (program, *arguments)),
        "ports": (HTTP_PORT, HTTPS_PORT),
        "metadata": (*METADATA_V4, *METADATA_V6),
    }
    return read_tree(_FOLDER / "files", values)


def _quoted(word: str) -> str:
    """A word as systemd reads it back, whatever is in it (systemd.service(5), "Command lines")."""
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("\n", "\\n"), ("\t", "\\t")):
        word = word.replace(special, escaped)
    return f'"{word}"'


def script_data(settings: Settings, release: Release | None) -> dict[str, str]:
    """What the script gets to know; most of it is secret."""
    application = settings.application
    data = {
        "config-production.json": configuration(settings),
        "database-ca.pem": settings.database.ca_certificate,
    }
    if application.certificate and application.private_key:
        data["certificate.pem"] = application.certificate
        # Pulumi drops the last line end of a value.
        data["private-key.pem"] = application.private_key.get_secret_value().rstrip("\n") + "\n"
    if release:
        data["release"] = release.name + "\n"
        data["release.sha256"] = release.digest + "\n"
        data["upload"] = _upload_path(release) + "\n"
        data["health-path"] = application.health_path + "\n"
        data["health.py"] = (_FOLDER / "health.py").read_text()
    return data


def _upload_path(release: Release) -> str:
    # The automation's home is its own (0700). Named by content: nothing is ever written over.
    return f"/home/{DEPLOY_USER}/uds-release-{release.name}.tar"


@dataclass(frozen=True)
class Delivery:
    """A release in a file of this machine."""

    release: Release
    file: Path
    command: tuple[str, ...]


def delivery(settings: Settings) -> Delivery | None:
    """The stack's release, packed once for all servers, if it has one.

    Raises:
        ReleaseError: it can't be delivered.
    """
    source, command = settings.application.release, settings.application.command
    if source is None or command is None:
        return None
    release = pack(PROJECT_FOLDER / source, command)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / PROJECT / "releases"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Pulumi reads the file long after the program has declared its resources, and may end the program first: so it
    # stays, and a later run clears it away.
    for old in folder.iterdir():
        if old.stat().st_mtime < time.time() - _KEPT_SECONDS:
            old.unlink(missing_ok=True)
    file, new = folder / f"{release.name}.tar", folder / f"{release.name}.{os.getpid()}"
    new.write_bytes(release.archive)
    new.replace(file)
    return Delivery(release, file, command)


def watch(settings: Settings) -> str:
    """What monit watches of it: that it answers, if the stack delivers one, and its certificate."""
    watched = certificate("application-certificate", CERTIFICATE_FILE)
    if settings.application.release is not None:
        watched += "\n" + https("application", HTTPS_PORT, settings.application.health_path)
    return watched


class Application(pulumi.ComponentResource):
    """The application on a server: all that it needs, and, where the settings name one, its release.

    A change that the application doesn't survive is taken back, and fails the run with the application's last words.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        server: Server,
        delivery: Delivery | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Make `server` ready for the application, and deliver it."""
        super().__init__("uds:application:Application", name, None, opts)
        uploads: list[pulumi.Resource] = []
        if delivery:
            upload = remote.CopyToRemote(
                f"{name}-release",
                connection=server.connection,
                # The state has its hash only. Not a part of the script's bundle, which the state holds whole.
                source=pulumi.FileAsset(str(delivery.file)),
                remote_path=_upload_path(delivery.release),
                # A copy is made again when the content is new, which it isn't for a new machine.
                triggers=[server.host_key],
                opts=pulumi.ResourceOptions(parent=self, depends_on=[server.hardening]),
            )
            uploads.append(upload)
        server.apply(
            name,
            (_FOLDER / "apply.sh").read_text(),
            files=unit(delivery.command) if delivery else [],
            data=script_data(settings, delivery.release if delivery else None),
            after=uploads,
            parent=self,
        )
        self.register_outputs({})
