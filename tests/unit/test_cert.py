"""`uds cert`: keys that never show, and certificates that are checked before a server gets them."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typer.testing import CliRunner

from components.settings import parse
from tests.unit.memory import Memory
from tests.unit.support import configuration, put
from uds import __main__ as command
from uds import cert
from uds.certificates import KeyType, general_names, private_pem
from uds.stack import OperatorError, Stack

NAMES = ("www.example.org", "example.org")
NOW = datetime.now(UTC)
NEW_KEYS = {KeyType.RSA3072: KeyType.RSA3072.new_key(), KeyType.P256: KeyType.P256.new_key()}


@pytest.fixture
def stack(tmp_path: Path) -> Memory:
    return Memory("test", tmp_path, tmp_path / "keys", {}, configuration())


@dataclass
class Signer:
    """An authority, or one below another."""

    name: str
    above: "Signer | None" = None
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    ca: bool = True
    begins: datetime = NOW - timedelta(days=30)
    ends: datetime = NOW + timedelta(days=300)

    @property
    def subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    @property
    def certificate(self) -> x509.Certificate:
        signer = self.above or self
        return signer.sign(self.key.public_key(), self.subject, ca=self.ca, begins=self.begins, ends=self.ends)

    def sign(
        self,
        key: CertificatePublicKeyTypes,
        subject: x509.Name,
        *,
        names: Sequence[str] = (),
        ca: bool | None = None,
        begins: datetime = NOW - timedelta(days=1),
        ends: datetime = NOW + timedelta(days=90),
        usage: Sequence[x509.ObjectIdentifier] = (),
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key)
            # The same certificate every time it is asked for.
            .serial_number(int.from_bytes(hashes_of(subject, key)))
            .not_valid_before(begins)
            .not_valid_after(ends)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(general_names(names)), critical=False)
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def answer(self, request: str, **changes: Any) -> x509.Certificate:  # noqa: ANN401 - as `sign` takes them
        """The certificate for a request, as an authority makes it."""
        asked = x509.load_pem_x509_csr(request.encode())
        fields: dict[str, Any] = {"names": NAMES, "ca": False, "usage": [ExtendedKeyUsageOID.SERVER_AUTH], **changes}
        key = fields.pop("key", None) or asked.public_key()
        return self.sign(key, asked.subject, **fields)


def hashes_of(subject: x509.Name, key: CertificatePublicKeyTypes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(subject.public_bytes() + x509.SubjectKeyIdentifier.from_public_key(key).digest)
    return digest.finalize()[:16]


ROOT = Signer("Root")
MIDDLE = Signer("Middle", ROOT)
LOW = Signer("Low", MIDDLE)


def files(folder: Path, *groups: Sequence[x509.Certificate]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.pem" for number in range(len(groups))]
    for path, group in zip(paths, groups, strict=True):
        path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in group))
    return paths


def request(stack: Memory, *, key_type: KeyType = KeyType.P256, names: Sequence[str] = NAMES) -> str:
    return cert.request(stack, names, key_type, replace=False)


def installed(stack: Memory, folder: Path) -> None:
    """A stack with a certificate of an authority."""
    certificate = LOW.answer(request(stack))
    cert.install(stack, files(folder, [certificate], [LOW.certificate, MIDDLE.certificate]))


# Requests


@pytest.mark.parametrize(("key_type", "size"), [(KeyType.P256, 256), (KeyType.RSA3072, 3072)])
def test_a_request_has_all_names_and_a_good_key(stack: Memory, key_type: KeyType, size: int) -> None:
    names = ["WWW.Example.org", "example.org", "*.example.org", "xn--bcher-kva.example", "192.0.2.7", "2001:db8::7"]
    asked = x509.load_pem_x509_csr(request(stack, key_type=key_type, names=names).encode())
    assert asked.is_signature_valid
    found = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in found] == [name.lower() for name in names]
    key = asked.public_key()
    assert isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))
    assert key.key_size == size
    assert asked.subject.rfc4514_string() == "CN=www.example.org"


def test_the_key_waits_among_the_secrets_and_the_one_in_use_stays(stack: Memory, tmp_path: Path) -> None:
    installed(stack, tmp_path / "files")
    before = dict(stack.application)
    request(stack)
    assert {key: stack.application[key] for key in before} == before
    assert "application.pendingPrivateKey" in stack.encrypted
    # The program takes such a stack.
    assert parse(stack.config()).application.private_key


@pytest.mark.parametrize(
    "name",
    [
        "",
        "localhost",
        "-a.example.org",
        "a_b.example.org",
        "example..org",
        "https://example.org",
        "a*.example.org",
        "*.org",
        "bücher.example",
        "1.2.3.4.5",
        "x" * 64 + ".example.org",
        ".".join(["abcdefgh"] * 32),
    ],
)
def test_what_is_no_name_is_refused(stack: Memory, name: str) -> None:
    with pytest.raises(OperatorError, match="is not the name of a server"):
        request(stack, names=[name])
    assert stack.application == {}


def test_the_same_request_is_returned_until_its_certificate_is_there(stack: Memory) -> None:
    first = request(stack)
    assert request(stack, names=reversed_names()) == first
    for names, key_type in ((NAMES[:1], KeyType.P256), (NAMES, KeyType.RSA3072)):
        with pytest.raises(OperatorError, match="is waiting for its certificate"):
            request(stack, names=names, key_type=key_type)
    assert cert.request(stack, NAMES[:1], KeyType.P256, replace=True) != first


def reversed_names() -> list[str]:
    return list(reversed(NAMES))


def test_a_long_name_leaves_the_subject_empty(stack: Memory) -> None:
    names = [".".join(["abcdefgh"] * 8) + ".example.org"]
    assert x509.load_pem_x509_csr(request(stack, names=names).encode()).subject == x509.Name([])


# Installation


@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.RSA3072])
def test_a_certificate_with_its_chain_is_installed_with_its_key(
    stack: Memory, tmp_path: Path, key_type: KeyType
) -> None:
    certificate = LOW.answer(request(stack, key_type=key_type))
    # All in one file, or each in its own: as the authority sends them.
    facts = cert.install(
        stack, files(tmp_path, [certificate, LOW.certificate], [MIDDLE.certificate], [ROOT.certificate])
    )
    application = parse(stack.config()).application
    assert application.certificate
    assert len(x509.load_pem_x509_certificates(application.certificate.encode())) == 4
    assert application.private_key
    key = load_pem_private_key(application.private_key.get_secret_value().encode(), None)
    assert key.public_key() == certificate.public_key()
    assert "pendingPrivateKey" not in stack.application
    assert "application.privateKey" in stack.encrypted
    assert "application.certificate" not in stack.encrypted
    assert set(facts.names) == set(NAMES)
    assert facts.issuer == "CN=Low"
    assert facts.days_left in (89, 90)


def test_a_renewal_for_the_same_key_is_installed(stack: Memory, tmp_path: Path) -> None:
    text = request(stack)
    cert.install(stack, files(tmp_path / "1", [LOW.answer(text, ends=NOW + timedelta(days=10))], [LOW.certificate]))
    key = stack.application["privateKey"]
    facts = cert.install(stack, files(tmp_path / "2", [LOW.answer(text)], [LOW.certificate]))
    assert stack.application["privateKey"] == key
    assert facts.days_left > 80


def test_a_wildcard_serves_a_name_below_it(stack: Memory, tmp_path: Path) -> None:
    text = request(stack, names=["www.example.org"])
    cert.install(stack, files(tmp_path, [LOW.answer(text, names=["*.example.org"])], [LOW.certificate]))
    assert "certificate" in stack.application


@pytest.mark.parametrize("breaks_at", [1, 2, 3])
def test_an_interrupted_installation_can_be_repeated(stack: Memory, tmp_path: Path, breaks_at: int) -> None:
    installed(stack, tmp_path / "old")
    paths = files(tmp_path / "new", [LOW.answer(request(stack))], [LOW.certificate])
    stack.breaks_at.append(breaks_at)
    with pytest.raises(OperatorError, match="the connection broke"):
        cert.install(stack, paths)
    cert.install(stack, paths)
    assert parse(stack.config()).application.certificate == paths[0].read_text() + paths[1].read_text()
    assert "pendingPrivateKey" not in stack.application


OTHER_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
WEAK_CA = Signer("Weak", ROOT, key=rsa.generate_private_key(65537, 1024))  # noqa: S505 - to be refused
SMALL_CURVE = Signer("Small", ROOT, key=ec.generate_private_key(ec.SECP192R1()))
EXPIRED = Signer("Old", ROOT, ends=NOW - timedelta(days=1), begins=NOW - timedelta(days=9))
NO_CA = Signer("Nobody", ROOT, ca=False)
STRANGER = Signer("Low")  # the name of the right one

Answer = Callable[[str], list[list[x509.Certificate]]]
CHAIN = [LOW.certificate, MIDDLE.certificate]
REFUSED: dict[str, tuple[Answer, str]] = {
    "another key": (lambda text: [[LOW.answer(text, key=OTHER_KEY)], CHAIN], "belongs to another key than the request"),
    "chain first": (lambda text: [CHAIN, [LOW.answer(text)]], "belongs to another key than the request"),
    "expired": (
        lambda text: [[LOW.answer(text, ends=NOW - timedelta(hours=1))], CHAIN],
        "CN=www.example.org has expired",
    ),
    "not yet": (
        lambda text: [[LOW.answer(text, begins=NOW + timedelta(hours=1))], CHAIN],
        "CN=www.example.org is not valid before",
    ),
    "a name less": (lambda text: [[LOW.answer(text, names=NAMES[1:])], CHAIN], "is not for www.example.org, but for"),
    "no names": (lambda text: [[LOW.answer(text, names=())], CHAIN], "but for no name"),
    "a wildcard too low": (
        lambda text: [[LOW.answer(text, names=["*.www.example.org", "example.org"])], CHAIN],
        "is not for www.example.org",
    ),
    "an authority": (lambda text: [[LOW.answer(text, ca=True)], CHAIN], "is an authority's"),
    "for clients": (
        lambda text: [[LOW.answer(text, usage=[ExtendedKeyUsageOID.CLIENT_AUTH])], CHAIN],
        "is not for servers",
    ),
    "no chain": (lambda text: [[LOW.answer(text)]], "The chain is missing: pass the certificate of CN=Low"),
    "a gap": (lambda text: [[LOW.answer(text)], [MIDDLE.certificate]], "CN=Middle has not signed CN=www.example.org"),
    "upside down": (lambda text: [[LOW.answer(text)], CHAIN[::-1]], "wrong order.*must be that of CN=Low"),
    "somebody of the same name": (
        lambda text: [[LOW.answer(text)], [STRANGER.certificate]],
        "CN=Low has not signed CN=www.example.org",
    ),
    "an old chain": (lambda text: [[EXPIRED.answer(text)], [EXPIRED.certificate]], "CN=Old has expired"),
    "a weak chain": (lambda text: [[WEAK_CA.answer(text)], [WEAK_CA.certificate]], "weak key .RSA 1024."),
    "a small curve": (lambda text: [[SMALL_CURVE.answer(text)], [SMALL_CURVE.certificate]], "weak key .secp192r1."),
    "signed by a server": (lambda text: [[NO_CA.answer(text)], [NO_CA.certificate]], "is no authority"),
    "twice": (lambda text: [[one := LOW.answer(text)], [one, *CHAIN]], "is in the files more than once"),
}


@pytest.mark.parametrize(("answer", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_belong_together_is_refused(stack: Memory, tmp_path: Path, answer: Answer, said: str) -> None:
    text = request(stack)
    before = json.dumps(stack.values)
    with pytest.raises(OperatorError, match=said) as refused:
        cert.install(stack, files(tmp_path, *answer(text)))
    assert json.dumps(stack.values) == before
    assert "PRIVATE" not in str(refused.value)


def test_a_broken_signature_algorithm_is_refused(stack: Memory, tmp_path: Path) -> None:
    # Made by openssl, since cryptography refuses to.
    key, csr, ca, certificate, extensions = (tmp_path / name for name in ("key", "csr", "ca", "crt", "extensions"))
    key.write_bytes(private_pem(LOW.key).encode())
    ca.write_bytes(LOW.certificate.public_bytes(Encoding.PEM))
    csr.write_text(request(stack))
    extensions.write_text(f"subjectAltName={','.join(f'DNS:{name}' for name in NAMES)}")
    openssl = f"openssl x509 -req -sha1 -in {csr} -CA {ca} -CAkey {key} -extfile {extensions} -out {certificate}"
    subprocess.run(openssl.split(), check=True, capture_output=True)
    with pytest.raises(OperatorError, match="is signed with a broken algorithm"):
        cert.install(stack, [certificate, ca])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello", "is not a certificate in PEM"),
        (LOW.certificate.public_bytes(Encoding.DER), "is not a certificate in PEM"),
        (b"", "is not a certificate in PEM"),
        (private_pem(NEW_KEYS[KeyType.P256]).encode(), "has a private key in it"),
        (None, "can't be read"),
    ],
    ids=["text", "DER", "empty", "key", "missing"],
)
def test_a_file_that_is_no_certificate_is_refused(
    stack: Memory, tmp_path: Path, content: bytes | None, said: str
) -> None:
    certificate = LOW.answer(request(stack))
    (path,) = files(tmp_path, [certificate])
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(OperatorError, match=said) as refused:
        cert.install(stack, [path, bad])
    assert "bad.pem" in str(refused.value)
    assert "certificate" not in stack.application


def test_without_a_request_there_is_nothing_to_install(stack: Memory, tmp_path: Path) -> None:
    text = request(Memory("other", tmp_path, tmp_path, {}, configuration()))
    with pytest.raises(OperatorError, match="belongs to no key of this stack: begin with `uds cert csr`"):
        cert.install(stack, files(tmp_path / "f", [LOW.answer(text)], CHAIN))


def test_a_pending_key_that_somebody_edited_is_said_to_be(stack: Memory) -> None:
    put(stack.values, "application.pendingPrivateKey", "scrambled")
    with pytest.raises(OperatorError, match="is not what `uds cert csr` made"):
        request(stack)


# Self-signed


def test_a_self_signed_certificate_serves_its_names_and_replaces_another(stack: Memory) -> None:
    names = [*NAMES, "192.0.2.7", "2001:db8::7"]
    first = cert.make_self_signed(stack, names, KeyType.P256)
    assert (list(first.names), first.issuer, first.key_type) == (names, "itself", "secp256r1")
    second = cert.make_self_signed(stack, names, KeyType.RSA3072)
    assert second.key_type == "RSA 3072"
    assert second.fingerprint != first.fingerprint
    application = parse(stack.config()).application
    assert application.certificate
    certificate = x509.load_pem_x509_certificate(application.certificate.encode())
    certificate.verify_directly_issued_by(certificate)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert stack.encrypted == {"application.privateKey"}


def test_an_authoritys_certificate_is_not_replaced_by_a_self_signed_one(stack: Memory, tmp_path: Path) -> None:
    installed(stack, tmp_path / "files")
    before = json.dumps(stack.values)
    with pytest.raises(OperatorError, match="has a certificate of CN=Low"):
        cert.make_self_signed(stack, NAMES, KeyType.P256)
    assert json.dumps(stack.values) == before


# What is shown


@pytest.mark.parametrize(
    ("days", "warned"), [(90, None), (30, None), (29, "expires in 29 days"), (0, "expires in 0 days"), (-1, "EXPIRED")]
)
def test_an_end_that_is_near_is_warned_of(days: int, warned: str | None) -> None:
    facts = cert.Facts(NAMES, "CN=Low", NOW, NOW, days, "RSA 3072", "AA")
    assert [warned in text for text in cert.warnings(facts) if warned] == ([True] if warned else [])
    assert bool(list(cert.warnings(facts))) == bool(warned)


@pytest.fixture
def uds(stack: Memory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`uds` with this stack: what it prints, and nothing of any key in it."""
    monkeypatch.setattr(Stack, "open", lambda *_, **__: stack)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command.app, list(arguments), catch_exceptions=False)
        for key in ("privateKey", "pendingPrivateKey"):
            if key in stack.application:
                assert stack.application[key].splitlines()[1] not in done.output
                assert not any(stack.application[key][30:90] in argument for argument in stack.arguments)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_the_commands_in_the_order_of_a_life(uds: Callable[..., str], tmp_path: Path, stack: Memory) -> None:
    assert "has no certificate" in uds("cert", "show", "local")
    shown = uds("cert", "self-signed", "local", "--name", "a.example.org")
    assert "a.example.org" in shown
    assert "visitors are warned" in shown
    assert "make up STACK=local" in shown
    printed = uds("cert", "csr", "local", "--name", NAMES[0], "--name", NAMES[1], "--key-type", "rsa3072")
    assert "-----BEGIN CERTIFICATE REQUEST-----" in printed
    path = tmp_path / "request.csr"
    uds("cert", "csr", "local", "--name", NAMES[0], "--name", NAMES[1], "--key-type", "rsa3072", "--output", str(path))
    assert path.read_text() in printed
    shown = uds("cert", "show", "local")
    assert "a.example.org" in shown
    assert f"A request for {', '.join(NAMES)} is waiting" in shown
    paths = files(tmp_path / "signed", [LOW.answer(path.read_text(), ends=NOW + timedelta(days=20))], CHAIN)
    shown = uds("cert", "install", "local", *map(str, paths))
    assert "CN=Low" in shown
    assert "renew it" in shown
    shown = uds("cert", "show", "local")
    assert "waiting" not in shown
    assert "RSA 3072" in shown
    assert cert.Facts.of(x509.load_pem_x509_certificates(paths[0].read_bytes())[0]).fingerprint in shown
    assert stack.application.keys() == {"certificate", "privateKey"}
