"""Keys and certificates: the database's own authority, and what `uds cert` makes for the application's HTTPS."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
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
_SERVER_DAYS = 397


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
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

    def issue_server(self, name: str, address: IPv4Address) -> tuple[str, str]:
        """A server's certificate and key (PEM) for its name and its address, which clients connect to."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(address)])
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


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
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
