"""`uds rotate`: new keys and passwords in the place of those in use, with no moment in which nobody gets in.

Each makes the new one, brings it where `pulumi up` can't, and leaves the rest to the next `pulumi up`. Interrupted,
each can be run again.
"""

import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyrage import x25519

from components.cloud_init import bootstrap_files, bootstrap_host_key
from components.settings import DEPLOY_USER
from uds import init, ssh
from uds.backup.identity import Identities
from uds.stack import OperatorError, Stack

_AUTHORIZED_KEYS = f"/etc/ssh/authorized_keys.d/{DEPLOY_USER}"


def deploy_key(stack: Stack, ask_passphrase: Callable[[], str]) -> None:
    """Make another deploy key and have every server take both, until the next `pulumi up` takes the old one away.

    Raises:
        OperatorError: a server can't be reached, or doesn't take the new key. The old one is still the stack's then.
    """
    passphrase = ask_passphrase()
    init.check_passphrase(stack, passphrase)
    outputs = stack.outputs()
    section = stack.section("deploy")
    # Not the configuration's public key: interrupted between the two, they are no pair.
    private, comment = init.new_key(), f"{DEPLOY_USER}@{stack.name}"
    keys = "".join(f"{init.public_line(key, comment)}\n" for key in (section["privateKey"], private))
    names = sorted(outputs["servers"])
    with ThreadPoolExecutor(len(names)) as pool, ssh.opened(stack, outputs) as command:

        def take(name: str) -> None:
            done = ssh.as_root(command, name, section["sudoPassword"], _install(_AUTHORIZED_KEYS, 0o644), keys)
            _check(name, done)

        list(pool.map(take, names))
    with tempfile.TemporaryDirectory() as folder, ssh.agent(private, Path(folder)) as socket:
        config = ssh.write_config(Path(folder), outputs, f"IdentityAgent {socket}")
        for name in names:
            command = ["ssh", "-F", str(config), name, "true"]
            _check(name, subprocess.run(command, capture_output=True, text=True, check=False))
    init.keep_copy(stack, private, passphrase)
    init.set_key(stack, "deploy", private)


def host_key(stack: Stack, server: str) -> str:
    """Have a server make another host key; returns what `pulumi up` has to replace to learn it.

    It is learned as the first one was: pinned by the key of the stack's seed, which the server shows again until then.

    Raises:
        OperatorError: no such server, or it can't be reached.
    """
    outputs = stack.outputs()
    ssh.check_server(outputs, server)
    deploy = stack.section("deploy")
    files = bootstrap_files(bootstrap_host_key(deploy["bootstrapSeed"], server))
    steps = [
        "cd /etc/ssh",
        *(f"printf %s {shlex.quote(file.content)} | {_install(file.path, file.mode)}" for file in files),
        "rm -f ssh_host_ed25519_key ssh_host_ed25519_key.pub",
        "ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key",
        # Root's umask keeps it from the automation otherwise.
        "chmod 644 ssh_host_ed25519_key.pub",
        "sshd -t",
        "systemctl reload ssh",
    ]
    with ssh.opened(stack, outputs) as command:
        # The script has a key in it, so it is no argument either.
        _check(server, ssh.as_root(command, server, deploy["sudoPassword"], "sh -eu", "\n".join(steps)))
    return f"**::{server}-first-contact"


def database_password(stack: Stack) -> None:
    """Make other passwords for the database's accounts."""
    stack.set("database.password", secrets.token_urlsafe(24), secret=True)
    if "migrationPassword" in stack.section("database"):
        stack.set("database.migrationPassword", secrets.token_urlsafe(24), secret=True)


def database_certificate(stack: Stack, ask_passphrase: Callable[[], str]) -> None:
    """Make another key and certificate for the database server, signed by the stack's own authority.

    Raises:
        OperatorError: the authority's key isn't here, or network.cidr can't be used.
    """
    list(init.certify_database(stack, ask_passphrase))


def backup_identity(stack: Stack, ask_passphrase: Callable[[], str]) -> str:
    """Make another identity that opens backups, and return its recipient, to which the next ones are encrypted.

    The old one stays in the operator's file, since it opens what was made before. Other people's recipients stay.

    Raises:
        OperatorError: the file with the old ones can't be opened.
    """
    file = stack.keys / init.BACKUP_IDENTITY
    passphrase = ask_passphrase()
    old = Identities.load(file, lambda: passphrase)
    new = x25519.Identity.generate()
    init.save_identities(file, [new, *old.identities], passphrase)
    recipient = str(new.to_public())
    recipients = stack.section("backup").get("recipients", [])
    place = next((place for place, one in enumerate(recipients) if one in old.recipients), len(recipients))
    stack.set(f"backup.recipients[{place}]", recipient, secret=False)
    return recipient


def _install(path: str, mode: int) -> str:
    """A line of shell that writes its standard input to `path`, whole or not at all."""
    return f"install -m {mode:04o} /dev/stdin {path}.new && mv {path}.new {path}"


def _check(server: str, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise OperatorError(f"{server}: {done.stderr.strip() or f'exit status {done.returncode}'}. Run it again.")
