"""Readers of what the firewall model is rendered to, written without looking at the renderer.

`Ruleset` understands iptables-save text as iptables-restore does, for the few options that our files may use: anything
else is an error, so a rendered text is either understood completely or refused. The cloud readers decide as Linode
(first match, port notation) and AWS (one rule per source network) do.
"""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from components.firewall import CloudRule, Packet

ALL_TABLES = {"filter", "raw", "nat", "security", "mangle"}
BUILT_IN = {
    "filter": {"INPUT", "FORWARD", "OUTPUT"},
    "raw": {"PREROUTING", "OUTPUT"},
    "nat": {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
    "security": {"INPUT", "FORWARD", "OUTPUT"},
    "mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
}
TARGETS = {"ACCEPT", "DROP", "REJECT", "RESET"}
ICMPV6_TYPES = {"router-advertisement": 134, "neighbour-solicitation": 135, "neighbour-advertisement": 136, "130": 130}


@dataclass(frozen=True)
class Probe:
    """A packet as the kernel's filter sees it. Ports are the packet's own; `original_port` is set by a redirect."""

    protocol: str
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    port: int = 0
    source_port: int = 40000
    interface: str = "eth0"
    state: str = "NEW"
    syn: bool = True
    icmp_type: int = 0
    hop_limit: int = 64
    uid: int | None = None
    original_port: int | None = None


@dataclass
class Line:
    """One `-A` line: its options in order, and where it goes."""

    options: list[tuple[str, str, bool]]
    target: str
    to_port: int | None = None

    def matches(self, probe: Probe) -> bool:
        return all(_HOLDS[option](value, probe) != negated for option, value, negated in self.options)


@dataclass
class Chain:
    policy: str
    lines: list[Line] = field(default_factory=list)


def _in_ports(value: str, port: int) -> bool:
    low, _, high = value.partition(":")
    return int(low) <= port <= int(high or low)


def _in_states(value: str, probe: Probe) -> bool:
    states = {probe.state} | ({"DNAT"} if probe.original_port is not None else set())
    return not states.isdisjoint(value.split(","))


_HOLDS: dict[str, Callable[[str, Probe], bool]] = {
    "-p": lambda value, probe: probe.protocol == value,
    "-i": lambda value, probe: probe.interface == value,
    "-s": lambda value, probe: probe.source in ip_network(value),
    "-d": lambda value, probe: probe.destination in ip_network(value),
    "--dport": lambda value, probe: _in_ports(value, probe.port),
    "--sport": lambda value, probe: _in_ports(value, probe.source_port),
    "--syn": lambda _, probe: probe.syn,
    "--ctstate": _in_states,
    "--ctorigdstport": lambda value, probe: int(value) == (probe.original_port or probe.port),
    "--icmpv6-type": lambda value, probe: ICMPV6_TYPES[value] == probe.icmp_type,
    "--hl-eq": lambda value, probe: int(value) == probe.hop_limit,
    "--socket-exists": lambda _, probe: probe.uid is not None,
    "--uid-owner": lambda value, probe: probe.uid == int(value),
}


class Ruleset:
    def __init__(self, text: str) -> None:
        self.tables: dict[str, dict[str, Chain]] = {}
        self._table = ""
        for number, line in enumerate(text.splitlines(), 1):
            if line and not line.startswith("#"):
                try:
                    self._read(line)
                except (ValueError, KeyError, IndexError) as error:
                    raise ValueError(f"line {number}: {line}: {error!r}") from error
        if self._table or set(self.tables) != ALL_TABLES:
            raise ValueError("not every table is there and committed")

    def _read(self, line: str) -> None:
        if line.startswith("*") and not self._table:
            self._table = line[1:]
            if self._table in self.tables:
                raise ValueError("table given twice")
            self.tables[self._table] = {}
        elif line == "COMMIT" and self._table:
            if BUILT_IN[self._table] - set(self.tables[self._table]):
                raise ValueError("built-in chain without policy")
            self._table = ""
        elif line.startswith(":") and self._table:
            name, policy, counters = line[1:].split(" ")
            allowed = {"ACCEPT", "DROP"} if name in BUILT_IN[self._table] else {"-"}
            if counters != "[0:0]" or policy not in allowed or name in self.tables[self._table]:
                raise ValueError("bad chain")
            self.tables[self._table][name] = Chain(policy)
        elif line.startswith("-A ") and self._table:
            chain, *words = shlex.split(line)[1:]
            self.tables[self._table][chain].lines.append(_line(words, set(self.tables[self._table])))
        else:
            raise ValueError("unknown line")

    def delivered(self, probe: Probe) -> int | None:
        """The local port (0 for ICMP) at which an arriving packet ends, or None when it is dropped."""
        if probe.state == "NEW":  # only the first packet of a connection passes the nat table
            verdict = self._walk("nat", "PREROUTING", probe)
            if isinstance(verdict, int):
                probe = replace(probe, port=verdict, original_port=probe.port)
            elif verdict != "ACCEPT":
                return None
        return probe.port if self._walk("filter", "INPUT", probe) == "ACCEPT" else None

    def sent(self, probe: Probe) -> str:
        """What happens to a packet that leaves: ACCEPT, DROP, REJECT (with an ICMP error) or RESET."""
        return str(self._walk("filter", "OUTPUT", probe))

    def _walk(self, table: str, chain: str, probe: Probe) -> str | int:
        verdict = self._run(table, chain, probe)
        return self.tables[table][chain].policy if verdict is None else verdict

    def _run(self, table: str, chain: str, probe: Probe) -> str | int | None:
        for line in self.tables[table][chain].lines:
            if not line.matches(probe):
                continue
            if line.to_port is not None:
                return line.to_port
            if line.target in TARGETS:
                return line.target
            verdict = self._run(table, line.target, probe)
            if verdict is not None:
                return verdict
        return None


# Options by the match or protocol that must come before them in the line; None: always there.
_NEEDS = {
    "-p": None,
    "-i": None,
    "-s": None,
    "-d": None,
    "--dport": {"tcp", "udp"},
    "--sport": {"tcp", "udp"},
    "--syn": {"tcp"},
    "--ctstate": {"conntrack"},
    "--ctorigdstport": {"conntrack"},
    "--icmpv6-type": {"ipv6-icmp"},
    "--hl-eq": {"hl"},
    "--socket-exists": {"owner"},
    "--uid-owner": {"owner"},
}
_FLAGS = {"--syn", "--socket-exists"}


def _line(words: list[str], chains: set[str]) -> Line:
    options: list[tuple[str, str, bool]] = []
    loaded: set[str] = set()
    negated = False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        if word == "-m":
            loaded.add(words.pop(0))
            continue
        if word == "-j":
            target = words.pop(0)
            if target == "REDIRECT":
                option, port = words
                if option != "--to-port":
                    raise ValueError(f"unknown option {option}")
                return Line(options, target, int(port))
            if target == "REJECT" and ("-p", "tcp", False) in options and words == ["--reject-with", "tcp-reset"]:
                return Line(options, "RESET")
            if words or target not in TARGETS | chains:
                raise ValueError(f"bad target {target} {words}")
            return Line(options, target)
        needs = _NEEDS[word]
        if needs is not None and not needs & loaded:
            raise ValueError(f"{word} without one of {needs}")
        value = "" if word in _FLAGS else words.pop(0)
        if word == "-p":
            loaded.add(value)
        options.append((word, value, negated))
        negated = False
    raise ValueError("no target")


def probe_of(packet: Packet) -> Probe:
    """The first packet of a connection, arriving at a server's network card."""
    destination = IPv4Address("198.51.100.1") if packet.source.version == 4 else IPv6Address("2001:db8:5::1")
    return Probe(packet.protocol, packet.source, destination, packet.port)


def linode_accepts(rules: Iterable[CloudRule], packet: Packet) -> bool:
    """Linode: the first matching rule decides, and all of ours accept; the policy behind them drops."""
    for rule in rules:
        first, _, last = rule.ports.partition("-")
        in_ports = int(first) <= packet.port <= int(last or first)
        sources = rule.sources_v4 if packet.source.version == 4 else rule.sources_v6
        if rule.protocol == packet.protocol and in_ports and any(packet.source in ip_network(net) for net in sources):
            return True
    return False


def aws_accepts(rules: Iterable[CloudRule], packet: Packet) -> bool:
    """AWS: one security group rule for each source network; any match accepts, the rest is dropped."""
    group = {
        (rule.protocol, rule.port, rule.last_port, network)
        for rule in rules
        for network in (*rule.sources_v4, *rule.sources_v6)
    }
    return any(
        protocol == packet.protocol and packet.port in range(low, high + 1) and packet.source in ip_network(network)
        for protocol, low, high, network in group
    )
