"""What this machine, somewhere on the internet, can do with the servers (guide, 3.5, 3.9 and 4.2)."""

import http.client
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography.x509 import Certificate, load_der_x509_certificate, load_pem_x509_certificates

from uds import ssh
from uds.verify.check import APP, HARDENING, Problems, check
from uds.verify.server import Server

# What else is often found open, beside all that our own programs use.
_PORTS = (
    *(21, 22, 23, 25, 53, 80, 110, 111, 123, 135, 139, 143, 389, 443, 445, 465, 587, 631, 873, 993, 1433, 1521, 2049),
    *(2375, 2812, 3000, 3003, 3306, 3389, 5432, 5900, 6379, 8000, 8080, 8443, 9090, 9200, 11211, 27017, 33060),
)

_ENDS_SOON = timedelta(days=14)


def _addresses(server: Server) -> list[str]:
    """Where the world can address it: what the stack says, and the IPv6 addresses that it has itself."""
    public = server.facts.get("publicIp")
    listed = server.read("ip -o -6 address show scope global").splitlines()
    v6 = [line.split()[3].partition("/")[0] for line in listed]
    # Unique local ones (RFC 4193) are private.
    return [*([public] if public else []), *(address for address in v6 if not address.startswith(("fc", "fd")))]


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=3):
            return True
    except OSError:
        return False


@check("3.9", "From outside, only what the rules say answers", HARDENING)
def only_these_ports_answer(server: Server) -> Problems:
    """Connections from this machine, over IPv4 and, where it has that, IPv6; all at once."""
    may = set[int]() if ssh.is_private(server.facts) else {22}
    may |= {80, 443} if server.role == "app" else set[int]()
    ports = sorted({*_PORTS, server.settings.database.port} - may)
    with ThreadPoolExecutor(64) as pool:
        for address in _addresses(server):
            for port, answered in zip(ports, pool.map(partial(_answers, address), ports), strict=True):
                if answered:
                    yield f"{address} answers on port {port}"


@check("3.5", "SSH offers nothing but keys", HARDENING)
def ssh_offers_only_keys(server: Server) -> Problems:
    """What sshd names when somebody comes with nothing."""
    for user in ("root", "somebody"):
        options = ["-o", "PreferredAuthentications=none", "-o", "BatchMode=yes", "-l", user]
        said = subprocess.run([*server.ssh, *options, server.name, "true"], capture_output=True, text=True, check=False)
        if said.returncode == 0:
            yield f"{user} gets in with nothing"
        elif "Permission denied (publickey)." not in said.stderr:
            yield f"{user} is told: {said.stderr.strip() or 'nothing'}"


@check("4.2", "HTTPS shows the stack's certificate, with modern TLS only", "uds cert show STACK, then pulumi up", APP)
def https_is_the_stacks(server: Server) -> Problems:
    """The certificate that this machine gets, and the oldest TLS that it could have."""
    application = server.settings.application
    if application.release is None or application.certificate is None:
        return
    address = server.facts["publicIp"]
    context = ssl.create_default_context()
    # Compared with the stack's own below, which is more than a chain could prove.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, 443), timeout=10) as plain,
            context.wrap_socket(plain) as secure,
        ):
            shown = load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    except OSError as error:
        yield f"https://{address}/: {error}"
        return
    yield from _compared(shown, load_pem_x509_certificates(application.certificate.encode())[0])
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    try:
        with socket.create_connection((address, 443), timeout=10) as plain, context.wrap_socket(plain) as secure:
            yield f"{secure.version()} is spoken"
    except OSError:
        pass  # refused, as it should be


def _compared(shown: Certificate, wanted: Certificate) -> Problems:
    if shown != wanted:
        yield "another certificate than the stack's is shown"
    left = shown.not_valid_after_utc - datetime.now(UTC)
    if left < _ENDS_SOON:
        yield f"the certificate ends in {left.days} days"


@check("4.2", "Plain HTTP leads to HTTPS", "the application answers on port 3000: mend it there", APP)
def http_leads_to_https(server: Server) -> Problems:
    """The answer to a request that nobody has encrypted."""
    if server.settings.application.release is None:
        return
    address = server.facts["publicIp"]
    connection = http.client.HTTPConnection(address, 80, timeout=10)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
    except OSError as error:
        yield f"http://{address}/: {error}"
        return
    finally:
        connection.close()
    if answer.status not in {301, 302, 307, 308} or not str(answer.getheader("Location")).startswith("https://"):
        yield f"http://{address}/ answers {answer.status} and leads to {answer.getheader('Location')}"
