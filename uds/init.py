"""`uds init`: every key and secret of a stack, made on the operator's machine."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from passlib.hash import sha512_crypt

from uds.stack import OperatorError, Stack

# A random password of 192 bits can't be guessed however fast its hash is, and sudo checks it at every script.
_ROUNDS = 5000


def initialise(stack: Stack, ask_passphrase: Callable[[], str]) -> Iterator[str]:
    """Make what the stack doesn't have yet, and say what was made. What is there stays as it is.

    What servers need goes into the stack's configuration as secrets. A copy of the deploy key, encrypted with the
    operator's passphrase, stays in the operator's key folder: the way in when Pulumi's state is lost.

    Raises:
        OperatorError: half of the deploy key is there, or Pulumi failed.
    """
    deploy = stack.section("deploy")
    if ("privateKey" in deploy) != ("publicKey" in deploy):
        raise OperatorError("deploy.publicKey and deploy.privateKey belong together: one of them is missing.")
    if "privateKey" not in deploy:
        key = ed25519.Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        stack.set("deploy.privateKey", private, secret=True)
        stack.set("deploy.publicKey", f"{public} deploy@{stack.name}", secret=False)
        deploy["privateKey"] = private
        yield "deploy key"
    if "sudoPassword" not in deploy or "sudoPasswordHash" not in deploy:
        password = secrets.token_urlsafe(24)
        stack.set("deploy.sudoPassword", password, secret=True)
        stack.set("deploy.sudoPasswordHash", sha512_crypt.using(rounds=_ROUNDS).hash(password), secret=True)
        yield "deploy's sudo password"
    if "bootstrapSeed" not in deploy:
        stack.set("deploy.bootstrapSeed", secrets.token_urlsafe(32), secret=True)
        yield "seed of the first host keys"
    backup = stack.keys / "deploy"
    if not backup.exists():
        _save_encrypted(deploy["privateKey"], backup, ask_passphrase())
        yield f"encrypted copy of the deploy key in {backup}"


def _save_encrypted(private: str, path: Path, passphrase: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = load_ssh_private_key(private.encode(), password=None)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, BestAvailableEncryption(passphrase.encode()))
    # Never half a key under the name that says there is one, and never readable by others.
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_bytes(text)
    new.rename(path)
