"""What a machine's power button does: podman runs this before each start of a machine (an OCI "precreate" hook).

Network, cloud firewall and root disk are made ready here, so they are in place before the machine's first process,
also when the machine reboots by itself. Only modules that load fast are imported.

Standard input: the container's OCI configuration; standard output: the same, changed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from rehearsal.aws import endpoints
from rehearsal.cloud_firewall import CloudFirewall
from rehearsal.network import Network, Nic
from rehearsal.store import RealmError, Store

ANNOTATION = "uds.machine"

# Podman lays these over the image's own. A server's journal and /tmp are as its own system has them (podman's would be
# lost at each reboot), its names and resolvers are files that it may change.
_PODMANS_OWN = frozenset(
    {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/tmp", "/var/log/journal"}  # noqa: S108 - a mount point's name
)

_RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def main(workspace: Path) -> None:
    """Prepare the machine that standard input describes."""
    config: dict[str, Any] = json.load(sys.stdin)
    machine = int(config["annotations"][ANNOTATION])
    store = Store(workspace / "cloud")
    record, realm = store.get("machines", machine), json.loads((workspace / "cloud" / "realm.json").read_text())
    if record is None:
        raise RealmError(f"machine {machine} is not in the database")
    nics = [Nic.from_json(nic) for nic in record["nics"]]
    Network(realm["number"]).build(machine, nics, CloudFirewall.from_json(record["firewall"]).nft())
    root = Path(config["root"]["path"])
    prepare_disk(root, record["root_keys"])
    endpoints.prepare_disk(root, store)
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] not in _PODMANS_OWN]
    config["linux"]["readonlyPaths"] = readonly_paths(config["linux"]["readonlyPaths"])
    json.dump(config, sys.stdout)


def prepare_disk(root: Path, root_keys: list[str]) -> None:
    """Write what a cloud writes into a disk: resolvers at each boot, root's keys before the first one."""
    (root / "etc/resolv.conf").write_text(resolvers())
    if root_keys and not (root / "etc/machine-id").read_text().strip():
        folder = root / "root/.ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        keys = folder / "authorized_keys"
        keys.touch(mode=0o600)
        keys.write_text("\n".join(root_keys) + "\n")


def resolvers() -> str:
    """The host's name servers, those that can be reached from elsewhere than the host itself."""
    lines: list[str] = []
    for path in _RESOLVERS:
        if path.exists():
            words = [line.split() for line in path.read_text().splitlines()]
            servers = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
            lines = [f"nameserver {server}" for server in servers if not server.startswith(("127.", "::1"))]
        if lines:
            break
    return "\n".join(lines[:3]) + "\n"


def readonly_paths(paths: list[str]) -> list[str]:
    """Leave /proc/sys/net to the machine: that is its namespace's own; the rest of /proc/sys is the host's."""
    others = [f"/proc/sys/{path.name}" for path in sorted(Path("/proc/sys").iterdir()) if path.name != "net"]
    return [path for path in paths if path != "/proc/sys"] + others


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (RealmError, OSError, KeyError, ValueError) as error:
        sys.exit(f"rehearsal: {error}")
