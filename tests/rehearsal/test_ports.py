"""Which ports answer, seen from everywhere, with both firewall layers and with each alone; the model says which should.

Every scan asks for all TCP ports. `filtered` is what a dropped packet looks like, so a port that refuses (`closed`) has
been let through just as one that answers (`open`): the model has to allow both.
"""

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache, partial
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from components import app_server, application, db_server
from components.firewall import Firewall, Packet, Protocol, allows, local_port
from components.settings import parse
from rehearsal import podman
from rehearsal.machines import Machine
from rehearsal.network import PUBLIC, Nic
from rehearsal.realm import ROUTERS, Bystander, Realm
from tests.rehearsal.conftest import Rehearsal

Run = Callable[..., subprocess.CompletedProcess[str]]

TCP_PORTS = range(1, 65536)
UDP_PORTS = (53, 67, 68, 69, 111, 123, 137, 161, 500, 514, 520, 546, 547, 1194, 1900, 3306, 4500, 5353, 11211)

# What listens while we scan, beside sshd. Nobody is to reach 8080 or UDP 5353: behind a port where nothing listens, a
# firewall that has a hole looks much like one that has none.
APP_LISTENERS = (application.HTTP_PORT, application.HTTPS_PORT, 8080)
UDP_LISTENER = 5353

# Answers everyone with the port at which they arrived, over TCP and, on the first argument, UDP.
LISTENER = """
import selectors, socket, sys
selector = selectors.DefaultSelector()
for index, port in enumerate(map(int, sys.argv[1:])):
    kind = socket.SOCK_STREAM if index else socket.SOCK_DGRAM
    listener = socket.socket(socket.AF_INET6, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    listener.bind(("::", port))
    if index:
        listener.listen(50)
    selector.register(listener, selectors.EVENT_READ, port)
while True:
    for key, _ in selector.select():
        if key.fileobj.type == socket.SOCK_DGRAM:
            # The answer leaves from the address that was asked.
            _, asked, _, sender = key.fileobj.recvmsg(2000, 100)
            key.fileobj.sendmsg([b"%d" % key.data], asked, 0, sender)
            continue
        connection, _ = key.fileobj.accept()
        with connection:
            connection.sendall(b"%d" % key.data)
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
    print(s.recv(20).decode())
"""

SETTINGS = ("both layers", "the server's rules alone", "the cloud's firewall alone", "none")

# The source ports of scans: one for each setting, so that no connection is taken for one of the last scan's. What app-1
# scans with is another one than what it is scanned with. No other connection chooses them (ip_local_port_range): it
# would be untracked, and so not redirected.
SOURCE_PORTS = range(20001, 20001 + len(SETTINGS))
APP_SOURCE_PORTS = range(20101, 20101 + len(SETTINGS))


@dataclass(frozen=True)
class Server:
    """A server of the stack: its machine, its role's firewall and the TCP ports that somebody listens on.

    `public` is where the world can address it.
    """

    machine: Machine
    firewall: Firewall
    listeners: frozenset[int]
    public: tuple[str, ...]

    @property
    def nic(self) -> Nic:
        """Its interface on the private network."""
        return next(nic for nic in self.machine.nics if nic.network != PUBLIC)

    @property
    def device(self) -> str:
        return f"eth{self.machine.nics.index(self.nic)}"

    @property
    def private(self) -> str:
        return str(ip_interface(self.nic.addresses[0]).ip)


@dataclass(frozen=True)
class Route:
    """Somebody, their address, and the address of a server that they try."""

    who: str
    run: Run
    source: str
    server: Server
    target: str

    def __str__(self) -> str:
        return f"{self.who} ({self.source}) to {self.server.machine.label} ({self.target})"


@dataclass
class Ground:
    """The stack and everybody around it."""

    realm: Realm
    app: Server
    db: Server
    outsider: Bystander
    routes: list[Route]

    @property
    def servers(self) -> tuple[Server, Server]:
        return self.app, self.db

    @property
    def operator(self) -> Run:
        return partial(podman.run, check=False)

    def inside(self, server: Server, *argv: str) -> str:
        done = self.realm.power.exec(server.machine.number, argv)
        assert done.returncode == 0, f"{argv}\n{done.stderr}"
        return done.stdout

    def only(self, setting: str) -> AbstractContextManager[None]:
        """The firewalls of one of SETTINGS, or none at all; all are back at the end."""
        return self._without(
            cloud=setting in ("the server's rules alone", "none"),
            host=setting in ("the cloud's firewall alone", "none"),
        )

    @contextlib.contextmanager
    def _without(self, *, cloud: bool, host: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for server in self.servers:
                if cloud:
                    stack.enter_context(self.realm.cloud_firewall_off(server.machine))
                if host:
                    stack.enter_context(self._host_firewall_off(server))
            yield

    @contextlib.contextmanager
    def _host_firewall_off(self, server: Server) -> Iterator[None]:
        try:
            for tool in ("iptables", "ip6tables"):
                self.inside(server, "sh", "-c", f"{tool} -P INPUT ACCEPT; {tool} -F; {tool} -t nat -F")
            yield
        finally:
            for tool, version in (("iptables", 4), ("ip6tables", 6)):
                self.inside(server, "sh", "-c", f"{tool}-restore < /etc/iptables/rules.v{version}")


@pytest.fixture(scope="module")
def ground(up: Rehearsal) -> Iterator[Ground]:
    realm, settings = up.realm(), parse(up.stack().config())
    app_listeners, db_listeners = (22, *APP_LISTENERS), (22, settings.database.port, 8080)
    roles = (
        ("app-1", app_server.firewall(settings), app_listeners),
        ("db-1", db_server.firewall(settings), db_listeners),
    )
    app, db = (
        Server(up.machine(name), firewall, frozenset(listeners), up.public_addresses(name))
        for name, firewall, listeners in roles
    )
    with ExitStack() as stack:
        for server, ports, program in ((app, app_listeners[1:], "application"), (db, db_listeners[1:], "mysql")):
            stack.enter_context(listening(realm, server, ports, program))
        outsider = stack.enter_context(realm.outsider())
        neighbours = {}
        for network, subnet in ((app.nic.network, settings.public_subnet), (db.nic.network, settings.private_subnet)):
            if network not in neighbours:
                address = f"{subnet[99]}/{subnet.prefixlen}"
                neighbours[network] = stack.enter_context(realm.neighbour(int(network), address))
        # The host may have several realms under test.
        table = f"inet {realm.network.prefix}scans"
        app_namespace = realm.network.namespace(app.machine.number)
        stack.enter_context(scans_untracked(table, "", SOURCE_PORTS, APP_SOURCE_PORTS))
        stack.enter_context(scans_untracked(table, app_namespace, APP_SOURCE_PORTS))
        for router in realm.store.all(ROUTERS):
            namespace = realm.network.namespace(f"r{router}")
            stack.enter_context(scans_untracked(table, namespace, SOURCE_PORTS, APP_SOURCE_PORTS))
        routes = list(all_routes(realm, app=app, db=db, outsider=outsider, neighbours=neighbours))
        yield Ground(realm, app, db, outsider, routes)


@contextlib.contextmanager
def listening(realm: Realm, server: Server, ports: tuple[int, ...], program: str) -> Iterator[None]:
    """Listeners on the server, over IPv4 and IPv6, in place of the program that it is for."""
    realm.power.exec(server.machine.number, ["systemctl", "stop", program])
    unit = ["systemd-run", "--quiet", "--collect", "--unit=listeners", "--property=Type=exec"]
    command = [*unit, "python3", "-c", LISTENER, str(UDP_LISTENER), *map(str, ports)]
    started = realm.power.exec(server.machine.number, command)
    assert started.returncode == 0, started.stderr
    try:
        all_there = " && ".join(f"ss -Hltn 'sport = :{port}' | grep -q ." for port in ports)
        waited = realm.power.exec(
            server.machine.number, ["timeout", "20", "sh", "-c", f"until {all_there}; do sleep 0.1; done"]
        )
        assert waited.returncode == 0, "the listeners did not start"
        yield
    finally:
        realm.power.exec(server.machine.number, ["systemctl", "stop", "listeners"])
        realm.power.exec(server.machine.number, ["systemctl", "start", program])


@contextlib.contextmanager
def scans_untracked(table: str, namespace: str, *source_ports: range) -> Iterator[None]:
    """Keep the kernel of the scanner (or of a router on the way) from remembering every port that was tried.

    A scan is 65,535 connections, and the table of connections is full after four; then the kernel drops what it can't
    remember, so every port would look filtered. Where bridged packets go through the host's own firewall (br_netfilter,
    as Docker sets it), that goes for bystanders' scans as well. The servers' own tables are left alone.
    """
    scans = f"{{ {', '.join(f'{ports[0]}-{ports[-1]}' for ports in source_ports)} }}"
    rules = (
        f"meta l4proto {{ tcp, udp }} th sport {scans} notrack; meta l4proto {{ tcp, udp }} th dport {scans} notrack;"
    )
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority raw; {rules} }};" for hook in ("prerouting", "output")
    )
    into = ["ip", "netns", "exec", namespace] if namespace else []
    podman.run([*into, "nft", "-f", "-"], stdin=f"table {table}\ndelete table {table}\ntable {table} {{ {chains} }}\n")
    try:
        yield
    finally:
        podman.run([*into, "nft", "delete", "table", *table.split()])


def all_routes(
    realm: Realm, *, app: Server, db: Server, outsider: Bystander, neighbours: Mapping[str, Bystander]
) -> Iterator[Route]:
    for server in (app, db):
        for target in server.public:
            v6 = ":" in target
            yield Route("an outsider", outsider.run, outsider.addresses[v6], server, target)
            operator = realm.operator_v6 if v6 else realm.operator_v4
            yield Route("the operator", partial(podman.run, check=False), operator, server, target)
    for server in (app, db):
        neighbour = neighbours[server.nic.network]
        yield Route("a neighbour", neighbour.run, neighbour.addresses[0], server, server.private)
        # Nobody may have given the network IPv6, and it has it all the same: every interface has a link-local address.
        private6 = link_local(realm.network.namespace(server.machine.number), server.device)
        own = link_local(neighbour.namespace, "eth0")
        yield Route("a neighbour", neighbour.run, own, server, f"{private6}%eth0")
        # The public addresses, from the private side: Linux takes packets for any of its addresses at any interface.
        for address in server.machine.addresses():
            gateway = private6 if ":" in address else server.private
            neighbour.run(["ip", "route", "add", address, "via", gateway, "dev", "eth0"])
        for address in server.machine.addresses()[:1]:
            yield Route("a neighbour", neighbour.run, neighbour.addresses[0], server, address)
    for server, other in ((app, db), (db, app)):
        if server.nic.network != other.nic.network:
            # From the other subnet, through the router between them.
            stranger = neighbours[other.nic.network]
            stranger.run(["ip", "route", "add", server.private, "via", other.nic.gateways[0], "dev", "eth0"])
            yield Route("a neighbour", stranger.run, stranger.addresses[0], server, server.private)
    inside = Bystander(realm.network.namespace(app.machine.number), app.machine.addresses())
    yield Route("app-1", inside.run, app.private, db, db.private)
    if app.nic.network == db.nic.network:
        app_private6 = link_local(inside.namespace, app.device)
        db_private6 = link_local(realm.network.namespace(db.machine.number), db.device)
        yield Route("app-1", inside.run, app_private6, db, f"{db_private6}%{app.device}")
    for source, target in zip(inside.addresses, db.machine.addresses(), strict=True):
        yield Route("app-1", inside.run, source, db, target)


def link_local(namespace: str, device: str) -> str:
    shown = podman.run(["ip", "-n", namespace, "-6", "-br", "address", "show", "dev", device, "scope", "link"]).stdout
    return str(ip_interface(shown.split()[2]).ip)


def scan(route: Route, setting: str, tcp_ports: str = "1-65535") -> dict[str, str]:
    """The ports that were let through, such as "tcp 80", and whether they are open or closed."""
    source_port = (APP_SOURCE_PORTS if route.who == "app-1" else SOURCE_PORTS)[SETTINGS.index(setting)]
    options = ["-Pn", "-n", "-sSU", "-p", f"T:{tcp_ports},U:{','.join(map(str, UDP_PORTS))}", "-g", str(source_port)]
    # The cable is virtual: packets are lost only where a buffer overflows, which the second try is for.
    speed = ["--min-rate", "50000", "--max-retries", "1"]
    family = ["-6"] if ":" in route.target else []
    xml = route.run(["nmap", *family, *options, *speed, "-oX", "-", route.target]).stdout
    single = re.findall(r'<port protocol="(\w+)" portid="(\d+)"><state state="([^"]+)"', xml)
    # nmap sums up what many ports have in common.
    many = {state: int(count) for state, count in re.findall(r'<extraports state="([^"]+)" count="(\d+)"', xml)}
    asked = sum(int(last or first) - int(first) + 1 for first, last in re.findall(r"(\d+)(?:-(\d+))?", tcp_ports))
    assert len(single) + sum(many.values()) == asked + len(UDP_PORTS), (
        f"{route}: the scan is not complete\n{xml[-2000:]}"
    )
    dropped = {"filtered", "open|filtered"}
    through = {f"{protocol} {port}": state for protocol, port, state in single if state not in dropped}
    return through | {f"{count} ports": state for state, count in many.items() if state not in dropped}


@cache
def allowed(firewall: Firewall, protocol: Protocol, source: str, ports: tuple[int, ...] | range) -> dict[int, int]:
    """The model's verdict: the ports that are let through, and where they lead."""
    packets = {port: Packet(protocol, ip_address(source), port) for port in ports}
    return {port: local_port(firewall, packet) or 0 for port, packet in packets.items() if allows(firewall, packet)}


def expected(route: Route, setting: str) -> dict[str, str]:
    """What a scan of this route has to find.

    The cloud sees a connection before the server redirects it. So without the server's rules, the cloud lets exactly
    the same public ports through, but behind 80 and 443 nobody listens; 3000 and 3003, where somebody does, stay closed
    because the cloud was never told to open them. Alone, neither layer lets anything through that both don't.
    """
    server, redirected = route.server, setting != "the cloud's firewall alone"
    through = {}
    for port, local in allowed(server.firewall, "tcp", route.source, TCP_PORTS).items():
        through[f"tcp {port}"] = "open" if (local if redirected else port) in server.listeners else "closed"
    udp = allowed(server.firewall, "udp", route.source, UDP_PORTS)
    return through | {f"udp {port}": "open" for port in udp}


@pytest.mark.parametrize("setting", SETTINGS[:3])
def test_exactly_the_models_ports_are_reached(ground: Ground, setting: str) -> None:
    with ground.only(setting), ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda route: scan(route, setting), ground.routes))
    tracked, most = (int(Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    assert tracked < 0.9 * most, "this host's table of connections is full, so it drops what the firewalls let through"
    wrong = {
        str(route): {"found": through, "the model says": expected(route, setting)}
        for route, through in zip(ground.routes, found, strict=True)
        if through != expected(route, setting)
    }
    assert wrong == {}


def test_the_model_is_the_guides(ground: Ground, up: Rehearsal) -> None:
    """The scans compare with the model; this is what the model has to say (guide, 3.9)."""
    settings = parse(up.stack().config())
    seen: dict[tuple[str, str], set[int]] = {}
    for route in ground.routes:
        seen.setdefault((route.who, route.server.machine.label), set()).update(
            allowed(route.server.firewall, "tcp", route.source, TCP_PORTS)
        )
    app, db = up.label("app-1"), up.label("db-1")
    from_outside = {("an outsider", db): set[int](), ("the operator", db): set[int]()} if ground.db.public else {}
    assert seen == {
        ("an outsider", app): {80, 443},
        ("the operator", app): {22, 80, 443},
        **from_outside,
        ("a neighbour", app): {80, 443},
        ("a neighbour", db): set(),
        ("app-1", db): {22, settings.database.port},
    }


def test_scans_find_what_is_open(ground: Ground) -> None:
    """With no layer at all, the same scans see every port: silence in the other tests is a dropped packet."""
    few = ",".join(map(str, [*range(1, 101), 443, 3000, 3003, 3306, 8080]))
    with ground.only("none"):
        for route in ground.routes:
            found = scan(route, "none", few)
            listening = {port for port, state in found.items() if state == "open" and port.startswith("tcp")}
            assert listening == {f"tcp {port}" for port in route.server.listeners}, str(route)
            # The kernel sends few of the refusals that UDP ports answer with, and those count as one.
            assert "closed" in found.values(), str(route)
            assert found.get(f"udp {UDP_LISTENER}") == "open", str(route)


@pytest.mark.parametrize("setting", ["both layers", "the server's rules alone"])
def test_the_application_is_reached_through_the_redirects(ground: Ground, setting: str) -> None:
    with ground.only(setting):
        for run in (ground.outsider.run, ground.operator):
            for address in ground.app.public:
                assert arrives_at(run, address, 80) == application.HTTP_PORT
                assert arrives_at(run, address, 443) == application.HTTPS_PORT


def test_the_application_server_reaches_the_database(ground: Ground) -> None:
    route = next(one for one in ground.routes if one.who == "app-1")
    [port] = ground.db.listeners - {22, 8080}
    assert arrives_at(route.run, route.target, port) == port


@pytest.mark.parametrize("setting", SETTINGS[:3])
def test_nobody_is_answered_a_ping(ground: Ground, setting: str) -> None:
    with ground.only(setting):
        assert pinged(ground.routes) == set()


def test_without_a_firewall_pings_are_answered(ground: Ground) -> None:
    with ground.only("none"):
        assert pinged(ground.routes) == set(map(str, ground.routes))


@pytest.mark.parametrize("setting", ["both layers", "the server's rules alone"])
def test_ipv6_stays_alive_when_neighbours_are_forgotten(ground: Ground, setting: str) -> None:
    address = ground.app.public[1]
    with ground.only(setting):
        for _ in range(2):
            ground.outsider.run(["ip", "-6", "neigh", "flush", "dev", "eth0"])
            ground.inside(ground.app, "ip", "-6", "neigh", "flush", "dev", "eth0")
            assert arrives_at(ground.outsider.run, address, 80) == application.HTTP_PORT


def arrives_at(run: Run, address: str, port: int) -> int:
    done = run(["python3", "-c", CLIENT, address, str(port)])
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def pinged(routes: Sequence[Route]) -> set[str]:
    """Those that answer. They are tried at once, because silence takes long."""

    def answers(route: Route) -> bool:
        family = ["-6"] if ":" in route.target else []
        ping = ["nmap", *family, "-n", "-sn", "-PE", "--disable-arp-ping", "--max-retries", "1", route.target]
        return "1 host up" in route.run(ping).stdout

    with ThreadPoolExecutor(len(routes)) as pool:
        return {str(route) for route, answered in zip(routes, pool.map(answers, routes), strict=True) if answered}
