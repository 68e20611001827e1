"""A cloud firewall: what stands before a machine, seen from the network (ports before the machine's own NAT)."""

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Literal

TABLE = "inet cloud"

Verdict = Literal["accept", "drop"]

# Neighbour discovery and multicast listeners are part of the link, as ARP is: no cloud filters them.
_LINK = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert,"
    " mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept"
)


@dataclass(frozen=True)
class Rule:
    """One line: packets of `protocol` to `ports` whose far end is in `networks`.

    protocol: "tcp", "udp", "icmp" (ICMP over v4, ICMPv6 over v6), "ipencap", "all" or a protocol number.
    ports: single ports and (first, last) ranges; empty = every port.
    networks: CIDRs of both families; empty = no far end matches.
    """

    action: Verdict
    protocol: str
    ports: tuple[tuple[int, int], ...]
    networks: tuple[str, ...]


@dataclass(frozen=True)
class CloudFirewall:
    """Rules in order, the first match wins, then the policy; replies always pass."""

    inbound: tuple[Rule, ...] = ()
    inbound_policy: Verdict = "accept"
    outbound: tuple[Rule, ...] = ()
    outbound_policy: Verdict = "accept"

    def nft(self) -> str:
        """The nftables table, to be loaded in the machine's network namespace in one transaction.

        Inbound stands after connection tracking (-200) and before the guest's mangle (-150) and NAT (-100); outbound
        after everything of the guest's.
        """
        return "\n".join(
            [
                f"table {TABLE}",
                f"delete table {TABLE}",
                f"table {TABLE} {{",
                "chain inbound {",
                f"  type filter hook prerouting priority -190; policy {self.inbound_policy};",
                '  iifname "lo" accept',
                *_lines(self.inbound, "saddr"),
                "}",
                "chain outbound {",
                f"  type filter hook postrouting priority 350; policy {self.outbound_policy};",
                '  oifname "lo" accept',
                *_lines(self.outbound, "daddr"),
                "}",
                "}",
                "",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads."""
        return {
            "inbound": [_rule_to_json(rule) for rule in self.inbound],
            "inbound_policy": self.inbound_policy,
            "outbound": [_rule_to_json(rule) for rule in self.outbound],
            "outbound_policy": self.outbound_policy,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "CloudFirewall":
        """The firewall that `to_json` wrote."""
        return cls(
            inbound=tuple(_rule_from_json(rule) for rule in data["inbound"]),
            inbound_policy=data["inbound_policy"],
            outbound=tuple(_rule_from_json(rule) for rule in data["outbound"]),
            outbound_policy=data["outbound_policy"],
        )


def _lines(rules: tuple[Rule, ...], far_end: str) -> list[str]:
    lines = ["ct state established,related accept", _LINK, *(line for rule in rules for line in _rule(rule, far_end))]
    return [f"  {line}" for line in lines]


def _rule(rule: Rule, far_end: str) -> list[str]:
    """A rule names both families, nftables matches one: one line for each family that it has addresses of."""
    lines = []
    for family, version in (("ip", 4), ("ip6", 6)):
        nets = sorted({str(net) for net in map(ip_network, rule.networks) if net.version == version})
        if nets:
            lines.append(f"{family} {far_end} {_set(nets)} {_protocol(rule, version)} {rule.action}")
    return lines


def _protocol(rule: Rule, version: int) -> str:
    if rule.protocol == "all":
        return ""
    if rule.protocol in {"tcp", "udp"} and rule.ports:
        ports = [str(first) if first == last else f"{first}-{last}" for first, last in rule.ports]
        return f"{rule.protocol} dport {_set(ports)}"
    number = {"icmp": "icmp" if version == 4 else "icmpv6", "ipencap": "4"}.get(rule.protocol, rule.protocol)
    return f"meta l4proto {number}"


def _set(items: list[str]) -> str:
    return f"{{ {', '.join(items)} }}"


def _rule_to_json(rule: Rule) -> dict[str, Any]:
    return {
        "action": rule.action,
        "protocol": rule.protocol,
        "ports": [list(pair) for pair in rule.ports],
        "networks": list(rule.networks),
    }


def _rule_from_json(data: dict[str, Any]) -> Rule:
    return Rule(data["action"], data["protocol"], tuple((a, b) for a, b in data["ports"]), tuple(data["networks"]))
