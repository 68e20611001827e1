"""AWS's own servers in a rehearsal, seen from outside: started when there is a bucket, ended when there is none.

They are one process of this host for each realm (`services.py`): S3 on an address of the public network, under its real
names, and the metadata service in each VPC's router. What they know follows from the database, so a process that was
killed is simply started again. What its buckets held is lost then: it was in its memory.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rehearsal.network import PUBLIC, Network
from rehearsal.podman import run
from rehearsal.store import RealmError, Store, write_atomically

if TYPE_CHECKING:
    from rehearsal.realm import Realm

# Types of records that these servers know of.
BUCKET, ROLE, ROLE_POLICY, PROFILE = "bucket", "role", "role policy", "instance profile"

METADATA = "169.254.169.254"

ADDRESS = 2
"""Host number on the public network: below the machines'."""

_PROJECT = Path(__file__).parents[2]
_START_SECONDS = 60


def address(network: Network) -> str:
    """Where S3 answers."""
    return network.public_addresses(ADDRESS)[0].partition("/")[0]


def control(network: Network) -> str:
    """The socket that the process listens on for what is said here; its path must be short."""
    return f"/run/{network.prefix}aws.sock"


def operator_file(workspace: Path) -> Path:
    """The environment with which AWS's tools of the operator reach these servers."""
    return workspace / "cloud" / "aws" / "operator.json"


def sync(realm: "Realm") -> bool:
    """Have the servers know what the database says; returns whether they had to be started.

    Raises:
        RealmError: they don't start, or refuse something.
    """
    with _alone(realm.store):
        records = [record for record in realm.store.all("resources").values() if record.get("what") == BUCKET]
        if not records:
            if _process(realm.network) is not None:
                _stop(realm.network)
                _tell_machines(realm, "")
                for left in (realm.store.folder / "machine.json", operator_file(realm.workspace)):
                    left.unlink(missing_ok=True)
            return False
        # Always: a network that was lost, and made again, doesn't have it.
        run(["ip", "address", "replace", f"{address(realm.network)}/32", "dev", realm.network.bridge(PUBLIC)])
        started = _process(realm.network) is None
        if started:
            _start(realm)
        problems = _ask(realm.network, "sync")
        if problems:
            raise RealmError("; ".join(problems))
        names = [name for record in records for name in _names(record)]
        _tell_machines(realm, f"{address(realm.network)} {' '.join(dict.fromkeys(names))}")
        return started


def holds_something(realm: "Realm", bucket: str) -> bool:
    """Whether there is anything in a bucket, or was and can be had back."""
    with _alone(realm.store):
        return bool(_ask(realm.network, f"holds {bucket}"))


def stop(realm: "Realm") -> None:
    """End them; no error if they don't run."""
    with _alone(realm.store):
        _stop(realm.network)


def prepare_disk(root: Path, store: Store) -> None:
    """Before a machine boots: let it know S3 by its names, and trust its certificate as the public authorities'."""
    saved = store.folder / "machine.json"
    if saved.exists():
        known = json.loads(saved.read_text())
        run(["sh", "-ec", _PREPARE, "sh", str(root), known["hosts"]], stdin=known["authority"])


_MARK = "# AWS, in a rehearsal"
# $1 is the root of the disk, $2 the line of the hosts file; the authority comes on standard input.
_PREPARE = f"""
grep -v '{_MARK}$' "$1/etc/hosts" > "$1/etc/hosts.new" || true
[ -z "$2" ] || printf '%s {_MARK}\\n' "$2" >> "$1/etc/hosts.new"
cat "$1/etc/hosts.new" > "$1/etc/hosts"
rm "$1/etc/hosts.new"
mkdir -p "$1/usr/local/share/ca-certificates"
own=$1/usr/local/share/ca-certificates/aws-in-a-rehearsal.crt
cat > "$own"
line=$(sed -n 2p "$own")
[ -z "$line" ] || grep -qF "$line" "$1/etc/ssl/certs/ca-certificates.crt" ||
    cat "$own" >> "$1/etc/ssl/certs/ca-certificates.crt"
"""


def _names(record: dict[str, Any]) -> list[str]:
    endpoint = f"s3.{record['inputs']['region']}.amazonaws.com"
    return [endpoint, f"{record['facts']['bucket']}.{endpoint}"]


def _tell_machines(realm: "Realm", hosts: str) -> None:
    """Those that run, and by a file those that boot later."""
    saved = realm.store.folder / "machine.json"
    authority = (realm.store.folder / "aws" / "authority.pem").read_text()
    known = json.dumps({"hosts": hosts, "authority": authority})
    if saved.exists() and saved.read_text() == known:
        return
    write_atomically(saved, known)
    for number in realm.power.running():
        done = realm.power.exec(number, ["sh", "-ec", _PREPARE, "sh", "", hosts], stdin=authority)
        if done.returncode:
            raise RealmError(f"machine {number} can't be told of S3: {done.stderr.strip()}")


def _start(realm: "Realm") -> None:
    folder = realm.store.folder / "aws"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rehearsal.aws.services", str(realm.workspace)],
            cwd="/",
            env={"PYTHONPATH": str(_PROJECT), "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # It outlives the run that needs it first.
            start_new_session=True,
        )
    end = time.monotonic() + _START_SECONDS
    while _process(realm.network) is None:
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            last = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
            raise RealmError(f"AWS's servers did not start: {' '.join(last)}")
        time.sleep(0.05)


def _process(network: Network) -> int | None:
    """The number of the process that listens, as the kernel knows it; None where nobody does."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(control(network))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        # struct ucred: process, user, group (unix(7)).
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        process: int = struct.unpack("3i", found)[0]
        return process


def _stop(network: Network) -> None:
    process = _process(network)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        while _process(network) is not None:
            time.sleep(0.02)
    Path(control(network)).unlink(missing_ok=True)


def _ask(network: Network, what: str) -> list[str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_START_SECONDS)
        try:
            connection.connect(control(network))
            connection.sendall(f"{what}\n".encode())
            with connection.makefile() as answer:
                found: list[str] = json.loads(answer.readline())
        except (OSError, ValueError) as error:
            raise RealmError(f"AWS's servers of this rehearsal don't answer: {error}") from None
    return found


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[None]:
    """One thread or process at a time starts, ends or tells them something."""
    with (store.folder / "aws-lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
