"""What the tests of backups have in common: what is kept, what it says when it is opened, and what was reported."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyrage

from components.backup import STORE
from tests.rehearsal.conftest import Rehearsal

SPOOL = "/var/spool/uds-backup"

# In place of the real one: what is reported can be read, but for what monit, which watches the same, says by itself.
_ALERT = """
mv /usr/local/sbin/uds-alert /usr/local/sbin/uds-alert.real
cat > /usr/local/sbin/uds-alert <<'END'
#!/bin/sh
[ -z "$MONIT_DESCRIPTION" ] || exit 0
{ printf '%s\\n' "$*"; cat; } >> /root/alerts
END
chmod 755 /usr/local/sbin/uds-alert
"""


@dataclass(frozen=True)
class Run:
    """How a backup ended, and what was reported of it."""

    status: int
    said: str
    alerts: str


@contextmanager
def hearing_alerts(up: Rehearsal) -> Iterator[None]:
    """Have both servers write down what they report."""
    for server in ("db-1", "backup-1"):
        up.sudo(server, _ALERT)
    try:
        yield
    finally:
        for server in ("db-1", "backup-1"):
            up.sudo(server, "mv /usr/local/sbin/uds-alert.real /usr/local/sbin/uds-alert; rm -f /root/alerts")


def back_up(up: Rehearsal, before: str = "", after: str = "") -> Run:
    """What the timer starts, with more done before and after it on the database server."""
    script = f"""
        rm -f /root/alerts
        {before}
        status=0
        systemctl start uds-backup.service 2>/dev/null || status=$?
        {after}
        journalctl --sync
        id=$(systemctl show -p InvocationID --value uds-backup.service)
        said=$(journalctl -q -o cat "_SYSTEMD_INVOCATION_ID=$id")
        printf '%s\\0' "$status" "$said" "$(cat /root/alerts 2>/dev/null)"
        systemctl reset-failed uds-backup.service 2>/dev/null || true
    """
    status, said, alerts, _ = up.sudo("db-1", script).stdout.split("\0")
    return Run(int(status), said, alerts)


def kept(up: Rehearsal) -> dict[str, str]:
    """Every file on the backup server, with its checksum."""
    # One that gets its last name just then is under neither.
    listed = up.sudo("backup-1", f"cd {STORE}; find . -type f -exec sha256sum {{}} + || true").stdout
    lines = (line.partition("  ./") for line in listed.splitlines())
    return {name: digest for digest, _, name in lines}


def complete(names: dict[str, str]) -> list[str]:
    """The backups that are complete, oldest first."""
    return sorted(name.partition(".")[0] for name in names if name.endswith(".manifest.json"))


def waiting(up: Rehearsal) -> list[str]:
    """What the database server keeps for the next run."""
    return up.sudo("db-1", f"ls {SPOOL}").stdout.split()


def fetched(up: Rehearsal, name: str) -> bytes:
    """A file of the backup server."""
    return base64.b64decode(up.sudo("backup-1", f"base64 {STORE}/{name}").stdout)


def identity(up: Rehearsal) -> str:
    """What opens the backups, from the operator's key folder."""
    passphrase = (up.workspace / "passphrase").read_text()
    text: str = pyrage.passphrase.decrypt(
        (up.workspace / "keys" / "backup-identity.age").read_bytes(), passphrase
    ).decode()
    return next(line for line in text.splitlines() if line.startswith("AGE-SECRET-KEY-"))


def opened(content: bytes, key: str) -> bytes:
    """What a file is, decrypted: still compressed."""
    return bytes(pyrage.decrypt(content, [pyrage.x25519.Identity.from_str(key)]))


def unpacked(up: Rehearsal, content: bytes) -> bytes:
    """`zstd -d`, by the database server's program."""
    text = base64.b64encode(content).decode()
    script = f"base64 -d <<'END' | zstd -d | base64\n{text}\nEND"
    return base64.b64decode(up.sudo("db-1", script).stdout)


def clear(up: Rehearsal, name: str) -> bytes:
    """What is in a file of the backup server."""
    return unpacked(up, opened(fetched(up, name), identity(up)))


def manifest(up: Rehearsal, run: str) -> dict[str, int]:
    """The files of a backup, and their sizes."""
    return {file["name"]: file["size"] for file in json.loads(fetched(up, f"{run}.manifest.json"))["files"]}
