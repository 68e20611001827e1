"""A valid configuration, and what tests need to vary it."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from ipaddress import IPv4Address
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pyrage import x25519

from components.settings import PROJECT, Settings, parse
from uds.certificates import Authority

Config = dict[str, Any]

PASSWORD_HASH = "$6$rounds=5000$saltsaltsaltsalt$" + "aB3/" * 21 + "xy"

# Every secret of `configuration`, by its path.
SECRETS = (
    "deploy.privateKey",
    "deploy.sudoPassword",
    "deploy.sudoPasswordHash",
    "deploy.bootstrapSeed",
    "database.password",
    "database.privateKey",
    "backup.privateKey",
    "admins.alice.passwordHash",
    "admins.alice.totpSecret",
    "admins.alice.scratchCodes[0]",
)


def ed25519_pair() -> tuple[str, str]:
    """A new private key and its public line, both in OpenSSH's format."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@cache
def _valid() -> Config:
    private, public = ed25519_pair()
    backup_private, backup_public = ed25519_pair()
    authority = Authority.new("Database of test")
    certificate, key = authority.issue_server("db-1", IPv4Address("10.20.0.5"))
    return {
        "cloud": "linode",
        "region": "eu-central",
        "ssh": {"allowedSources": ["198.51.100.7/32", "2001:db8:1::/64"]},
        "deploy": {
            "publicKey": f"{public} deploy@test",
            "privateKey": private,
            "sudoPassword": "Wq3-zpFf9dLx_81kTtY0",
            "sudoPasswordHash": PASSWORD_HASH,
            "bootstrapSeed": "n0-vKq8sPb2hYwz4RmJcLd7u",
        },
        "database": {
            "password": "b7_Kx2mQv9-Lw4TzRn8cYd3P",
            "caCertificate": authority.certificate_pem,
            "certificate": certificate,
            "privateKey": key,
        },
        "backup": {
            "recipients": [str(x25519.Identity.generate().to_public())],
            "publicKey": f"{backup_public} backup@test",
            "privateKey": backup_private,
        },
        "admins": {
            "alice": {
                "publicKeys": [f"{ed25519_pair()[1]} alice@laptop"],
                "passwordHash": PASSWORD_HASH.replace("xy", "zz"),
                "totpSecret": "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP",
                "scratchCodes": ["12345678", "87654321"],
            }
        },
    }


def configuration(changes: Mapping[str, object] | None = None) -> Config:
    """A valid configuration, with the values at some paths (`app.count`) changed; None removes one."""
    config = copy.deepcopy(_valid())
    for path, value in (changes or {}).items():
        put(config, path, value)
    return config


def put(config: Config, path: str, value: object) -> None:
    """Set the value at a path, making what is missing above it, or remove it (None), as `pulumi config --path` does."""
    *above, last = steps = _steps(path)
    place: Any = config
    for step, following in zip(above, steps[1:], strict=True):
        if step not in place:
            place[step] = [] if isinstance(following, int) else {}
        place = place[step]
    if value is None:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value


def text_at(config: Mapping[str, Any], path: str) -> str:
    """The text at a path."""
    value: Any = config
    for step in _steps(path):
        value = value[step]
    return str(value)


def as_pulumi(config: Mapping[str, object]) -> dict[str, str]:
    """The configuration as Pulumi hands it to a program: every value as text, objects as JSON."""
    return {f"{PROJECT}:{key}": value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}


def settings(changes: Mapping[str, object] | None = None) -> Settings:
    """The settings of `configuration(changes)`."""
    return parse(as_pulumi(configuration(changes)))


def secret_texts(config: Mapping[str, Any]) -> Iterator[str]:
    """Every secret text in it. Of a private key, a line of its body: its first line is no secret."""
    for path in SECRETS:
        text = text_at(config, path)
        yield text.splitlines()[1] if "PRIVATE KEY" in text else text


def _steps(path: str) -> list[str | int]:
    """`admins["al-x"].codes[0]` -> admins, al-x, codes, 0."""
    found = re.findall(r'\["([^"]+)"\]|\[(\d+)\]|([^.\[\]]+)', path)
    return [int(index) if index else quoted or word for quoted, index, word in found]
