"""`uds cert`: the key and certificate of the application's HTTPS (guide, 4.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from uds import certificates
from uds.certificates import KeyType
from uds.stack import OperatorError, Stack

_REQUEST = "-----BEGIN CERTIFICATE REQUEST-----"

# Authorities need days, and people go on holiday.
WARNING_DAYS = 30


@dataclass(frozen=True)
class Facts:
    """What there is to know of the stack's certificate."""

    names: Sequence[str]
    issuer: str
    begins: datetime
    ends: datetime
    days_left: int
    key_type: str
    fingerprint: str
    """SHA-256, as browsers show it."""

    @classmethod
    def of(cls, certificate: x509.Certificate) -> "Facts":
        """Those of this certificate, now."""
        return cls(
            names=certificates.names_of(certificate),
            issuer="itself" if certificates.is_self_signed(certificate) else certificate.issuer.rfc4514_string(),
            begins=certificate.not_valid_before_utc,
            ends=certificate.not_valid_after_utc,
            days_left=(certificate.not_valid_after_utc - datetime.now(UTC)).days,
            key_type=certificates.key_type_of(certificate.public_key()),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        )


def request(stack: Stack, names: Sequence[str], key_type: KeyType, *, replace: bool) -> str:
    """Make a key and return the request (PEM) for its certificate.

    The key waits among the stack's secrets, beside the one in use, until its certificate is installed. Asked for the
    same again, the same request is returned: an authority may be at work on it.

    Raises:
        OperatorError: a name can't be used, or another request is waiting and `replace` isn't set.
    """
    wanted = certificates.general_names(names)
    pending = _pending(stack)
    if pending and not replace:
        _, waiting = pending
        names_waiting = certificates.names_of(waiting)
        if set(names_waiting) != {str(name.value) for name in wanted} or not key_type.is_of(waiting.public_key()):
            raise OperatorError(
                f"Another request, for {', '.join(names_waiting)}, is waiting for its certificate: install that first, "
                "or give the request up with --replace."
            )
        return waiting.public_bytes(Encoding.PEM).decode()
    key = key_type.new_key()
    text = certificates.signing_request(key, wanted).public_bytes(Encoding.PEM).decode()
    stack.set("application.pendingPrivateKey", certificates.private_pem(key) + text, secret=True)
    return text


def make_self_signed(stack: Stack, names: Sequence[str], key_type: KeyType) -> Facts:
    """Make a key and a certificate that nobody vouches for, and put both into the stack.

    Raises:
        OperatorError: a name can't be used, or the stack has a certificate of an authority.
    """
    wanted = certificates.general_names(names)
    current = _current(stack)
    if current and not certificates.is_self_signed(current[0]):
        raise OperatorError(
            f"The stack has a certificate of {current[0].issuer.rfc4514_string()}: visitors would be warned of a "
            "self-signed one. If you mean it, take application.certificate and application.privateKey out of the "
            "configuration first (pulumi config rm --path)."
        )
    key = key_type.new_key()
    certificate = certificates.self_signed(key, wanted)
    _store(stack, certificates.private_pem(key), [certificate])
    return Facts.of(certificate)


def install(stack: Stack, files: Sequence[Path]) -> Facts:
    """Check a certificate with its chain, and put it into the stack with the key that it belongs to.

    Raises:
        OperatorError: a file can't be used, or they don't belong together; nothing was changed.
    """
    chain = [certificate for path in files for certificate in _read(path)]
    for certificate in chain:
        if chain.count(certificate) > 1:
            raise OperatorError(
                f"{certificate.subject.rfc4514_string()} is in the files more than once: leave out the file that "
                "repeats the others."
            )
    key, wanted = _key_and_names(stack, chain[0].public_key())
    certificates.check_chain(chain, wanted, datetime.now(UTC))
    _store(stack, key, chain)
    # Last, so that an interrupted installation can be repeated.
    if "pendingPrivateKey" in stack.section("application") and key is not None:
        stack.remove("application.pendingPrivateKey")
    return Facts.of(chain[0])


def show(stack: Stack) -> tuple[Facts | None, Sequence[str]]:
    """What there is to know of the stack's certificate, and the names of a request that waits for one."""
    current, pending = _current(stack), _pending(stack)
    return Facts.of(current[0]) if current else None, certificates.names_of(pending[1]) if pending else []


def warnings(facts: Facts) -> Iterator[str]:
    """What the operator should do about the certificate."""
    if facts.days_left < 0:
        yield "It has EXPIRED: visitors can't use the application. Renew it with `uds cert csr`."
    elif facts.days_left < WARNING_DAYS:
        yield f"It expires in {facts.days_left} days: renew it with `uds cert csr`."
    if facts.issuer == "itself":
        yield "It is self-signed: visitors are warned of it. `uds cert csr` asks an authority for one that they trust."


def _key_and_names(stack: Stack, public_key: CertificatePublicKeyTypes) -> tuple[str | None, list[str]]:
    """The key that a new certificate belongs to (None: the one in use), and the names that it must have."""
    pending = _pending(stack)
    if pending and pending[1].public_key() == public_key:
        return pending[0], certificates.names_of(pending[1])
    current = _current(stack)
    if current and current[0].public_key() == public_key:
        return None, certificates.names_of(current[0])
    if pending:
        raise OperatorError(
            "The certificate belongs to another key than the request that is waiting, for "
            f"{', '.join(certificates.names_of(pending[1]))}: is it the answer to an older one? Send the authority the "
            "current one (`uds cert csr` prints it again)."
        )
    raise OperatorError(
        "The certificate belongs to no key of this stack: begin with `uds cert csr`, and have the authority sign that."
    )


def _store(stack: Stack, key: str | None, chain: Sequence[x509.Certificate]) -> None:
    if key is not None:
        stack.set("application.privateKey", key, secret=True)
    pem = "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain)
    stack.set("application.certificate", pem, secret=False)


def _current(stack: Stack) -> list[x509.Certificate]:
    text = stack.section("application").get("certificate")
    return x509.load_pem_x509_certificates(text.encode()) if text else []


def _pending(stack: Stack) -> tuple[str, x509.CertificateSigningRequest] | None:
    """The key that waits for its certificate, and the request."""
    text: str | None = stack.section("application").get("pendingPrivateKey")
    if not text:
        return None
    key, begin, rest = text.partition(_REQUEST)
    try:
        load_pem_private_key(key.encode(), password=None)
        return key, x509.load_pem_x509_csr((begin + rest).encode())
    except ValueError:
        raise OperatorError(
            "application.pendingPrivateKey is not what `uds cert csr` made: remove it (pulumi config rm --path) and "
            "ask for a certificate again."
        ) from None


def _read(path: Path) -> list[x509.Certificate]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path} can't be read: {error.strerror}.") from None
    if b"PRIVATE KEY" in text:
        raise OperatorError(
            f"{path} has a private key in it: pass files with certificates only. The key is in the stack already."
        )
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        raise OperatorError(
            f"{path} is not a certificate in PEM (-----BEGIN CERTIFICATE-----). Authorities offer that format; of a "
            f"DER file, `openssl x509 -inform der -in {path}` makes one."
        ) from None
