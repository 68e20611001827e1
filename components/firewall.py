"""The firewall model: what a server's role may be reached on, written once and enforced twice.

A `Firewall` is rendered to `/etc/iptables/rules.v4` and `rules.v6` for the server itself (guide, section 3.9), and to
`CloudRule`s for the firewall of the cloud in front of it. The two stand on different sides of the port redirects: the
cloud sees the public port, the server's filter sees the port behind it. `local_port` is the model's own verdict, and
every rendering has to agree with it.

Everything here takes values and returns values; the same model always gives the same text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import pairwise
from typing import Final, Literal, TypeAlias, get_args

Network: TypeAlias = IPv4Network | IPv6Network
Protocol: TypeAlias = Literal["tcp", "udp"]

ANYWHERE: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

CLOUD_INBOUND_POLICY: Final = "DROP"
CLOUD_OUTBOUND_POLICY: Final = "ACCEPT"

# Where Linode and AWS answer with a server's identity, credentials and user data.
METADATA_V4: Final = (IPv4Address("169.254.169.254"),)
METADATA_V6: Final = (IPv6Address("fd00:a9fe:a9fe::1"), IPv6Address("fe80::a9fe:a9fe"), IPv6Address("fd00:ec2::254"))

_V4_MAPPED: Final = IPv6Network("::ffff:0:0/96")

# What AWS takes in a rule's description and Linode too, in Linode's length; nothing in it can end a comment line.
_WHY: Final = re.compile(r"[A-Za-z0-9._\-:/()#,@+=&;!* ]{1,100}")
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")

_LINODE_RULES: Final = 25
_LINODE_ADDRESSES: Final = 255
_AWS_RULES: Final = 60
_LINODE_LABEL: Final = re.compile(r"[A-Za-z0-9_.-]{3,32}")


@dataclass(frozen=True)
class Rule:
    """New connections that are accepted: to `port`, or to `port` up to `last_port`, from `sources`.

    `why` says what the connections are for; it becomes the comment on the server and the description in the cloud.
    A rule without IPv6 sources stays closed for IPv6, and the other way round.

    Raises ValueError for anything that a firewall would refuse or silently understand in another way.
    """

    protocol: Protocol
    port: int
    sources: tuple[Network, ...]
    why: str
    last_port: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_why(self.why, "rule")
        if self.protocol not in get_args(Protocol):
            raise ValueError(f"rule '{self.why}': protocol {self.protocol!r} is not known: 'tcp' or 'udp'")
        _check_port(self.port, f"rule '{self.why}': port")
        if self.last_port is not None:
            _check_port(self.last_port, f"rule '{self.why}': last_port")
            if self.last_port <= self.port:
                raise ValueError(
                    f"rule '{self.why}': last_port {self.last_port} must be above port {self.port}; "
                    "leave it out for a single port"
                )
        self._check_sources()

    def _check_sources(self) -> None:
        if not self.sources:
            raise ValueError(f"rule '{self.why}': no sources: give at least one network, or ANYWHERE")
        for source in self.sources:
            if "%" in str(source):
                raise ValueError(f"rule '{self.why}': source {source} names an interface: leave out '%' and the name")
            if source.is_multicast:
                raise ValueError(f"rule '{self.why}': source {source} is multicast: only unicast addresses connect")
            if isinstance(source, IPv6Network) and source.subnet_of(_V4_MAPPED):
                raise ValueError(f"rule '{self.why}': source {source} is IPv4 written as IPv6: write it as IPv4")
        _check_apart(self.why, self.v4)
        _check_apart(self.why, self.v6)

    @property
    def v4(self) -> tuple[IPv4Network, ...]:
        """The IPv4 sources, sorted, so that their order in a configuration changes nothing."""
        return tuple(sorted(source for source in self.sources if isinstance(source, IPv4Network)))

    @property
    def v6(self) -> tuple[IPv6Network, ...]:
        """The IPv6 sources, sorted."""
        return tuple(sorted(source for source in self.sources if isinstance(source, IPv6Network)))

    @property
    def ports(self) -> range:
        """Every port of the rule."""
        return range(self.port, (self.last_port or self.port) + 1)

    def __str__(self) -> str:
        """The rule as messages name it: `tcp 22 (SSH for operators)`."""
        return f"{self.protocol} {_ports_text(self.ports, '-')} ({self.why})"


@dataclass(frozen=True)
class Redirect:
    """TCP connections to the public `port` are delivered to `to_port`, where an unprivileged process listens.

    Who may connect is the business of the rule that opens `port`. The server accepts `to_port` for redirected
    connections only, and the cloud never opens it.
    """

    port: int
    to_port: int
    why: str

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_why(self.why, "redirect")
        _check_port(self.port, f"redirect '{self.why}': port")
        _check_port(self.to_port, f"redirect '{self.why}': to_port")


@dataclass(frozen=True)
class Firewall:
    """Everything that may reach the servers of one role; whatever isn't named is dropped.

    Outbound, everything is allowed, except that only root reaches the cloud's metadata service.

    Raises ValueError when rules repeat each other or redirects don't fit the rules.
    """

    name: str
    rules: tuple[Rule, ...]
    redirects: tuple[Redirect, ...] = ()

    def __post_init__(self) -> None:
        """Checks the rules and redirects against each other."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"firewall name {self.name!r}: a lower-case letter, then up to 31 of lower-case letters, digits and '-'"
            )
        for number, rule in enumerate(self.rules):
            for other in self.rules[:number]:
                _check_not_repeated(self.name, rule, other)
        for port, count in Counter(redirect.port for redirect in self.redirects).items():
            if count > 1:
                raise ValueError(f"firewall '{self.name}': port {port} is redirected {count} times: once at most")
        for redirect in self.redirects:
            self._check_redirect(redirect)

    def _check_redirect(self, redirect: Redirect) -> None:
        where = f"firewall '{self.name}': redirect '{redirect.why}' ({redirect.port} to {redirect.to_port})"
        if not self._tcp_rules(redirect.port):
            raise ValueError(f"{where}: no tcp rule opens port {redirect.port}: add one, it says who may connect")
        for rule in self._tcp_rules(redirect.to_port):
            raise ValueError(
                f"{where}: {rule} opens port {redirect.to_port} directly: a redirect's target must not be open itself"
            )

    def _tcp_rules(self, port: int) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.protocol == "tcp" and port in rule.ports)


@dataclass(frozen=True)
class Packet:
    """The first packet of an inbound connection, as its sender writes it: `port` is the one before any redirect."""

    protocol: Protocol
    source: IPv4Address | IPv6Address
    port: int


@dataclass(frozen=True)
class CloudRule:
    """One inbound ACCEPT rule of a cloud firewall whose policy for the rest is `CLOUD_INBOUND_POLICY`.

    `last_port` equals `port` for a single port. One of the two families of sources may be empty, never both.
    """

    label: str
    protocol: Protocol
    port: int
    last_port: int
    sources_v4: tuple[str, ...]
    sources_v6: tuple[str, ...]
    description: str

    @property
    def ports(self) -> str:
        """The ports in Linode's notation: `22`, or `60000-60010`."""
        return _ports_text(range(self.port, self.last_port + 1), "-")


def local_port(fw: Firewall, packet: Packet) -> int | None:
    """The port of the server that a new connection is delivered to, or None when it is dropped.

    Two things that are no connections to a service are left out: neighbour discovery and the answers of a DHCPv6
    server, which `rules_v6` accepts from the link itself because IPv6 doesn't work without them.
    """
    if not any(
        packet.protocol == rule.protocol
        and packet.port in rule.ports
        and any(packet.source in source for source in rule.sources)
        for rule in fw.rules
    ):
        return None
    if packet.protocol == "tcp":
        for redirect in fw.redirects:
            if redirect.port == packet.port:
                return redirect.to_port
    return packet.port


def allows(fw: Firewall, packet: Packet) -> bool:
    """Whether a new connection gets through, to whichever local port."""
    return local_port(fw, packet) is not None


def cloud_rules(fw: Firewall) -> list[CloudRule]:
    """The firewall for the cloud: one rule per `Rule`, on the public ports, with `CLOUD_INBOUND_POLICY` behind it.

    No rule is needed for ICMP: the clouds' firewalls are stateful and let errors of known connections through.
    """
    used: Counter[str] = Counter()
    result = []
    for rule in fw.rules:
        label = f"{rule.protocol}-{_ports_text(rule.ports, '-')}"
        used[label] += 1
        result.append(
            CloudRule(
                label=label if used[label] == 1 else f"{label}_{used[label]}",
                protocol=rule.protocol,
                port=rule.ports[0],
                last_port=rule.ports[-1],
                sources_v4=tuple(map(str, rule.v4)),
                sources_v6=tuple(map(str, rule.v6)),
                description=rule.why,
            )
        )
    return result


def check_linode_limits(rules: Sequence[CloudRule]) -> None:
    """Checks rules against what a Linode firewall holds, so that the error comes before anything is created.

    The 25 rules are counted by Linode inbound and outbound together; ours has no outbound rules. The limit of 15
    port pieces per rule can't be reached: a `CloudRule` is one port (1 piece) or one range (2 pieces).
    Source: Linode's documentation of Cloud Firewall, "Limits and considerations".

    Raises ValueError, naming the rule, its value and the limit.
    """
    if len(rules) > _LINODE_RULES:
        raise ValueError(f"{len(rules)} rules: a Linode firewall holds {_LINODE_RULES} at most, in and out together")
    for rule in rules:
        addresses = len(rule.sources_v4) + len(rule.sources_v6)
        if addresses > _LINODE_ADDRESSES:
            raise ValueError(
                f"rule '{rule.label}' ({rule.description}): {addresses} source networks: "
                f"a Linode firewall rule holds {_LINODE_ADDRESSES} at most, IPv4 and IPv6 together"
            )
        if not _LINODE_LABEL.fullmatch(rule.label):
            raise ValueError(
                f"rule label {rule.label!r} ({rule.description}): "
                "Linode takes 3 to 32 characters out of letters, digits, '_', '.' and '-'"
            )
    for label, count in Counter(rule.label for rule in rules).items():
        if count > 1:
            raise ValueError(f"rule label '{label}' is used {count} times: labels in a Linode firewall must differ")


def check_aws_limits(rules: Sequence[CloudRule]) -> None:
    """Checks rules against what a security group holds, so that the error comes before anything is created.

    Each source of a rule counts, IPv4 and IPv6 apart. Source: Amazon VPC user guide, "Amazon VPC quotas"; the quota can
    be raised for an account, at the price of fewer groups for each interface.

    Raises ValueError, naming the number and the limit.
    """
    for family, count in (
        ("IPv4", sum(len(rule.sources_v4) for rule in rules)),
        ("IPv6", sum(len(rule.sources_v6) for rule in rules)),
    ):
        if count > _AWS_RULES:
            raise ValueError(
                f"{count} {family} source networks over all ports: a security group of AWS holds {_AWS_RULES} at most"
            )


def rules_v4(fw: Firewall) -> str:
    """The text of `/etc/iptables/rules.v4`, for iptables-restore."""
    return _rules_file(fw, 4)


def rules_v6(fw: Firewall) -> str:
    """The text of `/etc/iptables/rules.v6`, for ip6tables-restore: the same rules, and what IPv6 itself needs."""
    return _rules_file(fw, 6)


def _rules_file(fw: Firewall, version: Literal[4, 6]) -> str:
    lines = [
        f"# Firewall of role '{fw.name}', IPv{version}. Made from components/firewall.py: change it there.",
        f"# Test before loading: unshare --net {'iptables' if version == 4 else 'ip6tables'}-restore <this file>",
        "",
        "*filter",
        "# Everything may go out; what comes in or passes through is dropped unless accepted below.",
        ":INPUT DROP [0:0]",
        ":FORWARD DROP [0:0]",
        ":OUTPUT ACCEPT [0:0]",
        ":UDP - [0:0]",
        ":TCP - [0:0]",
        ":ICMP - [0:0]",
        ":METADATA - [0:0]",
        "",
        "# UDP that may come in",
        *(_V6_UDP if version == 6 else ()),
        *_accepted(fw, "udp", version),
        "",
        "# TCP that may come in; redirected ports carry their public port as ctorigdstport",
        *_accepted(fw, "tcp", version),
        "",
        *(_V6_ICMP if version == 6 else _V4_ICMP),
        "",
        "# Answers to what this server began, and errors about it (RELATED: also the path's packet size)",
        "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "# The server talking to itself",
        "-A INPUT -i lo -j ACCEPT",
        *(_V6_ICMP_JUMP if version == 6 else ()),
        "# Packets of no known connection that don't begin one either",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "# New connections go to the chain of their protocol; TCP begins with a SYN and nothing else",
        "-A INPUT -p udp -m conntrack --ctstate NEW -j UDP",
        "-A INPUT -p tcp --syn -m conntrack --ctstate NEW -j TCP",
        *(_V4_ICMP_JUMP if version == 4 else ()),
        "",
        "# The cloud's metadata service is root's; whoever else asks is refused at once, so that nothing hangs.",
        "# (socket-exists: the kernel's own last packets of root's closed connections have no owner.)",
        "-A METADATA -p tcp -j REJECT --reject-with tcp-reset",
        "-A METADATA -j REJECT",
        *(
            f"-A OUTPUT -d {address} -m owner --socket-exists ! --uid-owner 0 -j METADATA"
            for address in (METADATA_V4 if version == 4 else METADATA_V6)
        ),
        "COMMIT",
        "",
        "*raw",
        *_open_chains("PREROUTING", "OUTPUT"),
        "COMMIT",
        "",
        "*nat",
        *_open_chains("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        *_redirects(fw),
        "COMMIT",
        "",
        "*security",
        *_open_chains("INPUT", "FORWARD", "OUTPUT"),
        "COMMIT",
        "",
        "*mangle",
        *_open_chains("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


_V4_ICMP: Final = ("# ICMP that may come in: none (no ping)",)
_V4_ICMP_JUMP: Final = ("-A INPUT -p icmp -m conntrack --ctstate NEW -j ICMP",)

_V6_UDP: Final = (
    # The request goes to a multicast address, so connection tracking can't tell that this is its answer.
    "# The DHCPv6 server's answer, from the link itself",
    "-A UDP -p udp -s fe80::/10 --sport 547 -d fe80::/10 --dport 546 -j ACCEPT",
)
_V6_ICMP: Final = (
    "# ICMP that may come in: neighbour discovery, without which IPv6 goes dead (no ping)",
    "# Hop limit 255: sent on this link, no router has forwarded it",
    "-A ICMP -p ipv6-icmp --icmpv6-type router-advertisement -m hl --hl-eq 255 -j ACCEPT",
    "-A ICMP -p ipv6-icmp --icmpv6-type neighbour-solicitation -m hl --hl-eq 255 -j ACCEPT",
    "-A ICMP -p ipv6-icmp --icmpv6-type neighbour-advertisement -m hl --hl-eq 255 -j ACCEPT",
    "# The switch's question for our multicast groups; unanswered, it stops passing on neighbour solicitations",
    "-A ICMP -p ipv6-icmp -s fe80::/10 --icmpv6-type 130 -m hl --hl-eq 1 -j ACCEPT",
)
_V6_ICMP_JUMP: Final = (
    "# Before the INVALID drop and without ctstate: neighbour discovery belongs to no connection",
    "-A INPUT -p ipv6-icmp -j ICMP",
)


def _accepted(fw: Firewall, protocol: Protocol, version: Literal[4, 6]) -> Iterator[str]:
    for rule in fw.rules:
        sources = rule.v4 if version == 4 else rule.v6
        if rule.protocol != protocol or not sources:
            continue
        yield f"# {rule.why}"
        redirected = [redirect for redirect in fw.redirects if protocol == "tcp" and redirect.port in rule.ports]
        matches = [
            f"--dport {redirect.to_port}{{source}} -m conntrack --ctstate DNAT --ctorigdstport {redirect.port}"
            for redirect in redirected
        ]
        # Nothing arrives at a redirected port itself, so it is not opened.
        if len(redirected) < len(rule.ports):
            matches.insert(0, f"--dport {_ports_text(rule.ports, ':')}{{source}}")
        for match in matches:
            for source in sources:
                text = "" if source.prefixlen == 0 else f" -s {source}"
                yield f"-A {protocol.upper()} -p {protocol} {match.format(source=text)} -j ACCEPT"


def _redirects(fw: Firewall) -> Iterator[str]:
    for redirect in fw.redirects:
        yield f"# {redirect.why}"
        yield f"-A PREROUTING -p tcp --dport {redirect.port} -j REDIRECT --to-port {redirect.to_port}"


def _open_chains(*names: str) -> Iterator[str]:
    for name in names:
        yield f":{name} ACCEPT [0:0]"


def _ports_text(ports: range, separator: str) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}{separator}{ports[-1]}"


def _check_port(port: int, what: str) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"{what} {port!r} is out of range: 1 to 65535")


def _check_why(why: str, what: str) -> None:
    if not _WHY.fullmatch(why) or why != why.strip():
        raise ValueError(
            f"{what} with why={why!r}: say what it is for in 1 to 100 characters on one line, "
            "out of letters, digits, inner spaces and ._-:/()#,@+=&;!*"
        )


def _check_apart(why: str, family: Sequence[Network]) -> None:
    # Sorted by address, the first network that lies inside another one follows it at once.
    for wide, narrow in pairwise(family):
        if wide.overlaps(narrow):
            raise ValueError(f"rule '{why}': sources {wide} and {narrow} overlap: name each address only once")


def _check_not_repeated(name: str, rule: Rule, other: Rule) -> None:
    shared = sorted(map(str, set(rule.sources) & set(other.sources)))
    if rule.protocol == other.protocol and set(rule.ports) & set(other.ports) and shared:
        raise ValueError(
            f"firewall '{name}': {rule} repeats {other} for {', '.join(shared)}: open a port to a source once"
        )
