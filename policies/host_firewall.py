"""The firewall that a server is told to have, and how it differs from the cloud's in front of it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import collapse_addresses, ip_network
from itertools import pairwise

from policies.resources import ALL_PORTS, Opening
from policies.user_data import Told, without_comments

_OTHERS = re.compile(r"\b(?:ufw\s+(?:--force\s+)?enable|nft\s+(?:-f|add\s+table)|firewall-cmd)\b")
_FILES = {4: re.compile(r"(rules\.v4|iptables\.rules|sysconfig/iptables)$"), 6: re.compile(r"(rules\.v6|ip6tables)")}
_ANYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass
class HostFirewall:
    """iptables of one family (4 or 6): its policy for what comes in, and what it accepts, as the world addresses it."""

    family: int
    policy: str = "ACCEPT"
    accepted: list[Opening] = field(default_factory=list)


def host_firewalls(data: Told) -> dict[int, HostFirewall]:
    """The families for which iptables rules are told, in files of iptables-save or as commands."""
    found: dict[int, HostFirewall] = {}
    for family, name in _FILES.items():
        texts = [text for path, text in data.files.items() if name.search(path)]
        tool = "ip6?tables" if family == 4 and "ip6tables" not in data.script else _tool(family)
        commands = re.findall(rf"(?m)^\s*(?:sudo\s+)?{tool}\s+(-[^\n;&|]+)", data.script)
        if texts or any(" -j " in f" {command}" or "-P" in command for command in commands):
            found[family] = _read("\n".join(texts) or "\n".join(commands), family)
    return found


def _tool(family: int) -> str:
    return "iptables" if family == 4 else "ip6tables"


def other_firewall(data: Told) -> bool:
    """Whether a firewall is set up in another way (ufw, nftables, firewalld), which isn't read here."""
    return bool(_OTHERS.search(data.script)) or any(path == "/etc/nftables.conf" for path in data.files)


def _read(text: str, family: int) -> HostFirewall:
    result = HostFirewall(family)
    table, redirects = "filter", {}
    filtered: list[tuple[Opening, bool]] = []
    for line in without_comments(text).splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == "filter" and (policy := re.match(r":INPUT\s+(\w+)|-P\s+INPUT\s+(\w+)", line.strip())):
            result.policy = policy[1] or policy[2]
        elif "REDIRECT" in line:
            ports = re.search(r"--dport\s+(\d+).*--to-ports?\s+(\d+)", line)
            if ports:
                redirects[int(ports[2])] = int(ports[1])
        elif table == "filter" and "-j ACCEPT" in line:
            filtered += _accepted(line, family)
    for opening, public in filtered:
        port = redirects.get(opening.first) if not public and opening.first == opening.last else None
        result.accepted.append(opening if port is None else Opening(opening.protocol, port, port, opening.sources))
    return result


def _accepted(line: str, family: int) -> Iterator[tuple[Opening, bool]]:
    """What a line accepts from others: openings, and whether the port is the public one already."""
    words = line.split()
    options = dict(pairwise(words))
    chain = options.get("-A") or options.get("-I")
    protocol = options.get("-p", "all")
    source = ip_network(options.get("-s", str(_ANYWHERE[family])), strict=False)
    answers = {"ESTABLISHED", "RELATED"} >= set(
        (options.get("--ctstate") or options.get("--state") or "NEW").split(",")
    )
    if chain in ("OUTPUT", "FORWARD") or ("-i" in options and options["-i"] == "lo") or answers:
        return
    if protocol not in ("tcp", "udp", "all") or source.is_link_local or source.is_loopback:
        return
    if public := options.get("--ctorigdstport"):
        yield Opening(protocol, int(public), int(public), (source,)), True
        return
    ports = options.get("--dport") or options.get("--dports")
    for piece in ports.split(",") if ports else [f"{ALL_PORTS[0]}:{ALL_PORTS[1]}"]:
        first, _, last = piece.partition(":")
        yield Opening(protocol, int(first), int(last or first), (source,)), False


def differences(cloud: Iterable[Opening], host: HostFirewall) -> Iterator[str]:
    """Where the cloud lets in what the server drops, or the other way round: ports, and to whom they are open."""
    in_cloud = list(cloud)
    found: dict[tuple[str, str], list[str]] = {}
    for protocol in ("tcp", "udp"):
        edges = {0, 65536}
        for opening in [*in_cloud, *host.accepted]:
            edges |= {opening.first, opening.last + 1}
        # Between two edges, all ports are alike.
        for first, end in pairwise(sorted(edges)):
            before = [one for one in in_cloud if one.covers(first, protocol)]
            if any(one.groups for one in before):
                # Members of a group have addresses that aren't known here.
                continue
            outside = _sources(before, host.family)
            inside = _sources((one for one in host.accepted if one.covers(first, protocol)), host.family)
            if outside != inside:
                ports = f"{protocol} {first}" + ("" if end == first + 1 else f"-{end - 1}")
                found.setdefault((outside, inside), []).append(ports)
    for (outside, inside), ports_so in found.items():
        yield f"{', '.join(ports_so)}: open in the cloud to {outside}, on the server to {inside}"


def _sources(found: Iterable[Opening], family: int) -> str:
    mine = [source for opening in found for source in opening.sources if source.version == family]
    collapsed = collapse_addresses(mine)  # type: ignore[type-var] # of one version
    return ", ".join(map(str, collapsed)) or "nobody"
