"""For any firewall and any packet, each rendering gives the model's verdict."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from components.firewall import (
    ANYWHERE,
    Firewall,
    Network,
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
from tests.unit.firewall_readers import Ruleset, aws_accepts, linode_accepts, probe_of

PROTOCOLS: st.SearchStrategy[Protocol] = st.sampled_from(("tcp", "udp"))
# A few ports come often, so that rules, redirects and packets meet; all others come too.
PORTS = st.sampled_from((22, 80, 81, 443, 3000, 3003)) | st.integers(1, 65535)
SOME_V4 = st.sampled_from(("10.20.0.10", "10.20.0.11", "198.51.100.7", "203.0.113.255")).map(IPv4Address)
SOME_V6 = st.sampled_from(("2001:db8::7", "2001:db8:0:1::1", "fd00:20::10", "fe80::1")).map(IPv6Address)
V4 = SOME_V4 | st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = SOME_V6 | st.integers(0, 2**128 - 1).map(IPv6Address)
NETWORKS: st.SearchStrategy[Network] = (
    st.builds(lambda address, bits: IPv4Network((address, bits), strict=False), V4, st.integers(0, 32))
    | st.builds(lambda address, bits: IPv6Network((address, bits), strict=False), V6, st.integers(0, 128))
    | SOME_V4.map(IPv4Network)
    | SOME_V6.map(IPv6Network)
    | st.sampled_from(ANYWHERE)
)


@st.composite
def firewalls(draw: st.DrawFn) -> Firewall:
    """Any firewall: rules and redirects are offered at random, and what the model refuses is left out."""
    firewall = Firewall("any", ())
    for number in range(draw(st.integers(0, 8))):
        port = draw(PORTS)
        last_port = draw(st.none() | st.integers(port + 1, port + 5)) if port < 65000 else None
        sources = draw(st.just(ANYWHERE) | st.lists(NETWORKS, min_size=1, max_size=4, unique=True).map(tuple))
        try:
            rule = Rule(draw(PROTOCOLS), port, sources, f"rule {number}", last_port)
            firewall = Firewall(firewall.name, (*firewall.rules, rule), firewall.redirects)
        except ValueError:
            continue
    public_ports = sorted({port for rule in firewall.rules if rule.protocol == "tcp" for port in rule.ports})
    if public_ports:
        for _ in range(draw(st.integers(0, 4))):
            redirect = Redirect(draw(st.sampled_from(public_ports)), draw(PORTS), "redirect")
            try:
                firewall = Firewall(firewall.name, firewall.rules, (*firewall.redirects, redirect))
            except ValueError:
                continue
    return firewall


def near(numbers: list[int], lowest: int, highest: int) -> list[int]:
    return sorted({min(max(number + step, lowest), highest) for number in numbers for step in (-1, 0, 1)})


@st.composite
def packets_for(draw: st.DrawFn, firewall: Firewall) -> Packet:
    """Any packet, and mostly one that a rule accepts or nearly accepts."""
    protocol, port, source = draw(PROTOCOLS), draw(PORTS), draw(V4 | V6)
    aimed = draw(st.integers(0, 4)) > 0
    if firewall.rules and aimed:
        rule = draw(st.sampled_from(firewall.rules))
        network = draw(st.sampled_from(rule.sources))
        edges = near([int(network[0]), int(network[-1])], 0, 2**network.max_prefixlen - 1)
        to_ports = [redirect.to_port for redirect in firewall.redirects]
        protocol = draw(st.sampled_from((rule.protocol, rule.protocol, protocol)))
        port = draw(st.sampled_from((*rule.ports, *near([*rule.ports, *to_ports], 1, 65535))))
        source = type(network[0])(draw(st.sampled_from(edges)))
    return Packet(protocol, source, port)


@st.composite
def firewalls_and_packets(draw: st.DrawFn) -> tuple[Firewall, list[Packet]]:
    firewall = draw(firewalls())
    return firewall, draw(st.lists(packets_for(firewall), min_size=1, max_size=20))


def host(firewall: Firewall, version: int) -> Ruleset:
    return Ruleset(rules_v4(firewall) if version == 4 else rules_v6(firewall))


@settings(max_examples=300)
@given(firewalls_and_packets())
def test_every_rendering_gives_the_models_verdict(case: tuple[Firewall, list[Packet]]) -> None:
    firewall, packets = case
    hosts = {4: host(firewall, 4), 6: host(firewall, 6)}
    cloud = cloud_rules(firewall)
    check_linode_limits(cloud)
    for packet in packets:
        verdict = local_port(firewall, packet)
        assert hosts[packet.source.version].delivered(probe_of(packet)) == verdict
        assert linode_accepts(cloud, packet) == (verdict is not None)
        assert aws_accepts(cloud, packet) == (verdict is not None)


@settings(max_examples=100)
@given(firewalls_and_packets())
def test_only_new_connections_that_begin_properly_are_judged(case: tuple[Firewall, list[Packet]]) -> None:
    firewall, packets = case
    for packet in packets:
        ruleset, probe = host(firewall, packet.source.version), probe_of(packet)
        for state, syn, delivered in (
            ("ESTABLISHED", False, packet.port),
            ("RELATED", True, packet.port),
            ("INVALID", True, None),
            ("UNTRACKED", True, None),
        ):
            assert ruleset.delivered(replace(probe, state=state, syn=syn)) == delivered
        if packet.protocol == "tcp":
            assert ruleset.delivered(replace(probe, syn=False)) is None


@settings(max_examples=100)
@given(firewalls(), V4 | V6)
def test_a_redirects_target_is_never_reached_directly(firewall: Firewall, source: IPv4Address | IPv6Address) -> None:
    for redirect in firewall.redirects:
        packet = Packet("tcp", source, redirect.to_port)
        assert not allows(firewall, packet)
        assert host(firewall, source.version).delivered(probe_of(packet)) is None
        assert not linode_accepts(cloud_rules(firewall), packet)


@settings(max_examples=100)
@given(firewalls(), st.randoms())
def test_the_order_of_sources_changes_nothing(firewall: Firewall, random: Random) -> None:
    def shuffled(sources: tuple[Network, ...]) -> tuple[Network, ...]:
        return tuple(sorted(sources, key=lambda _: random.random()))

    other = Firewall(
        firewall.name,
        tuple(
            Rule(rule.protocol, rule.port, shuffled(rule.sources), rule.why, rule.last_port) for rule in firewall.rules
        ),
        firewall.redirects,
    )
    assert rules_v4(other) == rules_v4(firewall)
    assert rules_v6(other) == rules_v6(firewall)
    assert cloud_rules(other) == cloud_rules(firewall)
