"""Keys and certificates: the database's own authority, and what `uds cert` makes for the application's HTTPS."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, ip_address
from itertools import pairwise
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from uds.stack import OperatorError

_AUTHORITY_DAYS = 3650
# Long enough not to be a chore, short enough that renewing stays a habit.
_SERVER_DAYS = 366

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

# What TLS servers sign with, on every client.
ServerKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class KeyType(StrEnum):
    """The keys that `uds cert` makes."""

    P256 = "p256"
    RSA3072 = "rsa3072"
    RSA4096 = "rsa4096"

    def new_key(self) -> ServerKey:
        """A new key of this type."""
        if self is KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        return rsa.generate_private_key(65537, self._bits)

    def is_of(self, key: CertificatePublicKeyTypes) -> bool:
        """Whether a public key is of this type."""
        if self is KeyType.P256:
            return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        return isinstance(key, rsa.RSAPublicKey) and key.key_size == self._bits

    @property
    def _bits(self) -> int:
        return int(self.removeprefix("rsa"))


def private_pem(key: ServerKey) -> str:
    """The key as unencrypted PKCS 8 in PEM: a secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the stack's own. Its key never gets to a server, nor into the configuration."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str) -> "Authority":
        """A new one, for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: str, encrypted_key: bytes, passphrase: str) -> "Authority":
        """The one that was made before.

        Raises:
            OperatorError: the passphrase is wrong.
        """
        try:
            key = load_pem_private_key(encrypted_key, passphrase.encode())
        except ValueError:
            raise OperatorError("The passphrase does not open the key of the database's authority.") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise OperatorError("The key of the database's authority is not one that `uds init` made.")
        return cls(x509.load_pem_x509_certificate(certificate.encode()), key)

    @property
    def certificate_pem(self) -> str:
        """What clients verify the server with."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def encrypted_key(self, passphrase: str) -> bytes:
        """The key as PKCS 8 in PEM, encrypted."""
        encryption = BestAvailableEncryption(passphrase.encode())
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def issue_server(self, name: str, address: IPv4Address, aliases: Sequence[str] = ()) -> tuple[str, str]:
        """A server's certificate and key (PEM) for its names and its address, which clients connect to."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([*map(x509.DNSName, (name, *aliases)), x509.IPAddress(address)])
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), _SERVER_DAYS)
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM).decode(), private_pem(key)


def general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """Names of a server, host names and addresses, as a certificate has them.

    Raises:
        OperatorError: one of them can't stand in a certificate.
    """
    found: dict[x509.GeneralName, None] = {}
    for name in names:
        try:
            found[x509.IPAddress(ip_address(name))] = None
            continue
        except ValueError:
            host = name.lower()
        labels = host.removeprefix("*.").split(".")
        if (
            len(host) > 253
            or len(labels) < 2
            or labels[-1].isdigit()
            or not all(re.fullmatch(r"(?!-)[a-z0-9-]{1,63}(?<!-)", label) for label in labels)
        ):
            raise OperatorError(
                f"{name!r} is not the name of a server; allowed are names such as www.example.org or *.example.org "
                "(others than ASCII in their xn-- form), and IP addresses."
            )
        found[x509.DNSName(host)] = None
    if not found:
        raise OperatorError("Name the server: --name www.example.org.")
    return list(found)


def signing_request(key: ServerKey, names: Sequence[x509.GeneralName]) -> x509.CertificateSigningRequest:
    """A request for a certificate of these names, for an authority to sign."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(names))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )


def self_signed(key: ServerKey, names: Sequence[x509.GeneralName]) -> x509.Certificate:
    """A certificate that nobody vouches for: clients must have been given it."""
    subject, public = _subject(names), key.public_key()
    return (
        _builder(subject, subject, public, _SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def names_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """The host names and addresses that it is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def key_type_of(key: CertificatePublicKeyTypes) -> str:
    """A public key's type in words."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name
    return type(key).__name__.removesuffix("PublicKey")


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether nobody else has signed it."""
    return _issued(certificate, certificate)


def check_chain(chain: Sequence[x509.Certificate], wanted: Iterable[str], now: datetime) -> None:
    """Check that the first certificate serves the `wanted` names at the time `now`, and that each of the others has
    signed the one before it.

    Raises:
        OperatorError: what is wrong, and what to do.
    """
    own, *above = chain
    what = f"The certificate {_called(own)}"
    if _is_authority(own):
        raise OperatorError(f"{what} is an authority's: the server's own certificate comes first.")
    missing = [name for name in wanted if not _covers(names_of(own), name)]
    if missing:
        raise OperatorError(
            f"{what} is not for {', '.join(missing)}, but for {', '.join(names_of(own)) or 'no name'}. "
            "Ask the authority for one that has all names of the request."
        )
    usage = _extension(own, x509.ExtendedKeyUsage)
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise OperatorError(f"{what} is not for servers: ask the authority for one for TLS servers.")
    for certificate in chain:
        _check_date(certificate, now)
        _check_strength(certificate, rsa_bits=3072 if certificate is own else 2048)
    if not above and not is_self_signed(own):
        raise OperatorError(
            f"The chain is missing: pass the certificate of {own.issuer.rfc4514_string()} too, which the authority "
            "gave you with yours or offers for download. Browsers would not trust the server without it."
        )
    for certificate, issuer in pairwise(chain):
        if _issued(certificate, issuer):
            if not _is_authority(issuer):
                raise OperatorError(f"{_called(issuer)} has signed {_called(certificate)}, but is no authority.")
            continue
        if any(_issued(certificate, other) for other in above):
            raise OperatorError(
                f"The chain has the wrong order: the certificate behind {_called(certificate)} must be that of "
                f"{certificate.issuer.rfc4514_string()}, which has signed it."
            )
        raise OperatorError(
            f"The chain doesn't fit: {_called(issuer)} has not signed {_called(certificate)}; "
            f"the one of {certificate.issuer.rfc4514_string()} has."
        )


def _check_date(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise OperatorError(
            f"{_called(certificate)} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: wait, "
            "or set this machine's clock."
        )
    if now >= certificate.not_valid_after_utc:
        raise OperatorError(
            f"{_called(certificate)} has expired on {certificate.not_valid_after_utc:%Y-%m-%d}: get a new one."
        )


def _check_strength(certificate: x509.Certificate, rsa_bits: int) -> None:
    key = certificate.public_key()
    strong = isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey))
    if isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        strong = key.key_size >= (rsa_bits if isinstance(key, rsa.RSAPublicKey) else 256)
    if not strong:
        raise OperatorError(
            f"{_called(certificate)} has a weak key ({key_type_of(key)}); allowed are P-256 and more, and RSA of "
            f"{rsa_bits} bits and more."
        )
    # Nobody relies on what a root has signed itself with.
    if isinstance(certificate.signature_hash_algorithm, (hashes.SHA1, hashes.MD5)) and not is_self_signed(certificate):
        raise OperatorError(f"{_called(certificate)} is signed with a broken algorithm: get a new one.")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _covers(names: Iterable[str], wanted: str) -> bool:
    # A wildcard stands for one label.
    return bool({wanted.lower(), "*." + wanted.lower().partition(".")[2]} & {name.lower() for name in names})


def _called(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or ", ".join(names_of(certificate)) or "without a name"


def _subject(names: Sequence[x509.GeneralName]) -> x509.Name:
    # For people only: clients read the list of names. It has room for 64 characters.
    first = str(names[0].value)
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, first)] if len(first) <= 64 else [])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # A little back, for clocks that are late.
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
        "encipher_only decipher_only"
    ).split()
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})
