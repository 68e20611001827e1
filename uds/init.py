"""`uds init`: every key and secret of a stack, made on the operator's machine."""

import functools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

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
from pydantic import ValidationError
from pyrage import passphrase as age_passphrase
from pyrage import x25519

from components.settings import DATABASE_NUMBER, NetworkSettings
from uds import certificates
from uds.backup.identity import Identities
from uds.stack import OperatorError, Stack

# A random password of 192 bits can't be guessed however fast its hash is, and sudo checks it at every script. Not the
# default of 5000, which a hash doesn't name: auditors take such a hash for a weak one.
_ROUNDS = 10_000

BACKUP_IDENTITY = "backup-identity.age"
"""In the operator's key folder."""


def initialise(stack: Stack, ask_passphrase: Callable[[], str]) -> Iterator[str]:
    """Make what the stack doesn't have yet, and say what was made. What is there stays as it is.

    What servers need goes into the stack's configuration as secrets. A copy of the deploy key, encrypted with the
    operator's passphrase, stays in the operator's key folder: the way in when Pulumi's state is lost.

    Raises:
        OperatorError: half of the deploy key is there, or Pulumi failed.
    """
    # All that is needed to know, before anything is written: each answer after that takes Pulumi half a second.
    deploy, database, backup = (stack.section(key) for key in ("deploy", "database", "backup"))
    address = _database_address(stack)
    if ("privateKey" in deploy) != ("publicKey" in deploy):
        raise OperatorError("deploy.publicKey and deploy.privateKey belong together: one of them is missing.")
    if "privateKey" not in deploy:
        deploy["privateKey"] = new_key()
        set_key(stack, "deploy", deploy["privateKey"])
        yield "deploy key"
    if "sudoPassword" not in deploy or "sudoPasswordHash" not in deploy:
        password = secrets.token_urlsafe(24)
        stack.set("deploy.sudoPassword", password, secret=True)
        stack.set("deploy.sudoPasswordHash", sha512_crypt.using(rounds=_ROUNDS).hash(password), secret=True)
        yield "deploy's sudo password"
    if "bootstrapSeed" not in deploy:
        stack.set("deploy.bootstrapSeed", secrets.token_urlsafe(32), secret=True)
        yield "seed of the first host keys"
    # Asked once at most.
    passphrase = functools.cache(ask_passphrase)
    if not (stack.keys / "deploy").exists():
        copy = keep_copy(stack, deploy["privateKey"], passphrase())
        yield f"encrypted copy of the deploy key in {copy}"
    yield from _database(stack, database, address, passphrase)
    yield from _backup(stack, backup, passphrase)


def new_key() -> str:
    """An SSH key, its private half."""
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def public_line(private_key: str, comment: str) -> str:
    """The public half, as one line."""
    # Pulumi drops the last line end of a value, and it is part of the format.
    key = load_ssh_private_key((private_key.rstrip("\n") + "\n").encode(), password=None)
    return f"{key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()} {comment}"


def set_key(stack: Stack, section: str, private_key: str) -> None:
    """Write both halves of an SSH key into a section of the configuration."""
    stack.set(f"{section}.privateKey", private_key, secret=True)
    stack.set(f"{section}.publicKey", public_line(private_key, f"{section}@{stack.name}"), secret=False)


def check_passphrase(stack: Stack, passphrase: str) -> None:
    """See that it is the one of the operator's copy of the deploy key.

    Raises:
        OperatorError: it isn't.
    """
    copy = stack.keys / "deploy"
    try:
        load_ssh_private_key(copy.read_bytes(), passphrase.encode())
    except ValueError:
        raise OperatorError(f"The passphrase does not open {copy}.") from None


def keep_copy(stack: Stack, deploy_key: str, passphrase: str) -> Path:
    """Write the operator's own copy of the deploy key, encrypted; returns its path."""
    key = load_ssh_private_key((deploy_key.rstrip("\n") + "\n").encode(), password=None)
    copy = stack.keys / "deploy"
    _save(copy, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, BestAvailableEncryption(passphrase.encode())))
    return copy


def _database(
    stack: Stack, database: Mapping[str, Any], address: IPv4Address | None, passphrase: Callable[[], str]
) -> Iterator[str]:
    if "password" not in database:
        stack.set("database.password", secrets.token_urlsafe(24), secret=True)
        yield "the application's database password"
    if "migrationUser" in database and "migrationPassword" not in database:
        stack.set("database.migrationPassword", secrets.token_urlsafe(24), secret=True)
        yield "the migration user's database password"
    if "certificate" in database and "privateKey" in database:
        return
    if address is None:
        # What is wrong with it, the program tells together with all other mistakes.
        yield "no certificate for the database yet, since network.cidr can't be used"
        return
    yield from _certify(stack, database, address, passphrase)


def _database_address(stack: Stack) -> IPv4Address | None:
    try:
        return NetworkSettings.model_validate(stack.section("network")).address(DATABASE_NUMBER)
    except ValidationError:
        return None


def certify_database(stack: Stack, passphrase: Callable[[], str]) -> Iterator[str]:
    """Make a key and a certificate for the database server, and say so; the authority too, if there is none.

    Raises:
        OperatorError: the authority's key isn't here, or network.cidr can't be used.
    """
    address = _database_address(stack)
    if address is None:
        raise OperatorError("The certificate is for the database's address, and network.cidr can't be used. Mend that.")
    yield from _certify(stack, stack.section("database"), address, passphrase)


def _certify(
    stack: Stack, database: Mapping[str, Any], address: IPv4Address, passphrase: Callable[[], str]
) -> Iterator[str]:
    ca_key_file = stack.keys / "database-ca.key"
    if "caCertificate" in database and not ca_key_file.exists():
        raise OperatorError(
            f"The certificate of the database can't be signed: {ca_key_file} is missing. Copy it from the machine that "
            "made it, or remove database.caCertificate from the stack's configuration to start with a new authority."
        )
    if "caCertificate" in database:
        ca = certificates.Authority.load(database["caCertificate"], ca_key_file.read_bytes(), passphrase())
    else:
        ca = certificates.Authority.new(f"Database of {stack.name}")
        _save(ca_key_file, ca.encrypted_key(passphrase()))
        stack.set("database.caCertificate", ca.certificate_pem, secret=False)
        yield f"certificate authority of the database; its key stays in {ca_key_file}"
    certificate, key = ca.issue_server("db-1", address)
    stack.set("database.privateKey", key, secret=True)
    stack.set("database.certificate", certificate, secret=False)
    yield "the database server's certificate"


def _backup(stack: Stack, backup: Mapping[str, Any], passphrase: Callable[[], str]) -> Iterator[str]:
    """The key that adds backups is the database server's; the identity that opens them never leaves the operator."""
    wanted = {key: backup.get(key, key == "server") not in (False, "false") for key in ("server", "bucket")}
    if not any(wanted.values()):
        return
    if wanted["server"] and ("privateKey" not in backup or "publicKey" not in backup):
        set_key(stack, "backup", new_key())
        yield "the key with which the database server adds backups"
    if backup.get("recipients"):
        return
    file = stack.keys / BACKUP_IDENTITY
    if file.exists():
        recipient = Identities.load(file, passphrase).recipients[0]
    else:
        identity = x25519.Identity.generate()
        recipient = str(identity.to_public())
        save_identities(file, [identity], passphrase())
    stack.set("backup.recipients[0]", recipient, secret=False)
    yield f"the identity that opens backups, in {file}: keep a copy elsewhere"


def save_identities(file: Path, identities: Sequence[x25519.Identity], passphrase: str) -> None:
    """Write what opens backups, the newest first.

    As age-keygen writes it, encrypted as `age --passphrase` does: `age --decrypt --identity FILE` takes it.
    """
    text = "".join(f"# public key: {identity.to_public()}\n{identity}\n" for identity in identities)
    _save(file, age_passphrase.encrypt(text.encode(), passphrase))


def _save(path: Path, text: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Never half a key under the name that says there is one, and never readable by others.
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_bytes(text)
    new.rename(path)
