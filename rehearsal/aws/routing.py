"""A VPC's own router, its internet gateway and its NAT gateways, as one router of this host's.

Pure: what the API was told -> what the router lets through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from rehearsal.aws.endpoints import METADATA
from rehearsal.network import PUBLIC, Nic, Router


@dataclass(frozen=True)
class Subnet:
    """A subnet, and where its route table leads.

    `network` is its bridge. `internet` are the IP versions that an internet gateway carries; `nat` is the public
    address of the NAT gateway that carries IPv4.
    """

    network: str
    v4: IPv4Network
    v6: IPv6Network | None = None
    internet: frozenset[int] = frozenset()
    nat: str | None = None

    @property
    def gateways(self) -> tuple[str, ...]:
        """What its machines send everything to that is for others: the first address of each family."""
        return (str(self.v4[1]), *([str(self.v6[1])] if self.v6 else []))


@dataclass(frozen=True)
class Attached:
    """A machine's interface: where it is, its addresses, and the Elastic IP that the world knows it by."""

    subnet: Subnet
    v4: str
    v6: str | None = None
    public: str | None = None


def router(vpc: IPv4Network, subnets: Sequence[Subnet], interfaces: Sequence[Attached]) -> Router:
    """What is forwarded: among the subnets everything; from and to outside what gateways and addresses make possible.

    An address of the VPC's own that is in no subnet is nobody's: every route table keeps the VPC's block inside.

    An internet gateway translates one to one and remembers nothing; a NAT gateway remembers who asked, so nobody can
    come in by it. (What an ICMP error quotes isn't translated: no packet may be too large for what lies behind this
    host, see `Network.build`.)
    """
    reachable = [one for one in interfaces if one.public and 4 in one.subnet.internet]
    v6 = [one for one in interfaces if one.v6 and 6 in one.subnet.internet]
    natted = [subnet for subnet in subnets if subnet.nat]
    public = sorted({*(one.public for one in reachable if one.public), *(net.nat for net in natted if net.nat)})
    nics = [Nic(PUBLIC, tuple(f"{address}/32" for address in public))]
    for subnet in subnets:
        own = (f"{subnet.v4[1]}/{subnet.v4.prefixlen}", *([f"{subnet.v6[1]}/64"] if subnet.v6 else []))
        nics.append(Nic(subnet.network, own))
    text = "\n".join(_tables(vpc, subnets, reachable, v6, natted))
    return Router(tuple(nics), tuple(one.v6 for one in v6 if one.v6), text + "\n")


def _tables(
    vpc: IPv4Network,
    subnets: Sequence[Subnet],
    reachable: Sequence[Attached],
    v6: Sequence[Attached],
    natted: Sequence[Subnet],
) -> Iterator[str]:
    inside = [f'"v{subnet.network}"' for subnet in subnets]
    yield from ("table inet router", "delete table inet router", "table inet router {")
    # Before connection tracking, so that nothing of the one-to-one translation is remembered.
    yield "chain untracked { type filter hook prerouting priority raw; policy accept;"
    yield "  meta nfproto ipv6 notrack"
    for one in reachable:
        yield f'  iifname "{PUBLIC}" ip daddr {one.public} ip daddr set {one.v4} notrack'
        yield f"  ip saddr {one.v4} notrack"
    yield "}"
    yield "chain forward { type filter hook forward priority filter; policy drop;"
    if inside:
        yield f"  iifname {{ {', '.join(inside)} }} oifname {{ {', '.join(inside)} }} accept"
    yield f'  oifname "{PUBLIC}" ip daddr {vpc} drop'
    for one in reachable:
        yield f'  iifname "{PUBLIC}" ip daddr {one.v4} accept'
        yield f'  oifname "{PUBLIC}" ip saddr {one.v4} accept'
    for one in v6:
        yield f'  iifname "{PUBLIC}" ip6 daddr {one.v6} accept'
        yield f'  oifname "{PUBLIC}" ip6 saddr {one.v6} accept'
    for subnet in natted:
        yield f'  iifname "v{subnet.network}" oifname "{PUBLIC}" ip saddr {subnet.v4} accept'
        yield f'  iifname "{PUBLIC}" ip daddr {subnet.v4} ct state established,related accept'
    yield "}"
    # The router is nobody's host.
    yield "chain input { type filter hook input priority filter; policy drop;"
    yield "  icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept"
    # But for the metadata service, which every instance has, whatever its firewall says.
    if inside:
        yield f"  iifname {{ {', '.join(inside)} }} ip daddr {METADATA} tcp dport 80 accept"
    yield "}"
    yield "chain translated { type filter hook postrouting priority mangle; policy accept;"
    for one in reachable:
        yield f'  oifname "{PUBLIC}" ip saddr {one.v4} ip saddr set {one.public}'
    yield "}"
    yield "}"
    yield from ("table ip nat", "delete table ip nat", "table ip nat {")
    yield "chain postrouting { type nat hook postrouting priority srcnat; policy accept;"
    for subnet in natted:
        yield f'  oifname "{PUBLIC}" ip saddr {subnet.v4} snat to {subnet.nat}'
    yield "}"
    yield "}"
