"""Work on a server over SSH: a folder of files and a script, applied as root.

Everything goes through the standard input of one constant command, since a failing command is printed whole, and the
arguments and environment of a process can be read by others.
"""

import base64
import hashlib
import hmac
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pulumi
from pulumi_command import remote

from components.files import ServerFile
from components.settings import DEPLOY_USER, Settings

PRELUDE = Path(__file__).parent / "remote.sh"

# The bundle is unpacked in memory (/run). `timeout`, since the plugin has none; the lock, since a script goes on when
# the connection that started it breaks, and the next run must not overtake it.
_COMMAND = (
    "exec sudo -k -S -p '' -- flock -w 900 /run/lock/uds timeout 900 bash -c '"
    'set -eu; umask 077; d=$(mktemp -d /run/uds.XXXXXXXX); trap "rm -rf $d" EXIT; '
    'base64 -d | tar -x -C "$d"; cd "$d"; bash ./apply </dev/null\''
)

# How often a connection is tried, with pauses that grow to five seconds. A server that has just been made has five
# minutes until it must answer; one that answered before has one, in which it can restart. The plugin tries again after
# any failure, so more would only put off the end of a run that meets another host key. Constant, because a change would
# run every script again.
_FIRST_TRIES = 60
_TRIES = 20


@dataclass(frozen=True)
class Login:
    """How the automation gets into a server. The key's text and the password are secret."""

    private_key: str
    sudo_password: str

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The stack's own."""
        return cls(settings.deploy.private_key.get_secret_value(), settings.deploy.sudo_password.get_secret_value())


def connection(
    host: pulumi.Input[str],
    host_key: pulumi.Input[str],
    login: Login,
    bastion: remote.ConnectionArgs | None = None,
    *,
    first: bool = False,
) -> remote.ConnectionArgs:
    """A pinned connection as the automation's account, through the bastion where the server is private.

    The first one is patient with a server that is still booting. The bastion is never that: it was made before.
    """
    proxy = None
    if bastion is not None:
        proxy = remote.ProxyConnectionArgs(
            host=bastion.host,
            host_key=bastion.host_key,
            user=DEPLOY_USER,
            private_key=pulumi.Output.secret(login.private_key),
            dial_error_limit=_TRIES,
        )
    return remote.ConnectionArgs(
        host=host,
        host_key=host_key,
        user=DEPLOY_USER,
        private_key=pulumi.Output.secret(login.private_key),
        dial_error_limit=_FIRST_TRIES if first else _TRIES,
        proxy=proxy,
    )


def wait_for_ssh(
    name: str,
    address: str,
    bastion: remote.ConnectionArgs,
    machine: pulumi.CustomResource,
    parent: pulumi.Resource,
) -> remote.Command:
    """Wait, on the bastion, until a private server's sshd greets.

    Through a bastion, the plugin tries the handshake with the target once only, and a server that is still booting
    would fail the whole run.
    """
    return remote.Command(
        f"{name}-reachable",
        connection=bastion,
        create=(
            "timeout 300 bash -c 'until "
            # A try of its own time limit: while the server's firewall is still closed, a connection would hang.
            f'timeout 2 bash -c "read -r greeting < /dev/tcp/{address}/22 && [[ \\$greeting == SSH-* ]]"; '
            "do sleep 0.3; done' 2>/dev/null"
        ),
        triggers=[machine.id],
        add_previous_output_in_env=False,
        logging=remote.Logging.NONE,
        opts=pulumi.ResourceOptions(
            parent=parent, depends_on=[machine], deleted_with=machine, ignore_changes=["connection"]
        ),
    )


def bundle(name: str, script: str, files: Sequence[ServerFile], data: Mapping[str, str]) -> bytes:
    """All that a script needs, as one archive; the same contents give the same bytes.

    Not compressed: what zlib writes depends on its version, and another operator's would change every digest.
    """
    entries = [ServerFile("apply", 0o700, PRELUDE.read_text() + script), ServerFile("name", 0o600, f"{name}\n")]
    entries += [ServerFile("files" + file.path, file.mode, file.content) for file in files]
    entries += [ServerFile(f"data/{key}", 0o600, content) for key, content in data.items()]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in sorted(entries, key=lambda entry: entry.path):
            content = entry.content.encode()
            info = tarfile.TarInfo(entry.path)
            info.size, info.mode = len(content), entry.mode
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class RemoteScript(remote.Command):
    """A script that is applied as root whenever it, its files or its data change.

    It must be safe to run again, print what it changes, and never print a secret. `stdout` is a secret all the same,
    since nobody can promise for a script.
    """

    def __init__(
        self,
        name: str,
        *,
        connection: remote.ConnectionArgs,
        login: Login,
        script: str,
        files: pulumi.Input[Sequence[ServerFile]] = (),
        data: Mapping[str, pulumi.Input[str]] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Apply `script` with `files` (installed by its `install_files`) and `data` (texts in `data/NAME`)."""
        known = pulumi.Output.all(**data) if data else pulumi.Output.from_input({})
        archive = pulumi.Output.all(files, known).apply(lambda both: bundle(name, script, *both))
        # Says in a preview *that* the work changed. Keyed, so that nobody can guess a weak secret from it.
        key = login.sudo_password.encode()
        digest = archive.apply(lambda done: hmac.new(key, done, hashlib.sha256).hexdigest()[:12])
        stdin = pulumi.Output.all(pulumi.Output.secret(login.sudo_password), archive).apply(
            lambda both: f"{both[0]}\n{base64.encodebytes(both[1]).decode()}"
        )
        super().__init__(
            f"{name}-apply",
            connection=connection,
            create=pulumi.Output.concat(_COMMAND, " # ", digest),
            stdin=stdin,
            # Anything but "none" prints the output, and hangs on a line of more than 64 KiB.
            logging=remote.Logging.NONE,
            # Would hand the last output to the next run's environment.
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions.merge(
                opts, pulumi.ResourceOptions(additional_secret_outputs=["stdout", "stderr"])
            ),
        )
