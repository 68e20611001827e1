"""The service `uds-changes`: sees when accounts, keys, rights or firewall rules change, whoever changes them, and how.

The kernel tells when (inotify, and nf_tables' own news); what, a comparison with the last known state tells. That state
is on the disk, so that a change while this server was off is seen too.
"""

import ctypes
import hashlib
import json
import os
import select
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

SOCKET = "/run/uds-alerts.sock"

_FOLDERS = (
    "/etc",
    "/etc/ssh/authorized_keys.d",
    "/etc/sudoers.d",
    "/root/.ssh",
    "/var/lib/google-authenticator",
)

# inotify(7): written, moved in or out, made, deleted, other permissions.
_EVENTS = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x4

_NETLINK_NETFILTER = 12
# The group with news of nf_tables (linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES), as a bit.
_NFTABLES = 1 << (7 - 1)

# One command changes several files.
_SETTLED = 0.3


def state() -> dict[str, str]:
    """Everything that counts, as a name and a value; of a secret its digest only."""
    found: dict[str, str] = {}
    for name, _, uid, gid, _, home, shell in _rows("/etc/passwd", 7):
        found[f"account: {name}"] = f"uid {uid}, gid {gid}, {home}, {shell}"
    for name, password, *_rest in _rows("/etc/shadow", 9):
        found[f"password: of {name}"] = _digest(password)
    for name, _, _, members in _rows("/etc/group", 4):
        found[f"group: {name}"] = members or "nobody"
    for path in sorted(Path("/etc/ssh/authorized_keys.d").glob("*")):
        found[f"key: of {path.name} (SSH)"] = _digest(path.read_text())
    root = Path("/root/.ssh/authorized_keys")
    if root.exists():
        found["key: of root (SSH)"] = _digest(root.read_text())
    for path in sorted(Path("/var/lib/google-authenticator").glob("[!.]*")):
        # The module rewrites the rest of it at every login.
        found[f"key: of {path.name} (one-time codes)"] = _digest(path.read_text().partition("\n")[0])
    for path in (Path("/etc/sudoers"), *sorted(Path("/etc/sudoers.d").glob("*"))):
        found[f"right: {path}"] = _digest(path.read_text())
    for version, tool in (("IPv4", "iptables-save"), ("IPv6", "ip6tables-save")):
        found |= rules(version, subprocess.run([tool], capture_output=True, text=True, check=True).stdout)
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """What changed, a line each."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        shown = "" if name.startswith(("password", "key", "right", "firewall")) else f" ({new or old})"
        if old is None:
            yield f"{name} was added{shown}"
        elif new is None:
            yield f"{name} was removed{shown}"
        elif old != new:
            yield f"{name} was changed{shown}"


def rules(version: str, saved: str) -> dict[str, str]:
    """The rules and policies in what `iptables-save` printed, and how often each is there; without the counters."""
    found: Counter[str] = Counter()
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(("-A", ":")):
            found[f"firewall: {version} {table} {line.partition(' [')[0]}"] += 1
    return {rule: str(count) for rule, count in found.items()}


def _rows(path: str, columns: int) -> Iterator[list[str]]:
    for line in Path(path).read_text().splitlines():
        row = line.split(":")
        if len(row) == columns:
            yield row


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _watch() -> tuple[int, socket.socket]:
    """Descriptors that become readable when something may have changed."""
    library = ctypes.CDLL(None, use_errno=True)
    inotify = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if inotify < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    for folder in _FOLDERS:
        # One that isn't there can't be watched; the folder above it tells when it is made.
        library.inotify_add_watch(inotify, folder.encode(), _EVENTS)
    news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    news.bind((0, _NFTABLES))
    news.setblocking(False)
    return inotify, news


def _drain(inotify: int, news: socket.socket) -> None:
    for descriptor in (inotify, news.fileno()):
        # Ends with an error when it is empty, or had more than fitted: either way there is no more to be had from it.
        with suppress(OSError):
            while os.read(descriptor, 65536):
                pass


def _tell(changes: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SOCKET)
        connection.sendall(json.dumps({"changes": changes}).encode())
        connection.shutdown(socket.SHUT_WR)
        if not connection.recv(16):
            raise OSError("the alerts' service did not answer")


def main() -> None:
    """The entry of the unit."""
    known = Path(os.environ["STATE_DIRECTORY"]) / "state.json"
    inotify, news = _watch()
    before = json.loads(known.read_text()) if known.exists() else state()
    while True:
        after = state()
        changes = list(differences(before, after))
        if changes:
            _tell(changes)
        if changes or not known.exists():
            new = known.with_suffix(".new")
            new.write_text(json.dumps(after))
            new.replace(known)
        before = after
        select.select([inotify, news.fileno()], [], [])
        time.sleep(_SETTLED)
        _drain(inotify, news)


if __name__ == "__main__":
    main()
