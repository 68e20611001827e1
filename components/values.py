"""The kinds of values that a stack's configuration is made of, each with its check.

A message never carries the value itself: it may be a secret in the wrong place. Whoever shows the mistake decides.
"""

import ipaddress
import os
import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated
from zoneinfo import available_timezones

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509 import load_pem_x509_certificates
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pyrage import RecipientError, x25519

from components.catalogue import RESERVED_NAMES

# A placeholder that somebody left in a secret would otherwise become the password of a real server.
# Anchored, so that a random secret is not taken for one.
_PLACEHOLDER = re.compile(
    r"(change|replace|placeholder|your|example|insert|todo|fixme|xxxx|<|\.\.\.)|(secret|password)$", re.I
)

_KEY_FORMATS = (
    "allowed is one line of an OpenSSH public key: ssh-ed25519, sk-ssh-ed25519@openssh.com, "
    "or ssh-rsa of 3072 bits and more"
)


def _not_a_placeholder(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text.strip():
        raise ValueError("is empty; run `uds init` to make it")
    if len(text) < 64 and _PLACEHOLDER.match(text):
        raise ValueError("is still a placeholder; run `uds init` to make a real one")
    return secret


def _is_a_hash(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"\$(6|y)\$[A-Za-z0-9./=$]{40,}", secret.get_secret_value()):
        raise ValueError("is not a password hash ($6$ or $y$); `uds` makes it")
    return secret


def _not_a_bool(value: object) -> object:
    # Python's True is the number 1.
    if isinstance(value, bool):
        raise ValueError("is not a whole number")
    return value


Whole = Annotated[int, BeforeValidator(_not_a_bool)]
Secret = Annotated[SecretStr, AfterValidator(_not_a_placeholder)]
PasswordHash = Annotated[Secret, AfterValidator(_is_a_hash)]


def public_key(text: str) -> str:
    """Check an SSH public key and return it as `TYPE BASE64 [COMMENT]` on one line.

    Allowed are ed25519 (also on a security key) and RSA of at least 3072 bits: what the servers' sshd accepts.

    Raises:
        ValueError: what is wrong and what is allowed. The text is never part of the message: it may be a private key.
    """
    line = text.strip()
    if "PRIVATE KEY" in line:
        raise ValueError(
            f"is a PRIVATE key: keep it to yourself, and make a new pair if others could read it; {_KEY_FORMATS}"
        )
    if "\n" in line:
        raise ValueError(f"has more than one line; {_KEY_FORMATS}")
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"is not a public key; {_KEY_FORMATS}") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 3072:
        raise ValueError(f"is an RSA key of {key.key_size} bits, which is too short; {_KEY_FORMATS}")
    if not isinstance(key, (rsa.RSAPublicKey, ed25519.Ed25519PublicKey)):
        raise ValueError(f"is of the type {line.split()[0]}, which the servers refuse; {_KEY_FORMATS}")
    return line


PublicKey = Annotated[str, AfterValidator(public_key)]


def _readable_key(key: SecretStr) -> SecretStr:
    try:
        load_ssh_private_key(key.get_secret_value().encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("is not an OpenSSH private key without a passphrase; run `uds init` to make one") from None
    return key


SshPrivateKey = Annotated[Secret, AfterValidator(_readable_key)]


def one_pair(public: str, private: SecretStr) -> None:
    """Check that two halves of an SSH key are of the same one.

    Raises:
        ValueError: they aren't.
    """
    if load_ssh_private_key(private.get_secret_value().encode(), password=None).public_key() != load_ssh_public_key(
        public.encode()
    ):
        raise ValueError("publicKey does not belong to privateKey; run `uds init` to make a pair")


def key_material(key: str) -> str:
    """A public key without its comment: what makes it the same key."""
    return " ".join(key.split()[:2])


def parse_network(value: object) -> IPv4Network | IPv6Network:
    """Read CIDR notation.

    Raises:
        ValueError: it is something else, or has bits set behind its prefix.
    """
    if isinstance(value, (IPv4Network, IPv6Network)):
        return value
    # Python's own messages repeat the value, which may be a private key in the wrong place.
    try:
        network = ipaddress.ip_network(str(value), strict=False)
    except ValueError:
        raise ValueError(
            "is not a network; allowed is CIDR notation, such as 198.51.100.7/32 or 2001:db8::/64"
        ) from None
    if int(ipaddress.ip_interface(str(value)).ip) != int(network.network_address):
        raise ValueError(
            f"has bits set behind its prefix; allowed is {network}, or one address with /{network.max_prefixlen}"
        )
    return network


def _source(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    # What a firewall would refuse, or understand in another way.
    if "%" in str(network):
        raise ValueError("names an interface; allowed is the address without % and what follows")
    if network.is_multicast:
        raise ValueError("is multicast; allowed are addresses that a connection can come from")
    if isinstance(network, IPv6Network) and network.subnet_of(IPv6Network("::ffff:0:0/96")):
        raise ValueError("is IPv4 written as IPv6; allowed is its IPv4 form")
    return network


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(parse_network)]
Source = Annotated[Network, AfterValidator(_source)]
Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]+$", description="a package name")]


HostName = Annotated[
    str, Field(pattern=r"^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?$")
]
# As a mail server takes it, without a name beside it (RFC 5321, in ASCII).
MailAddress = Annotated[str, Field(pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+$")]


def _time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("is not a time zone; allowed are names such as UTC or Europe/Berlin (IANA's list)")
    return name


TimeZone = Annotated[str, AfterValidator(_time_zone)]


def admin_name(name: str) -> str:
    """Check the name of a person's account.

    Raises:
        ValueError: the name is not one that `useradd` takes on every image, or belongs to the system.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", name):
        raise ValueError(f"{name!r} is not an account name; allowed are up to 31 of a-z, 0-9, - and _, a letter first")
    if name in RESERVED_NAMES or name.startswith(("systemd-", "_", "uds-")):
        raise ValueError(f"{name!r} is reserved for the system; allowed is any other name")
    return name


AdminName = Annotated[str, AfterValidator(admin_name)]


def recipient(text: str) -> str:
    """Check a public key of age (X25519: `age1...`), to which backups are encrypted.

    Others of age's kinds are refused: the servers' age may be too old for them, or would need a plugin.

    Raises:
        ValueError: it is something else. The text is never part of the message: it may be an identity.
    """
    if "SECRET-KEY" in text.upper():
        raise ValueError(
            "is an IDENTITY, which opens backups: keep it to yourself, and make a new one if others could read it; "
            "allowed is its public key (age1...)"
        )
    try:
        x25519.Recipient.from_str(text.strip())
    except RecipientError:
        raise ValueError("is not a public key of age; allowed is age1 and 58 more characters (`age-keygen`)") from None
    return text.strip()


Recipient = Annotated[str, AfterValidator(recipient)]


def database_name(name: str) -> str:
    """Check the name of a database that is saved; it becomes a part of a file's name.

    Raises:
        ValueError: it isn't one, or belongs to the engine.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ValueError("is not a database's name; allowed are up to 64 of A-Z, a-z, 0-9, - and _, not - or _ first")
    if name.lower() in {"mysql", "information_schema", "performance_schema", "sys"}:
        raise ValueError("belongs to the engine itself; accounts and rights are saved with every backup")
    return name


DatabaseName = Annotated[str, AfterValidator(database_name)]


def absolute_path(path: str) -> str:
    """Check an absolute path, in the one form that it has without links.

    Raises:
        ValueError: it is relative, has steps that lead nowhere or back, or control characters.
    """
    if not path.startswith("/") or path != os.path.normpath(path) or path.startswith("//") or not path.isprintable():
        raise ValueError("is not an absolute path; allowed is one such as /srv/files, without .., // and / at its end")
    return path


AbsolutePath = Annotated[str, AfterValidator(absolute_path)]


def certificates(text: str) -> str:
    """Check one or more certificates in PEM and return them, one after the other.

    Raises:
        ValueError: it is something else. The text is never part of the message: it may be a private key.
    """
    if "PRIVATE KEY" in text:
        raise ValueError("has a private key in it; allowed are certificates only (PEM)")
    try:
        load_pem_x509_certificates(text.encode())
    except ValueError:
        raise ValueError("is not a certificate; allowed is PEM, the server's own first") from None
    return text.strip() + "\n"


Certificates = Annotated[str, AfterValidator(certificates)]


def belongs_together(name: str, chain: str, private_key: SecretStr) -> None:
    """Check that a private key is the one of a chain's first certificate.

    Raises:
        ValueError: it isn't, or it is no private key. The key is never part of the message.
    """
    try:
        key = load_pem_private_key(private_key.get_secret_value().encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("privateKey is not a PEM private key without a passphrase") from None
    if load_pem_x509_certificates(chain.encode())[0].public_key() != key.public_key():
        raise ValueError(f"{name} does not belong to privateKey")
