"""The first boot: the tree in `cloud-init/` -> a server's files and its user data.

Pure: text in, text out. The same files are applied again over SSH when they change (see `server.py`), because new user
data would replace the server.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from components.files import ServerFile, digest, read_tree, render
from components.firewall import Firewall, rules_v4, rules_v6
from components.settings import DEPLOY_USER, SettingsError

ROOT = Path(__file__).parent.parent / "cloud-init"

# What hardening needs on every server, whatever its role.
BASE_PACKAGES = (
    "auditd",
    "chrony",
    # The dictionary of libpam-pwquality, which only recommends it and refuses every password without it.
    "cracklib-runtime",
    "iptables-persistent",
    "libpam-google-authenticator",
    "libpam-pwquality",
    "libpam-tmpdir",
    "unattended-upgrades",
)

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class UserDataError(SettingsError):
    """The user data can't be given to the cloud."""


@dataclass(frozen=True)
class FirstBoot:
    """What a server is to become.

    `openssh` is its version: it decides which algorithms and options sshd understands, and one that it doesn't know
    keeps sshd from starting. `deploy_sources` are the addresses from which the automation logs in (CIDR);
    `jump_targets` are the `address:port` that people may reach through this server, if it is the bastion.
    """

    hostname: str
    openssh: tuple[int, int]
    firewall: Firewall
    packages: Sequence[str]
    deploy_public_key: str
    deploy_sources: Sequence[str]
    jump_targets: Sequence[str] = ()


def server_files(boot: FirstBoot) -> list[ServerFile]:
    """The files that harden this server."""
    return read_tree(
        ROOT / "files",
        {
            "deploy_public_key": boot.deploy_public_key,
            "deploy_sources": boot.deploy_sources,
            "deploy_user": DEPLOY_USER,
            "jump_targets": boot.jump_targets,
            "openssh": boot.openssh,
            "packages": sorted({*BASE_PACKAGES, *boot.packages}),
            "rules_v4": rules_v4(boot.firewall).rstrip(),
            "rules_v6": rules_v6(boot.firewall).rstrip(),
        },
    )


def user_data(
    boot: FirstBoot,
    *,
    deploy_password_hash: str,
    host_key: ec.EllipticCurvePrivateKey,
    secrets: Sequence[str],
    limit: int,
) -> bytes:
    """The server's user data, compressed as cloud-init takes it.

    Args:
        boot: what the server is to become.
        deploy_password_hash: of the automation's sudo password; the password itself never gets here.
        host_key: proves the server at the first contact, after which it is removed (see `bootstrap_host_key`).
        secrets: texts that must not be in it: whoever gets hold of user data must not get these.
        limit: what the cloud takes at most, in bytes.

    Raises:
        UserDataError: more than the cloud takes, or a secret in it.
    """
    files = server_files(boot)
    text = render(
        (ROOT / "user-data.yaml.j2").read_text(),
        {
            "deploy_password_hash": deploy_password_hash,
            "deploy_user": DEPLOY_USER,
            "digest": digest(files),
            "files": [*files, *bootstrap_files(host_key)],
            "hostname": boot.hostname,
        },
    )
    if any(secret in text for secret in secrets):
        raise UserDataError(f"{boot.hostname}: a secret of the stack is in its user data; look for it in cloud-init/")
    # No time stamp: the same settings give the same bytes.
    data = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    if len(data) > limit:
        raise UserDataError(
            f"{boot.hostname}: user data of {len(data)} bytes is over the cloud's limit of {limit}; "
            "make the files in cloud-init/ shorter, or allow fewer addresses"
        )
    return data


def bootstrap_host_key(seed: str, hostname: str) -> ec.EllipticCurvePrivateKey:
    """The host key that pins the very first connection to a server.

    Derived from the stack's secret seed (HKDF, RFC 5869), so that every server has its own and a server more needs no
    new secret. It is of another type than the lasting key, which the server makes by itself: sshd serves both until the
    lasting one is known, so an interrupted `pulumi up` can connect again.
    """
    material = HKDF(hashes.SHA256(), length=48, salt=None, info=f"bootstrap host key of {hostname}".encode()).derive(
        seed.encode()
    )
    return ec.derive_private_key(int.from_bytes(material, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def public_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half, as one line of OpenSSH's format."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def bootstrap_files(host_key: ec.EllipticCurvePrivateKey) -> list[ServerFile]:
    """What has sshd show this key beside the lasting one."""
    path = "/etc/ssh/bootstrap_host_key"
    private = host_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    config = (
        "# For the first contact only; removed when the lasting host key is known.\n"
        f"HostKey {path}\n"
        "HostKeyAlgorithms ssh-ed25519,ecdsa-sha2-nistp256\n"
    )
    return [
        ServerFile(path, 0o600, private),
        ServerFile("/etc/ssh/sshd_config.d/00-bootstrap.conf", 0o600, config),
    ]
