"""Who may reach what: the live rules, what listens, and what the private network really lets through (guide, 3.9)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from uds import ssh
from uds.verify.check import HARDENING, Problems, check, difference
from uds.verify.server import Server

# What a server's role listens on beside SSH, for others to reach; the rules decide who does.
_LISTENING: dict[str, set[int]] = {"app": {3000, 3003}, "db": set(), "backup": set()}

_ACCEPT = re.compile(
    r"-A (?:TCP|UDP) (?:-s (?P<source>\S+) )?-p (?P<protocol>\w+) .*--dport (?P<port>\S+)(?P<rest>.*) -j ACCEPT"
)


@dataclass(frozen=True)
class Accepted:
    """One live rule that lets something in: to the public `port`, from `source` (CIDR), or from anywhere."""

    protocol: str
    port: str
    source: str | None


def accepted(server: Server, version: int) -> Iterator[Accepted]:
    """The live rules of one IP version that let new connections in."""
    for line in server.read(f"{'iptables' if version == 4 else 'ip6tables'} -S").splitlines():
        found = _ACCEPT.match(line)
        if found and "--sport" not in line:
            # Redirected: the world knows the port before the redirect.
            original = re.search(r"--ctorigdstport (\d+)", found["rest"])
            yield Accepted(found["protocol"], original[1] if original else found["port"], found["source"])


@check("3.9", "The live firewall is the written one, and drops the rest", HARDENING)
def firewall_is_live(server: Server) -> Problems:
    """The kernel's rules against the file's, loaded in a network of their own where they do nothing."""
    tidy = "sed -e '/^[#]/d' -e 's/ \\[.*\\]$//'"
    for version, tool in ((4, "iptables"), (6, "ip6tables")):
        file = f"/etc/iptables/rules.v{version}"
        live = server.read(f"{tool}-save | {tidy}").splitlines()
        loaded = server.host.run(f"unshare --net sh -ec '{tool}-restore {file}; {tool}-save' | {tidy}")
        if loaded.failed or not loaded.stdout:
            yield f"{file} can't be loaded: {loaded.stderr.strip().splitlines()[-1:]}"
        yield from difference(f"IPv{version} rule", _rules(live), _rules(loaded.stdout.splitlines()))
        for chain in ("INPUT", "FORWARD"):
            if f":{chain} DROP" not in live:
                yield f"IPv{version}: what no rule of {chain} names is not dropped"
    if not server.host.service("netfilter-persistent").is_enabled:
        yield "netfilter-persistent is not enabled: after a reboot, nothing is closed"


def _rules(lines: list[str]) -> Iterator[str]:
    """Each rule with its table and number: their order decides."""
    table, number = "", 0
    for line in lines:
        if line.startswith("*"):
            table, number = line[1:], 0
        elif line.startswith("-A"):
            number += 1
            yield f"{table} {number}: {line}"


@check("3.9", "Nothing listens that shouldn't", "find the program on the server (ss -ltnup) and remove it")
def nothing_else_listens(server: Server) -> Problems:
    """Every socket that others could reach if the firewall were open. SSH everywhere, the database at one address."""
    allowed: set[tuple[str | None, int]] = {(None, port) for port in {22, *_LISTENING[server.role]}}
    if server.role == "db":
        allowed.add((str(server.settings.database_address), server.settings.database.port))
    for line in server.read("ss -Hltunp").splitlines():
        fields = line.split()
        address, _, port = fields[4].rpartition(":")
        address = address.strip("[]").partition("%")[0]
        if address not in {"*", ""} and ip_address(address).is_loopback:
            continue
        # chrony asks for the time from a port of its own, and a client of DHCP has one.
        if fields[0] == "udp" and port in {"68", "546"}:
            continue
        if (None, int(port)) not in allowed and (address, int(port)) not in allowed:
            yield f"{fields[0]} {fields[4]}: {fields[6] if len(fields) > 6 else 'unknown program'}"


@check("3.2", "It has its private address", "a server's address is fixed when it is made: see docs/operations.md")
def has_its_private_address(server: Server) -> Problems:
    """The rules of the others name it."""
    wanted = server.facts["privateIp"]
    found = {str(ip_interface(line.split()[3]).ip) for line in server.read("ip -o -4 address show").splitlines()}
    if wanted not in found:
        yield f"{wanted} is none of its addresses: {', '.join(sorted(found))}"


@check(
    "3.9", "Of the private servers, it reaches what the rules say", "uds apply STACK SERVER hardening on the other one"
)
def reaches_only_what_it_may(server: Server) -> Problems:
    """Tried from here: SSH is for the bastion, the database for application servers, and nothing else answers."""
    others = {n: f for n, f in server.outputs["servers"].items() if f["role"] != "app" and n != server.name}
    port = server.settings.database.port
    tries, wanted = [], set()
    for name, facts in others.items():
        for number in (22, 25, 80, 111, 443, 2812, 3000, 3003, port, 33060):
            tries.append(f"{name} {ssh.address(facts)} {number}")
            if number == 22 and server.name == "app-1" and ssh.is_private(facts):
                wanted.add(f"{name} {number}")
            if number == port and facts["role"] == "db" and server.role == "app":
                wanted.add(f"{name} {number}")
            if number == 22 and server.role == "db" and facts["role"] == "backup":
                wanted.add(f"{name} {number}")
    # All at once: each that is dropped takes the whole two seconds.
    one = 'timeout 2 bash -c "exec 3<>/dev/tcp/$a/$p" 2>/dev/null && echo "$n $p"'
    script = 'printf "%s\\n" "$@" | { ' + f"while read -r n a p; do {{ {one}; }} & done; wait; }}"
    answered = server.host.check_output("bash -c %s try" + " %s" * len(tries), script, *tries)
    yield from difference("answers from here", answered.splitlines(), wanted)
