"""The realm's networks on this host: bridges, NAT, and a network namespace for each machine.

No podman networks: a machine's namespace is made before its first process runs, so its addresses and its cloud
firewall are never late. Every name on the host begins with `uds<realm number>-`, every rule carries that as comment.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from pathlib import Path
from typing import Any

from rehearsal.podman import run
from rehearsal.store import RealmError

PUBLIC = "public"
NAMESPACES = Path("/run/netns")

_ETHERNET_MTU = 1500

_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")

# Addresses work at once (no duplicate detection), and nothing but what the cloud gave is ever on the machine.
_NAMESPACE_SYSCTLS = (
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.default.dad_transmits=0",
    "net.ipv6.conf.all.accept_ra=0",
    "net.ipv6.conf.default.accept_ra=0",
)


_ROUTER_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    # Machines of one subnet reach those of another through the router, never past it.
    "net.ipv4.conf.all.send_redirects=0",
    "net.ipv4.conf.default.send_redirects=0",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.default.forwarding=1",
    "net.ipv6.conf.all.proxy_ndp=1",
    "net.ipv6.conf.default.proxy_ndp=1",
)


@dataclass(frozen=True)
class Nic:
    """A machine's interface: on the public network, or on the VPC with this id; addresses as CIDR.

    `gateways` are the ways out, one of each family at most; the public network's own need not be named.
    """

    network: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Nic":
        """The interface that `to_json` wrote."""
        return cls(data["network"], tuple(data["addresses"]), tuple(data["gateways"]))

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads."""
        return {"network": self.network, "addresses": list(self.addresses), "gateways": list(self.gateways)}


@dataclass(frozen=True)
class Router:
    """What stands between a private network's parts and the public network.

    nics: the public one first, with the addresses (v4, as CIDR) at which others are reached through it.
    neighbours: v6 addresses behind it, for which it answers on the public network.
    nft: the tables with which it filters and translates; interfaces are called `public` and `v<network>`.
    """

    nics: tuple[Nic, ...]
    neighbours: tuple[str, ...]
    nft: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Router":
        """The router that `to_json` wrote."""
        return cls(tuple(map(Nic.from_json, data["nics"])), tuple(data["neighbours"]), data["nft"])

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads."""
        nics = [nic.to_json() for nic in self.nics]
        return {"nics": nics, "neighbours": list(self.neighbours), "nft": self.nft}


class Network:
    """The host's side of realm `number`."""

    def __init__(self, number: int) -> None:
        """Nothing is touched yet."""
        self.number = number
        self.prefix = f"uds{number}-"
        self.operator_v4 = IPv4Interface(f"198.18.{number}.1/24")
        # Whatever is routed elsewhere in it (a VPC's block) is answered for by its router.
        self.operator_v6 = IPv6Interface(f"2001:db8:{number:x}::1/48")

    def public_addresses(self, index: int) -> tuple[str, str]:
        """The v4 and v6 address (CIDR) of the public network's host number `index`."""
        return (
            f"{self.operator_v4.network[index]}/{self.operator_v4.network.prefixlen}",
            f"{self.operator_v6.network[index]}/{self.operator_v6.network.prefixlen}",
        )

    def bridge(self, network: str) -> str:
        """The bridge's name of the public network or of a VPC."""
        return f"{self.prefix}{'pub' if network == PUBLIC else f'v{network}'}"

    def router_namespace(self, router: int) -> str:
        """A router's network namespace."""
        return self.namespace(_router(router))

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
        """Remove the VPC's bridge, and a router's interface on it; no error if they are gone."""
        for link in (self._outer(0, vpc), self.bridge(vpc)):
            run(["ip", "link", "delete", "dev", link], check=False)

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

    def set_router(self, router: int, spec: Router) -> None:
        """Have this router as described; connections through it survive where they still may."""
        name = self.router_namespace(router)
        if not (NAMESPACES / name).exists():
            run(["ip", "netns", "add", name])
            run(["ip", "netns", "exec", name, "sysctl", "-qw", *_NAMESPACE_SYSCTLS, *_ROUTER_SYSCTLS])
        run(["ip", "netns", "exec", name, "nft", "-f", "-"], stdin=spec.nft)
        present = {
            link["ifname"]: {
                f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"
            }
            for link in _ip_json("-n", name, "address", "show")
            if link["ifname"] != "lo"
        }
        lines = []
        for nic in spec.nics:
            device = _device(nic.network)
            if device not in present:
                outer = self._outer(router, nic.network)
                run(["ip", "link", "add", outer, "type", "veth", "peer", "name", device, "netns", name])
                run(["ip", "link", "set", "dev", outer, "master", self.bridge(nic.network), "up"])
                # It answers for others at once, not after up to 0.8 s: some (nmap) don't wait so long.
                run(["ip", "netns", "exec", name, "sysctl", "-qw", f"net.ipv6.neigh.{device}.proxy_delay=0"])
                lines.append(f"link set dev {device} up")
            there = present.pop(device, set())
            lines += [f"address del {address} dev {device}" for address in sorted(there - set(nic.addresses))]
            for address in map(ip_interface, sorted(set(nic.addresses) - there)):
                lines.append(" ".join(["address add", str(address), "dev", device, *_nodad(address)]))
        lines += [f"link del dev {device}" for device in present]
        for net in (self.operator_v4.network, self.operator_v6.network):
            lines.append(f"route replace {net} dev {_device(PUBLIC)}")
        lines.append(f"route replace default via {self.operator_v4.ip} dev {_device(PUBLIC)}")
        lines += [f"neigh replace proxy {address} dev {_device(PUBLIC)}" for address in spec.neighbours]
        run(["ip", "-n", name, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def drop_router(self, router: int) -> None:
        """Remove the router with its interfaces; no error if it's gone."""
        # The others go with the networks that they are on.
        run(["ip", "link", "delete", "dev", self._outer(router, PUBLIC)], check=False)
        self.drop(_router(router))

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
            gateways = (str(self.operator_v4.ip),) if nic.network == PUBLIC else nic.gateways
            inside += [f"route add default via {gateway} dev {device} mtu {_mtu_outside()}" for gateway in gateways]
        return "\n".join(outside) + "\n", "\n".join(inside) + "\n"

    def _outer(self, router: int, network: str) -> str:
        """This host's end of a router's interface; names have 15 characters at most."""
        return f"{self.prefix}p{router}" if network == PUBLIC else f"{self.prefix}s{network}"

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
        # Not what is bridged on a private network, which passes here as well where Docker has switched that on.
        yield "iptables", "nat", ["POSTROUTING", "-s", source, "!", "-o", every, *comment, "-j", "MASQUERADE"]


def _router(router: int) -> str:
    return f"r{router}"


def _device(network: str) -> str:
    """What a router calls its interface there."""
    return PUBLIC if network == PUBLIC else f"v{network}"


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


def _mtu_outside() -> int:
    """The largest packet, in bytes, that this host's own way out takes: less than Ethernet's on a VPN, for one.

    Larger ones would be lost where translation keeps the host's complaint from who sent them (`aws/routing.py`), and
    each download would then stand still until its time is up.
    """
    devices = {str(route["dev"]) for route in _ip_json("route", "show", "default") if "dev" in route}
    return min([_ETHERNET_MTU, *(int(Path("/sys/class/net", device, "mtu").read_text()) for device in devices)])


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
