"""The backups: made every night, kept where the database server can only add to them (guide, 3.11.2)."""

import json
import re
from collections.abc import Iterator
from typing import Any

from components.backup import PUSH_ACCOUNT, STAMP, STORE
from uds.verify.check import BACKUP, DB, Problems, check, difference
from uds.verify.people import sshd
from uds.verify.server import Server

_BACKUP = "uds apply STACK {server} backup"

# A night, and some time to make it.
_HOURS = 26


def _age(server: Server) -> float | None:
    """Hours since the newest backup was complete, as this server knows it."""
    text = server.host.run("echo $(( $(date +%%s) - $(stat -c %%Y %s) ))", STAMP).stdout.strip()
    return int(text) / 3600 if re.fullmatch(r"-?\d+", text) else None


@check(
    "3.11.2", "The newest backup is not too old", "uds ssh STACK db-1 --sudo -- systemctl start uds-backup", BACKUP | DB
)
def newest_backup(server: Server) -> Problems:
    """When the last one became complete: where it was made, and where it is kept."""
    if not server.settings.backup.are_made:
        return
    age = _age(server)
    if age is None:
        yield "there is no backup"
    elif age > _HOURS:
        yield f"the newest backup is {age:.0f} hours old"


@check("3.11.2", "A backup is made every night", _BACKUP, DB)
def backups_are_made(server: Server) -> Problems:
    """The timer, and what waits because the backup server, or the bucket, did not take it."""
    if not server.settings.backup.are_made:
        return
    timer = server.host.service("uds-backup.timer")
    if not timer.is_enabled or not timer.is_running:
        yield "uds-backup.timer is off"
    waiting = server.read("ls /var/spool/uds-backup 2>/dev/null; true").split()
    if count := sum(name.endswith(".manifest.json") for name in waiting):
        yield f"{count} backups wait in /var/spool/uds-backup for where they are kept"


@check("3.11.2", "What is kept is root's alone, and whole", _BACKUP, BACKUP)
def backups_are_kept(server: Server) -> Problems:
    """The folder, and each file that the manifests name, by its size."""
    listed = [line.split(" ") for line in server.read(f"stat -c '%n %s %a %U' {STORE} {STORE}/*").splitlines()]
    found = {path: (int(size), f"{mode} {owner}") for path, size, mode, owner in listed}
    if found.pop(STORE, (0, ""))[1] != "700 root":
        yield f"{STORE} is not root's alone"
    for path, (_, access) in found.items():
        if access != "400 root":
            yield f"{path} is open: {access}"
    manifests = [path for path in found if path.endswith(".manifest.json")]
    texts = server.read(f"cat {' '.join(manifests)} | tr -d '\\n'") if manifests else ""
    for manifest in _objects(texts):
        for file in manifest["files"]:
            size = found.get(f"{STORE}/{file['name']}", (None, ""))[0]
            if size != file["size"]:
                yield f"{file['name']} is " + ("missing" if size is None else f"of {size} bytes, not {file['size']}")


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects, one after the other."""
    decoder, start = json.JSONDecoder(), 0
    while start < len(text):
        value, start = decoder.raw_decode(text, start)
        yield value


@check("3.11.2", "The database server can only add to the backups", _BACKUP, BACKUP)
def backups_are_only_added(server: Server) -> Problems:
    """What sshd would let the account of the backups do, and from where; and who else reaches the socket behind it."""
    database = next(facts for facts in server.outputs["servers"].values() if facts["role"] == "db")
    found = sshd(server, PUSH_ACCOUNT, database.get("outwardIp", database["privateIp"]))
    wanted = {
        "authenticationmethods": "publickey",
        "disableforwarding": "yes",
        "forcecommand": "/usr/local/sbin/uds-backup-receive",
        "maxsessions": "1",
        "permittty": "no",
        "permituserrc": "no",
    }
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{name} is {found.get(name)} for {PUSH_ACCOUNT}, not {value}"
    elsewhere = sshd(server, PUSH_ACCOUNT).get("authenticationmethods")
    if elsewhere == "publickey":
        yield f"{PUSH_ACCOUNT} needs no more than its key from anywhere"
    password = server.read(f"getent shadow {PUSH_ACCOUNT}").split(":")[1]
    if password != "*":  # noqa: S105 - that it has none
        yield f"{PUSH_ACCOUNT} has a password"
    groups = server.read(f"id -nG {PUSH_ACCOUNT}").split()
    yield from difference(f"groups of {PUSH_ACCOUNT}", groups, {PUSH_ACCOUNT, "ssh-users"})
    if not server.host.service("uds-backup-store.socket").is_running:
        yield "uds-backup-store.socket is off: no backup can arrive"
    socket = server.read("stat -c '%a %U' /run/uds-backup-store 2>/dev/null; true").strip()
    if socket and socket != f"600 {PUSH_ACCOUNT}":
        yield f"/run/uds-backup-store is open: {socket}"
