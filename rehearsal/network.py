"""The realm's networks on this host: bridges, NAT, and a network namespace for each machine.

No podman networks: a machine's namespace is made before its first process runs, so its addresses and its cloud
firewall are never late. Every name on the host begins with `uds<realm number>-`, every rule carries that as comment.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from pathlib import Path
from typing import Any

from rehearsal.podman import run
from rehearsal.store import RealmError

PUBLIC = "public"
NAMESPACES = Path("/run/netns")

_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")

# Addresses work at once (no duplicate detection), and nothing but what the cloud gave is ever on the machine.
_NAMESPACE_SYSCTLS = (
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.default.dad_transmits=0",
    "net.ipv6.conf.all.accept_ra=0",
    "net.ipv6.conf.default.accept_ra=0",
)


@dataclass(frozen=True)
class Nic:
    """A machine's interface: on the public network, or on the VPC with this id; addresses as CIDR."""

    network: str
    addresses: tuple[str, ...]


class Network:
    """The host's side of realm `number`."""

    def __init__(self, number: int) -> None:
        """Nothing is touched yet."""
        self.number = number
        self.prefix = f"uds{number}-"
        self.operator_v4 = IPv4Interface(f"198.18.{number}.1/24")
        self.operator_v6 = IPv6Interface(f"2001:db8:{number:x}::1/64")

    def public_addresses(self, index: int) -> tuple[str, str]:
        """The v4 and v6 address (CIDR) of the public network's host number `index`."""
        return (
            f"{self.operator_v4.network[index]}/{self.operator_v4.network.prefixlen}",
            f"{self.operator_v6.network[index]}/{self.operator_v6.network.prefixlen}",
        )

    def bridge(self, network: str) -> str:
        """The bridge's name of the public network or of a VPC."""
        return f"{self.prefix}{'pub' if network == PUBLIC else f'v{network}'}"

    def namespace(self, machine: int | str) -> str:
        """The machine's network namespace (and container) name."""
        return f"{self.prefix}{machine}"

    def conflicts(self) -> list[str]:
        """What on this host already routes one of the realm's networks (other than the realm itself)."""
        own = self.bridge(PUBLIC)
        mine = (self.operator_v4.network, self.operator_v6.network)
        found = []
        for family in ("-4", "-6"):
            for route in _ip_json(family, "route", "show", "table", "all"):
                if route["dst"] in {"default", "0.0.0.0/0", "::/0"} or route.get("dev") == own:
                    continue
                if route.get("type") == "multicast":
                    continue
                net = ip_network(route["dst"], strict=False)
                if any(net.version == one.version and net.overlaps(one) for one in mine):
                    found.append(f"{net} ({route.get('dev', 'no device')})")
        return found

    def owner(self) -> str | None:
        """The workspace that the public bridge was made for; None when there is no bridge."""
        found = run(["ip", "-j", "link", "show", "dev", self.bridge(PUBLIC)], check=False)
        if found.returncode != 0:
            return None
        links: list[dict[str, Any]] = json.loads(found.stdout)
        return str(links[0].get("ifalias", ""))

    def start_public(self, workspace: str) -> None:
        """The public bridge with the operator's addresses and the way out; nothing happens if it's there."""
        name = self.bridge(PUBLIC)
        self._ensure_bridge(name, workspace)
        run(["sysctl", "-qw", f"net.ipv6.conf.{name}.accept_dad=0", f"net.ipv6.conf.{name}.accept_ra=0"])
        for address in (self.operator_v4, self.operator_v6):
            run(["ip", "address", "replace", str(address), "dev", name, *_nodad(address)])
        for tool, table, rule in self._rules():
            where = [tool, "-w", "10", "-t", table]
            if run([*where, "-C", *rule], check=False).returncode != 0:
                run([*where, "-I", *rule])

    def start_vpc(self, vpc: str, workspace: str) -> None:
        """The VPC's bridge, on which the host itself has no address."""
        self._ensure_bridge(self.bridge(vpc), workspace)

    def stop_vpc(self, vpc: str) -> None:
        """Remove the VPC's bridge; no error if it's gone."""
        run(["ip", "link", "delete", "dev", self.bridge(vpc)], check=False)

    def reserve(self, machine: int) -> None:
        """Have a namespace of this name, empty: podman looks for it before the boot hook makes the real one."""
        if not (NAMESPACES / self.namespace(machine)).exists():
            run(["ip", "netns", "add", self.namespace(machine)])

    def build(self, machine: int | str, nics: Sequence[Nic], firewall: str) -> None:
        """Make the machine's namespace anew: interfaces, addresses, routes and the cloud firewall `firewall` (nft).

        A namespace left from before goes away with its rules, connections and settings: after a reboot the machine
        has what the cloud gives and what its own boot loads.
        """
        name = self.namespace(machine)
        self.drop(machine)
        run(["ip", "netns", "add", name])
        run(["ip", "netns", "exec", name, "sysctl", "-qw", *_NAMESPACE_SYSCTLS])
        run(["ip", "netns", "exec", name, "nft", "-f", "-"], stdin=firewall)
        outside, inside = self._commands(machine, nics)
        run(["ip", "-batch", "-"], stdin=outside)
        run(["ip", "-n", name, "-batch", "-"], stdin=inside)

    def drop(self, machine: int | str) -> None:
        """Remove the machine's namespace and interfaces; no error if they are gone."""
        name = self.namespace(machine)
        # Deleting the name alone would keep the interfaces as long as a process lives in the namespace.
        for link in _ip_json("link", "show", "type", "veth"):
            if str(link["ifname"]).startswith(f"{name}-"):
                run(["ip", "link", "delete", "dev", str(link["ifname"])], check=False)
        if (NAMESPACES / name).exists():
            run(["ip", "netns", "delete", name])

    def load_firewall(self, machine: int, firewall: str) -> None:
        """Replace the cloud firewall of a running machine in one step."""
        run(["ip", "netns", "exec", self.namespace(machine), "nft", "-f", "-"], stdin=firewall)

    def attached(self, machine: int, nics: Sequence[Nic]) -> bool:
        """Whether each of the machine's interfaces is on its bridge."""
        masters = {str(link["ifname"]): link.get("master") for link in _ip_json("link", "show", "type", "veth")}
        name = self.namespace(machine)
        return (NAMESPACES / name).exists() and all(
            masters.get(f"{name}-{index}") == self.bridge(nic.network) for index, nic in enumerate(nics)
        )

    def stop(self) -> None:
        """Remove everything of the realm from the host's network, whoever made it."""
        for path in NAMESPACES.glob(f"{self.prefix}*"):
            run(["ip", "netns", "delete", path.name], check=False)
        for link in _ip_json("link", "show"):
            if str(link["ifname"]).startswith(self.prefix):
                run(["ip", "link", "delete", "dev", str(link["ifname"])], check=False)
        for tool, table, rule in self._rules():
            where = [tool, "-w", "10", "-t", table]
            while run([*where, "-C", *rule], check=False).returncode == 0:
                run([*where, "-D", *rule])

    def _ensure_bridge(self, name: str, workspace: str) -> None:
        if run(["ip", "link", "show", "dev", name], check=False).returncode != 0:
            run(["ip", "link", "add", "name", name, "type", "bridge", "mcast_snooping", "0"])
            # The alias tells to whom the bridge belongs, even when the workspace's files are gone.
            run(["ip", "link", "set", "dev", name, "alias", workspace[-255:]])
        run(["ip", "link", "set", "dev", name, "up"])

    def _commands(self, machine: int | str, nics: Sequence[Nic]) -> tuple[str, str]:
        """`ip -batch` lines for the host and for the namespace."""
        name = self.namespace(machine)
        outside, inside = [], ["link set dev lo up"]
        for index, nic in enumerate(nics):
            device = f"eth{index}"
            # The peer is born inside: on the host there's never an `eth0` of ours that could clash.
            mac = f"address {self._mac(machine, index)}" if isinstance(machine, int) else ""
            outside.append(f"link add {name}-{index} type veth peer name {device} {mac} netns {name}")
            outside.append(f"link set dev {name}-{index} master {self.bridge(nic.network)} up")
            inside.append(f"link set dev {device} up")
            for address in map(ip_interface, nic.addresses):
                inside.append(" ".join(["address add", str(address), "dev", device, *_nodad(address)]))
            if nic.network == PUBLIC:
                inside.append(f"route add default via {self.operator_v4.ip} dev {device}")
        return "\n".join(outside) + "\n", "\n".join(inside) + "\n"

    def _mac(self, machine: int, index: int) -> str:
        """A locally administered address, the same at every boot."""
        return (
            f"02:{self.number:02x}:{machine >> 16 & 255:02x}:{machine >> 8 & 255:02x}:{machine & 255:02x}:{index:02x}"
        )

    def _rules(self) -> Iterable[tuple[str, str, list[str]]]:
        """(tool, table, rule) for the host's own firewall, where others (Docker) let FORWARD drop."""
        comment = ["-m", "comment", "--comment", self.prefix.rstrip("-")]
        public, every = self.bridge(PUBLIC), f"{self.prefix}+"
        source = str(self.operator_v4.network)
        for tool in ("iptables", "ip6tables"):
            yield tool, "filter", ["FORWARD", "-i", every, "-o", every, *comment, "-j", "ACCEPT"]
        yield "iptables", "filter", ["FORWARD", "-i", public, "-s", source, *comment, "-j", "ACCEPT"]
        established = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
        yield "iptables", "filter", ["FORWARD", "-o", public, "-d", source, *established, *comment, "-j", "ACCEPT"]
        yield "iptables", "nat", ["POSTROUTING", "-s", source, "!", "-o", public, *comment, "-j", "MASQUERADE"]


def enable_forwarding() -> bool:
    """Let this host forward IPv4; True if it had to be switched on."""
    if _IP_FORWARD.read_text().strip() == "1":
        return False
    _IP_FORWARD.write_text("1")
    return True


def restore_forwarding() -> None:
    """Switch forwarding off again, unless another bridge (a realm's, Docker's, libvirt's) came to rely on it."""
    if not _ip_json("link", "show", "type", "bridge"):
        _IP_FORWARD.write_text("0")


def _nodad(address: object) -> list[str]:
    return ["nodad"] if isinstance(address, IPv6Interface) else []


def _ip_json(*args: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run(["ip", "-j", *args]).stdout or "[]")
    # `ip -j` prints an empty object for what the filter left out.
    return [row for row in rows if row]


def check_tools() -> None:
    """Raises RealmError when a command that the networks need is missing or this process isn't root."""
    for tool in ("ip", "nft", "iptables", "ip6tables", "sysctl", "podman"):
        run([tool, "--version"], check=False)
    if run(["ip", "netns", "list"], check=False).returncode != 0:
        raise RealmError("network namespaces can't be listed: a rehearsal must run as root")
