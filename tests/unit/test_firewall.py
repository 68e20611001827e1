"""The firewall model: what it refuses, what it is rendered to, and that every rendered line is needed."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import pairwise
from typing import cast

import pytest

from components.firewall import (
    ANYWHERE,
    CLOUD_INBOUND_POLICY,
    CLOUD_OUTBOUND_POLICY,
    METADATA_V4,
    METADATA_V6,
    CloudRule,
    Firewall,
    Packet,
    Protocol,
    Redirect,
    Rule,
    allows,
    check_linode_limits,
    cloud_rules,
    local_port,
    rules_v4,
    rules_v6,
)
from tests.unit.firewall_readers import Probe, Ruleset, aws_accepts, linode_accepts, probe_of

OPERATOR_V4, OPERATOR_V6 = IPv4Network("198.51.100.7/32"), IPv6Network("2001:db8:7::/48")
APP_1 = IPv4Network("10.20.0.11/32")
SSH = Rule("tcp", 22, (OPERATOR_V6, OPERATOR_V4), "SSH for operators")
HTTP = Rule("tcp", 80, ANYWHERE, "HTTP")
HTTPS = Rule("tcp", 443, ANYWHERE, "HTTPS")
APP = Firewall(
    "app",
    (SSH, HTTP, HTTPS, Rule("udp", 60000, ANYWHERE, "mosh", last_port=60010)),
    (Redirect(80, 3000, "HTTP to the application"), Redirect(443, 3003, "HTTPS to the application")),
)
DATABASE = Firewall(
    "db",
    (Rule("tcp", 22, (APP_1,), "SSH through the bastion"), Rule("tcp", 3306, (APP_1,), "MySQL for the application")),
)
OPERATOR, STRANGER = IPv4Address("198.51.100.7"), IPv4Address("192.0.2.1")
OPERATOR6, STRANGER6 = IPv6Address("2001:db8:7::1"), IPv6Address("2001:db8:8::1")
SERVER, SERVER6 = IPv4Address("203.0.113.1"), IPv6Address("2001:db8:5::1")
LINK = IPv6Address("fe80::1")


def filter_rules(text: str, chain: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"-A {chain} ")]


@pytest.mark.parametrize(
    ("packet", "port"),
    [
        (Packet("tcp", OPERATOR, 22), 22),
        (Packet("tcp", OPERATOR6, 22), 22),
        (Packet("tcp", STRANGER, 22), None),
        (Packet("tcp", STRANGER6, 22), None),
        (Packet("udp", OPERATOR, 22), None),
        (Packet("tcp", STRANGER, 80), 3000),
        (Packet("tcp", STRANGER6, 443), 3003),
        (Packet("udp", STRANGER, 443), None),
        (Packet("tcp", STRANGER, 3000), None),
        (Packet("tcp", STRANGER6, 3003), None),
        (Packet("udp", STRANGER, 59999), None),
        (Packet("udp", STRANGER, 60000), 60000),
        (Packet("udp", STRANGER6, 60010), 60010),
        (Packet("udp", STRANGER, 60011), None),
    ],
)
def test_verdicts(packet: Packet, port: int | None) -> None:
    assert local_port(APP, packet) == port
    assert allows(APP, packet) == (port is not None)
    text = rules_v4(APP) if packet.source.version == 4 else rules_v6(APP)
    assert Ruleset(text).delivered(probe_of(packet)) == port
    assert linode_accepts(cloud_rules(APP), packet) == (port is not None)
    assert aws_accepts(cloud_rules(APP), packet) == (port is not None)


def test_the_database_servers_rules_are_the_guides() -> None:
    assert filter_rules(rules_v4(DATABASE), "TCP") == [
        "-A TCP -p tcp --dport 22 -s 10.20.0.11/32 -j ACCEPT",
        "-A TCP -p tcp --dport 3306 -s 10.20.0.11/32 -j ACCEPT",
    ]
    assert filter_rules(rules_v6(DATABASE), "TCP") == []
    assert filter_rules(rules_v4(DATABASE), "PREROUTING") == []


def test_the_application_servers_rules_are_the_guides_but_for_the_targets_of_redirects() -> None:
    text = rules_v4(APP)
    assert filter_rules(text, "TCP") == [
        "-A TCP -p tcp --dport 22 -s 198.51.100.7/32 -j ACCEPT",
        "-A TCP -p tcp --dport 3000 -m conntrack --ctstate DNAT --ctorigdstport 80 -j ACCEPT",
        "-A TCP -p tcp --dport 3003 -m conntrack --ctstate DNAT --ctorigdstport 443 -j ACCEPT",
    ]
    assert filter_rules(text, "PREROUTING") == [
        "-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-port 3000",
        "-A PREROUTING -p tcp --dport 443 -j REDIRECT --to-port 3003",
    ]
    assert filter_rules(text, "INPUT") == [
        "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-A INPUT -p udp -m conntrack --ctstate NEW -j UDP",
        "-A INPUT -p tcp --syn -m conntrack --ctstate NEW -j TCP",
        "-A INPUT -p icmp -m conntrack --ctstate NEW -j ICMP",
    ]


def test_a_redirect_out_of_a_range_leaves_the_rest_of_the_range_as_it_is() -> None:
    firewall = Firewall("any", (Rule("tcp", 80, (APP_1,), "web", last_port=82),), (Redirect(81, 3000, "one"),))
    assert [local_port(firewall, Packet("tcp", APP_1[0], port)) for port in (79, 80, 81, 82, 83, 3000)] == [
        None, 80, 3000, 82, None, None,
    ]  # fmt: skip


def test_a_redirect_leaves_udp_on_the_same_port_alone() -> None:
    quic = replace(HTTPS, protocol="udp", why="HTTP/3")
    firewall = Firewall("any", (HTTPS, quic), (Redirect(443, 3003, "TLS"),))
    assert local_port(firewall, Packet("tcp", STRANGER, 443)) == 3003
    assert local_port(firewall, Packet("udp", STRANGER, 443)) == 443
    assert Ruleset(rules_v4(firewall)).delivered(probe_of(Packet("udp", STRANGER, 443))) == 443


def test_half_of_all_addresses_are_not_all() -> None:
    firewall = Firewall("any", (Rule("tcp", 22, (IPv4Network("128.0.0.0/1"), IPv6Network("8000::/1")), "half"),))
    assert filter_rules(rules_v4(firewall), "TCP") == ["-A TCP -p tcp --dport 22 -s 128.0.0.0/1 -j ACCEPT"]
    assert filter_rules(rules_v6(firewall), "TCP") == ["-A TCP -p tcp --dport 22 -s 8000::/1 -j ACCEPT"]


def test_two_public_ports_may_lead_to_one_process() -> None:
    firewall = Firewall("any", (HTTP, HTTPS), (Redirect(80, 3000, "plain"), Redirect(443, 3000, "TLS")))
    for text in (rules_v4(firewall), rules_v6(firewall)):
        assert len(filter_rules(text, "TCP")) == 2
        assert len(filter_rules(text, "PREROUTING")) == 2


@pytest.mark.parametrize("firewall", [APP, DATABASE], ids=["app", "db"])
@pytest.mark.parametrize("render", [rules_v4, rules_v6])
def test_each_rule_says_why_beside_it(firewall: Firewall, render: Callable[[Firewall], str]) -> None:
    text = render(firewall)
    for before, line in pairwise(text.splitlines()):
        if line.startswith(("-A TCP", "-A UDP", "-A ICMP", "-A PREROUTING")):
            assert before.startswith(("# ", "-A"))
    for rule in firewall.rules:
        if rule.v4 if render is rules_v4 else rule.v6:
            assert f"\n# {rule.why}\n" in text
    assert all(line.isascii() and len(line) <= 120 for line in text.splitlines())
    assert render(firewall) == text


def test_icmp() -> None:
    v4, v6 = Ruleset(rules_v4(APP)), Ruleset(rules_v6(APP))
    assert v4.delivered(Probe("icmp", STRANGER, SERVER)) is None
    for error in ("RELATED", "ESTABLISHED"):
        assert v4.delivered(Probe("icmp", STRANGER, SERVER, state=error)) == 0
        assert v6.delivered(Probe("ipv6-icmp", STRANGER6, SERVER6, state=error, icmp_type=2)) == 0
    # Packet-too-big about nothing that we sent, ping, and a redirect message: never.
    for icmp_type in (1, 2, 3, 4, 128, 129, 131, 137):
        for hop_limit in (1, 64, 255):
            probe = Probe("ipv6-icmp", LINK, SERVER6, icmp_type=icmp_type, hop_limit=hop_limit)
            assert v6.delivered(probe) is None
    # The kernel doesn't track neighbour discovery; a forwarded packet can't have the full hop limit.
    for state in ("UNTRACKED", "INVALID", "NEW"):
        for icmp_type in (134, 135, 136):
            probe = Probe("ipv6-icmp", LINK, SERVER6, icmp_type=icmp_type, state=state, hop_limit=255)
            assert v6.delivered(probe) == 0
            assert v6.delivered(replace(probe, hop_limit=254)) is None


def test_dhcpv6_answers_come_from_the_link_only() -> None:
    v6 = Ruleset(rules_v6(DATABASE))
    answer = Probe("udp", LINK, IPv6Address("fe80::2"), 546, source_port=547)
    assert v6.delivered(answer) == 546
    assert v6.delivered(replace(answer, source=STRANGER6)) is None
    assert v6.delivered(replace(answer, destination=SERVER6)) is None
    assert v6.delivered(replace(answer, source_port=5000)) is None


def test_only_root_reaches_the_metadata_service() -> None:
    for text, addresses in ((rules_v4(DATABASE), METADATA_V4), (rules_v6(DATABASE), METADATA_V6)):
        ruleset = Ruleset(text)
        for address in addresses:
            for protocol, refused in (("tcp", "RESET"), ("udp", "REJECT")):
                assert ruleset.sent(Probe(protocol, address, address, 80, uid=1000)) == refused
                assert ruleset.sent(Probe(protocol, address, address, 80, uid=0)) == "ACCEPT"
                assert ruleset.sent(Probe(protocol, address, address, 80, uid=None)) == "ACCEPT"
    assert Ruleset(rules_v4(APP)).sent(Probe("udp", SERVER, IPv4Address("169.254.169.253"), 53, uid=1000)) == "ACCEPT"
    assert Ruleset(rules_v4(APP)).sent(Probe("udp", SERVER, IPv4Address("127.0.0.53"), 53, uid=1000)) == "ACCEPT"


def probes(firewall: Firewall, version: int) -> list[Probe]:
    """A packet for everything that one of the two files of a firewall is meant to decide."""
    four = version == 4
    strangers = [STRANGER, IPv4Address("10.20.0.12")] if four else [STRANGER6, LINK]
    sources = [net[0] for rule in firewall.rules for net in (rule.v4 if four else rule.v6)] + strangers
    ports = sorted({port for rule in firewall.rules for port in rule.ports} | {3000, 3003, 8080})
    protocols: tuple[Protocol, ...] = ("tcp", "udp")
    found = [probe_of(Packet(protocol, source, port)) for protocol in protocols for source in sources for port in ports]
    known = found[0]
    found += [
        replace(known, port=8080, state=state, syn=False) for state in ("ESTABLISHED", "RELATED", "INVALID", "NEW")
    ]
    found += [replace(known, port=8080, interface="lo"), replace(known, state="INVALID"), replace(known, syn=False)]
    if not four:
        icmp = Probe("ipv6-icmp", LINK, SERVER6, state="UNTRACKED")
        found += [replace(icmp, icmp_type=kind, hop_limit=255) for kind in (134, 135, 136)]
        found += [replace(icmp, icmp_type=130, hop_limit=1)]
        found += [Probe("udp", LINK, LINK, 546, source_port=547)]
    return found


# Lines of the guide that a reader looks for, and that the rest of the file already implies.
IMPLIED = {
    "-A INPUT -m conntrack --ctstate INVALID -j DROP",
    "-A INPUT -p icmp -m conntrack --ctstate NEW -j ICMP",
}


@pytest.mark.parametrize("version", [4, 6])
def test_no_line_can_be_lost_unnoticed(version: int) -> None:
    """What the readers say must change when any line is taken away: otherwise they would prove nothing."""
    text = rules_v4(APP) if version == 4 else rules_v6(APP)
    arriving = probes(APP, version)
    leaving = [
        Probe(protocol, SERVER if version == 4 else SERVER6, address, 80, uid=uid)
        for address in (METADATA_V4 if version == 4 else METADATA_V6)
        for protocol in ("tcp", "udp")
        for uid in (0, 1000)
    ]

    def verdicts(changed: str) -> list[object]:
        ruleset = Ruleset(changed)
        return [*map(ruleset.delivered, arriving), *map(ruleset.sent, leaving)]

    whole = verdicts(text)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("-A ") and line not in IMPLIED:
            assert verdicts("\n".join(lines[:number] + lines[number + 1 :])) != whole, line
    # The guide's DROP policy and its --syn are as necessary.
    assert verdicts(text.replace(":INPUT DROP", ":INPUT ACCEPT")) != whole
    assert verdicts(text.replace(" --syn", "")) != whole
    for match in (" -m conntrack --ctstate DNAT --ctorigdstport 80", " --socket-exists ! --uid-owner 0"):
        assert match in text
        assert verdicts(text.replace(match, "")) != whole, match


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("*nat", "*natt"),
        ("*mangle", "# *mangle"),
        (":INPUT DROP [0:0]\n", ""),
        ("-j ACCEPT", "-j ACCEPTED"),
        ("--dport", "--destination"),
        ("-m conntrack ", ""),
        ("-A TCP", "-I TCP"),
        ("COMMIT", ""),
    ],
)
def test_the_reader_refuses_what_it_does_not_know(old: str, new: str) -> None:
    text = rules_v4(APP)
    assert old in text
    with pytest.raises(ValueError, match=r"line \d+|every table"):
        Ruleset(text.replace(old, new))


def test_cloud_rules() -> None:
    assert cloud_rules(APP)[0] == CloudRule(
        label="tcp-22",
        protocol="tcp",
        port=22,
        last_port=22,
        sources_v4=("198.51.100.7/32",),
        sources_v6=("2001:db8:7::/48",),
        description="SSH for operators",
    )
    assert [(rule.label, rule.ports) for rule in cloud_rules(APP)] == [
        ("tcp-22", "22"),
        ("tcp-80", "80"),
        ("tcp-443", "443"),
        ("udp-60000-60010", "60000-60010"),
    ]
    assert all(rule.sources_v6 == () for rule in cloud_rules(DATABASE))
    assert (CLOUD_INBOUND_POLICY, CLOUD_OUTBOUND_POLICY) == ("DROP", "ACCEPT")


def test_rules_for_one_port_get_labels_of_their_own() -> None:
    rules = tuple(Rule("tcp", 22, (IPv4Network(f"10.20.0.{n}/32"),), f"SSH {n}") for n in (1, 2, 3))
    firewall = Firewall("backup", rules)
    assert [rule.label for rule in cloud_rules(firewall)] == ["tcp-22", "tcp-22_2", "tcp-22_3"]


def many_rules(count: int) -> Firewall:
    return Firewall("any", tuple(Rule("tcp", port, ANYWHERE, "one of many") for port in range(1000, 1000 + count)))


def many_sources(count: int) -> Firewall:
    v4 = [IPv4Network((number << 8, 24)) for number in range(count // 2)]
    v6 = [IPv6Network((number << 64, 64)) for number in range(1, count - count // 2 + 1)]
    return Firewall("any", (Rule("tcp", 22, (*v4, *v6), "SSH from many"),))


@pytest.mark.parametrize("firewall", [APP, DATABASE, many_rules(25), many_sources(255), Firewall("none", ())])
def test_within_linodes_limits(firewall: Firewall) -> None:
    check_linode_limits(cloud_rules(firewall))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (cloud_rules(many_rules(26)), "26 rules: a Linode firewall holds 25 at most"),
        (cloud_rules(many_sources(256)), r"'tcp-22' \(SSH from many\): 256 source networks: .* 255 at most"),
        ([replace(cloud_rules(APP)[0], label="ab")], r"label 'ab' \(SSH for operators\): Linode takes 3 to 32"),
        ([replace(cloud_rules(APP)[0], label="a" * 33)], "Linode takes 3 to 32"),
        ([replace(cloud_rules(APP)[0], label="tcp 22")], "letters, digits"),
        ([cloud_rules(APP)[0], cloud_rules(APP)[0]], "label 'tcp-22' is used 2 times"),
    ],
)
def test_beyond_linodes_limits(rules: list[CloudRule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_linode_limits(rules)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rule("tcp", 0, ANYWHERE, "zero"), "rule 'zero': port 0 is out of range: 1 to 65535"),
        (lambda: Rule("tcp", 65536, ANYWHERE, "high"), "65536 is out of range: 1 to 65535"),
        (lambda: Rule("tcp", 22, ANYWHERE, "back", last_port=22), "last_port 22 must be above port 22"),
        (lambda: Rule("tcp", 22, ANYWHERE, "far", last_port=70000), "last_port 70000 is out of range"),
        (lambda: Rule(cast(Protocol, "icmp"), 22, ANYWHERE, "ping"), "'icmp' is not known: 'tcp' or 'udp'"),
        (lambda: Rule("tcp", 22, (), "nobody"), "rule 'nobody': no sources: give at least one network, or ANYWHERE"),
        (lambda: Rule("tcp", 22, ANYWHERE, ""), "1 to 100 characters"),
        (lambda: Rule("tcp", 22, ANYWHERE, "x" * 101), "1 to 100 characters"),
        (lambda: Rule("tcp", 22, ANYWHERE, "two\nlines"), "on one line"),
        (lambda: Rule("tcp", 22, ANYWHERE, " space"), "inner spaces"),
        (lambda: Rule("tcp", 22, ANYWHERE, "it's"), "out of letters"),
        (
            lambda: Rule("tcp", 22, (IPv4Network("10.0.0.0/8"), IPv4Network("10.1.0.0/16")), "twice"),
            "10.0.0.0/8 and 10.1.0.0/16 overlap",
        ),
        (lambda: Rule("tcp", 22, (*ANYWHERE, OPERATOR_V6), "twice"), "::/0 and 2001:db8:7::/48 overlap"),
        (lambda: Rule("tcp", 22, (APP_1, APP_1), "twice"), "overlap: name each address only once"),
        (lambda: Rule("tcp", 22, (IPv4Network("224.0.0.0/24"),), "many"), "224.0.0.0/24 is multicast"),
        (lambda: Rule("tcp", 22, (IPv6Network("::ffff:10.0.0.0/104"),), "mapped"), "write it as IPv4"),
        (lambda: Rule("tcp", 22, (IPv6Network("fe80::%eth0/64"),), "zone"), "names an interface"),
        (lambda: IPv4Network("10.0.0.1/24"), "host bits"),
        (lambda: Redirect(0, 3000, "zero"), "redirect 'zero': port 0 is out of range"),
        (lambda: Redirect(80, 65536, "high"), "redirect 'high': to_port 65536 is out of range"),
        (lambda: Redirect(80, 3000, ""), "redirect with why=''"),
        (lambda: Firewall("App", ()), "firewall name 'App': a lower-case letter"),
        (
            lambda: Firewall("app", (HTTP, replace(HTTP, why="again"))),
            r"firewall 'app': tcp 80 \(again\) repeats tcp 80 \(HTTP\) for 0.0.0.0/0, ::/0",
        ),
        (lambda: Firewall("app", (HTTP, replace(HTTP, port=70, last_port=90))), r"tcp 70-90 \(HTTP\) repeats"),
        (lambda: Firewall("app", (SSH,), (Redirect(80, 3000, "web"),)), "no tcp rule opens port 80: add one"),
        (
            lambda: Firewall("app", (replace(HTTP, protocol="udp"),), (Redirect(80, 3000, "web"),)),
            "no tcp rule opens port 80",
        ),
        (
            lambda: Firewall("app", (HTTP, HTTPS), (Redirect(80, 443, "web"),)),
            r"redirect 'web' \(80 to 443\): tcp 443 \(HTTPS\) opens port 443 directly",
        ),
        (lambda: Firewall("app", (HTTP,), (Redirect(80, 80, "loop"),)), "opens port 80 directly"),
        (
            lambda: Firewall("app", (HTTP,), (Redirect(80, 3000, "one"), Redirect(80, 3001, "two"))),
            "port 80 is redirected 2 times: once at most",
        ),
    ],
)
def test_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_one_port_may_be_opened_to_different_sources_for_different_reasons() -> None:
    Firewall("app", (SSH, replace(SSH, sources=(APP_1,), why="SSH from the first server")))
    Firewall("app", (HTTP, replace(HTTP, protocol="udp", why="HTTP over UDP")))
