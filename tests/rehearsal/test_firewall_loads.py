"""The rules files in a real kernel: two network namespaces with a cable between them, the rules loaded in one.

Nothing of this machine's own network is touched: both ends of the cable lie inside the namespaces.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

import pytest

from components.firewall import (
    ANYWHERE,
    METADATA_V4,
    METADATA_V6,
    Firewall,
    Packet,
    Redirect,
    Rule,
    local_port,
    rules_v4,
    rules_v6,
)

SERVER, OPERATOR, STRANGER = "198.18.255.1", "198.18.255.2", "198.18.255.3"
SERVER6, OPERATOR6, STRANGER6 = "2001:db8:ff::1", "2001:db8:ff::2", "2001:db8:ff::3"
SERVER_LINK, CLIENT_LINK = "fe80::1", "fe80::2"
NOBODY = 65534

MODEL = Firewall(
    "test",
    (
        Rule("tcp", 22, (IPv4Network(OPERATOR), IPv6Network(OPERATOR6)), "SSH for the operator"),
        Rule("tcp", 80, ANYWHERE, "HTTP"),
        Rule("tcp", 443, ANYWHERE, "HTTPS"),
        Rule("tcp", 3306, (IPv4Network(OPERATOR),), "MySQL, over IPv4 only"),
        Rule("tcp", 60000, ANYWHERE, "a range", last_port=60001),
        Rule("udp", 1194, ANYWHERE, "UDP for anyone"),
    ),
    (Redirect(80, 3000, "HTTP to the application"), Redirect(443, 3003, "HTTPS to the application")),
)
TCP_LISTENERS = (22, 80, 443, 2812, 3000, 3003, 3306, 8080, 59999, 60000, 60001, 60002)
UDP_LISTENERS = (22, 443, 546, 1194, 1195)
# Closed ports answer too when the firewall lets a packet through (with a reset): these need no listener.
TCP_PORTS = sorted({*range(1, 1025), *TCP_LISTENERS, 2375, 5432, 6379, 9100, 11211, 27017, 32768, 65535})

# Answers every connection and datagram with the local port at which it arrived.
LISTENERS = """
import json, selectors, socket, sys
tcp, udp = json.loads(sys.argv[1])
selector = selectors.DefaultSelector()
for kind, ports in ((socket.SOCK_STREAM, tcp), (socket.SOCK_DGRAM, udp)):
    for port in ports:
        listener = socket.socket(socket.AF_INET6, kind)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        listener.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            listener.listen(50)
        selector.register(listener, selectors.EVENT_READ, port)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        answer = str(key.data).encode()
        if key.fileobj.type == socket.SOCK_STREAM:
            connection, _ = key.fileobj.accept()
            connection.sendall(answer)
            connection.close()
        else:
            # The answer leaves from the address that was asked.
            _, asked, _, sender = key.fileobj.recvmsg(100, 100)
            key.fileobj.sendmsg([answer], asked, 0, sender)
"""

# Tries every [protocol, source, source port, destination, port] of its input at once. For each, its output has the
# local port that answered, "refused", or null when nothing came back.
CLIENT = """
import asyncio, json, socket, sys
slots = asyncio.Semaphore(400)
async def attempt(protocol, source, source_port, destination, port):
    async with slots:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        def resolved(address, port):
            return socket.getaddrinfo(address, port, family, kind, flags=socket.AI_NUMERICHOST)[0][4]
        with socket.socket(family, kind) as connection:
            connection.setblocking(False)
            connection.bind(resolved(source, source_port))
            try:
                async with asyncio.timeout(1):
                    await loop.sock_connect(connection, resolved(destination, port))
                    if protocol == "udp":
                        await loop.sock_sendall(connection, b"hello")
                    return int(await loop.sock_recv(connection, 100))
            except TimeoutError:
                return None
            except ConnectionRefusedError:
                return "refused"
async def every(attempts):
    # One of each pair of addresses goes first: a neighbour that is still being asked for queues only a few packets.
    pairs = {(source, destination): one for one in attempts for _, source, _, destination, _ in [one]}
    await asyncio.gather(*(attempt(*one) for one in pairs.values()))
    return await asyncio.gather(*(attempt(*one) for one in attempts))
print(json.dumps(asyncio.run(every(json.load(sys.stdin)))))
"""

# As the user of argv[1]: connects to argv[3] port 80 over argv[2], and says how it went.
AS_USER = """
import os, socket, sys
uid, protocol, destination = int(sys.argv[1]), sys.argv[2], sys.argv[3]
family = socket.AF_INET6 if ":" in destination else socket.AF_INET
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
target = socket.getaddrinfo(destination, 80, family, kind, flags=socket.AI_NUMERICHOST)[0][4]
os.setgroups([]); os.setgid(uid); os.setuid(uid)
connection = socket.socket(family, kind)
connection.settimeout(20)
try:
    connection.connect(target)
    connection.send(b"hello")
    result = connection.recv(100).decode()
except (ConnectionRefusedError, PermissionError):
    result = "refused"
except TimeoutError:
    result = "timeout"
print(result)
"""

# Sends a ping request from argv[1] to argv[2] and says whether an answer came.
PING = """
import socket, struct, sys
source, destination = sys.argv[1:]
v6 = ":" in source
family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
with socket.socket(family, socket.SOCK_RAW, protocol) as ping:
    ping.bind((source, 0))
    ping.settimeout(1)
    # Type, code, checksum, identifier, number; the kernel computes the checksum of ICMPv6 only.
    ping.sendto(struct.pack("!BBHHH", 128 if v6 else 8, 0, 0 if v6 else 0xffff - 0x800 - 1, 0, 1), (destination, 0))
    try:
        while True:
            packet, (sender, *_) = ping.recvfrom(1000)
            if sender == destination and packet[0 if v6 else 20] == (129 if v6 else 0):
                print("answer")
                break
    except TimeoutError:
        print("nothing")
"""


@dataclass
class Lab:
    """The names of the two namespaces, and of the folder with the rules files."""

    server: str
    client: str
    folder: Path

    def load(self, v4: str, v6: str) -> None:
        for command, text in (("iptables-restore", v4), ("ip6tables-restore", v6)):
            file = self.folder / command
            file.write_text(text)
            inside(self.server, command, "--test", str(file))
            inside(self.server, command, str(file))

    def unload(self) -> None:
        """Back to a kernel without any rules."""
        inside(self.server, "nft", "flush", "ruleset")

    def try_all(self, attempts: list[tuple[str, str, int, str, int]]) -> list[int | str | None]:
        result: list[int | str | None] = json.loads(
            inside(self.client, sys.executable, "-c", CLIENT, text=json.dumps(attempts))
        )
        return result

    def forget_neighbours(self) -> None:
        for namespace in (self.server, self.client):
            for family in ("-4", "-6"):
                inside(namespace, "ip", family, "neigh", "flush", "dev", "eth0")


def inside(namespace: str, *command: str, text: str = "") -> str:
    result = subprocess.run(
        ["ip", "netns", "exec", namespace, *command], input=text, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(command[:3])}: {result.stderr}"
    return result.stdout


def serve(namespace: str, tcp: tuple[int, ...], udp: tuple[int, ...]) -> "subprocess.Popen[str]":
    listeners = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", LISTENERS, json.dumps((tcp, udp))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert listeners.stdout is not None
    assert listeners.stdout.readline() == "ready\n"
    return listeners


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.fail("this test loads firewall rules into network namespaces of its own and must run as root")
    lab = Lab(f"fwtest-{os.getpid()}-server", f"fwtest-{os.getpid()}-client", tmp_path_factory.mktemp("rules"))
    processes = []
    try:
        for namespace in (lab.server, lab.client):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            inside(namespace, "ip", "link", "set", "lo", "up")
        inside(
            lab.server,
            *("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", lab.client),
        )
        addresses = {
            lab.server: (f"{SERVER}/24", f"{SERVER6}/64", f"{SERVER_LINK}/64"),
            lab.client: (
                *(f"{OPERATOR}/24", f"{STRANGER}/24", f"{OPERATOR6}/64", f"{STRANGER6}/64", f"{CLIENT_LINK}/64"),
                *(f"{METADATA_V4[0]}/32", f"{METADATA_V6[0]}/128", f"{METADATA_V6[1]}/64", f"{METADATA_V6[2]}/128"),
            ),
        }
        for namespace, own in addresses.items():
            # Link-local addresses of ours only: known, and ready at once.
            inside(namespace, "ip", "link", "set", "eth0", "addrgenmode", "none")
            for address in own:
                inside(namespace, "ip", "addr", "add", address, "dev", "eth0", *(("nodad",) if ":" in address else ()))
            inside(namespace, "ip", "link", "set", "eth0", "up")
        for metadata in (METADATA_V4[0], METADATA_V6[0], METADATA_V6[2]):
            inside(lab.server, "ip", f"-{metadata.version}", "route", "add", str(metadata), "dev", "eth0")
        processes.append(serve(lab.server, TCP_LISTENERS, UDP_LISTENERS))
        processes.append(serve(lab.client, (80,), (80,)))
        yield lab
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for namespace in (lab.server, lab.client):
            subprocess.run(["ip", "netns", "delete", namespace], check=False)


@pytest.fixture
def loaded(lab: Lab) -> Iterator[Lab]:
    lab.load(rules_v4(MODEL), rules_v6(MODEL))
    yield lab
    lab.unload()


def attempts() -> list[tuple[str, str, int, str, int]]:
    pairs = ((OPERATOR, SERVER), (STRANGER, SERVER), (OPERATOR6, SERVER6), (STRANGER6, SERVER6))
    ports = (*(("tcp", port) for port in TCP_PORTS), *(("udp", port) for port in UDP_LISTENERS))
    return [(protocol, source, 0, server, port) for source, server in pairs for protocol, port in ports]


def test_without_rules_everything_is_reachable(lab: Lab) -> None:
    """Otherwise a port that is found closed would prove nothing."""
    for attempt, answer in zip(attempts(), lab.try_all(attempts()), strict=True):
        protocol, port = attempt[0], attempt[-1]
        assert answer == (port if protocol == "udp" or port in TCP_LISTENERS else "refused"), attempt
    for source, destination in ((OPERATOR, SERVER), (OPERATOR6, SERVER6)):
        assert inside(lab.client, sys.executable, "-c", PING, source, destination) == "answer\n"
    for address in (*METADATA_V4, *METADATA_V6):
        assert as_user(lab, NOBODY, "tcp", address) == "80\n"


def test_exactly_the_models_ports_are_reachable(loaded: Lab) -> None:
    for attempt, answer in zip(attempts(), loaded.try_all(attempts()), strict=True):
        protocol, source, _, _, port = attempt
        assert protocol in ("tcp", "udp")
        packet = Packet("tcp" if protocol == "tcp" else "udp", ip_address(source), port)
        assert answer == local_port(MODEL, packet), attempt


def test_the_default_is_drop_in_the_live_rules(loaded: Lab) -> None:
    for command in ("iptables", "ip6tables"):
        assert inside(loaded.server, command, "-S", "INPUT").splitlines()[0] == "-P INPUT DROP"
        assert inside(loaded.server, command, "-S", "FORWARD").splitlines()[0] == "-P FORWARD DROP"
        saved = inside(loaded.server, f"{command}-save")
        assert {line for line in saved.splitlines() if line.startswith("*")} == {
            *("*filter", "*raw", "*nat", "*security", "*mangle"),
        }


def test_it_answers_after_the_neighbours_are_forgotten(loaded: Lab) -> None:
    ssh = [("tcp", OPERATOR, 0, SERVER, 22), ("tcp", OPERATOR6, 0, SERVER6, 22)]
    assert loaded.try_all(ssh) == [22, 22]
    loaded.forget_neighbours()
    assert loaded.try_all(ssh) == [22, 22]
    # Without the rules for neighbour discovery IPv6 goes dead: they are what this test is about.
    without = "\n".join(line for line in rules_v6(MODEL).splitlines() if "--icmpv6-type neighbour" not in line) + "\n"
    loaded.load(rules_v4(MODEL), without)
    loaded.forget_neighbours()
    assert loaded.try_all(ssh) == [22, None]


def test_ping_is_not_answered(loaded: Lab) -> None:
    for source, destination in ((OPERATOR, SERVER), (OPERATOR6, SERVER6)):
        assert inside(loaded.client, sys.executable, "-c", PING, source, destination) == "nothing\n"


def test_errors_about_our_own_packets_come_in(loaded: Lab) -> None:
    """RELATED lets ICMP errors through, as the messages about a path's packet size need it."""
    refused = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.settimeout(2); s.connect((sys.argv[1], 9)); s.send(b'x')\n"
        "try: s.recv(1)\n"
        "except ConnectionRefusedError: print('refused')\n"
    )
    for address in (OPERATOR, OPERATOR6):
        assert inside(loaded.server, sys.executable, "-c", refused, address) == "refused\n"


def test_a_dhcpv6_server_is_heard_from_the_link_only(loaded: Lab) -> None:
    client, server = f"{CLIENT_LINK}%eth0", f"{SERVER_LINK}%eth0"
    assert loaded.try_all(
        [
            ("udp", client, 547, server, 546),
            ("udp", client, 5000, server, 546),
            ("udp", OPERATOR6, 547, SERVER6, 546),
        ]
    ) == [546, None, None]


def as_user(lab: Lab, uid: int, protocol: str, address: IPv4Address | IPv6Address) -> str:
    zone = "%eth0" if address.is_link_local and address.version == 6 else ""
    return inside(lab.server, sys.executable, "-c", AS_USER, str(uid), protocol, f"{address}{zone}")


@pytest.mark.parametrize("address", [*METADATA_V4, *METADATA_V6], ids=str)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_only_root_reaches_the_metadata_service(loaded: Lab, protocol: str, address: IPv4Address | IPv6Address) -> None:
    assert as_user(loaded, 0, protocol, address) == "80\n"
    assert as_user(loaded, NOBODY, protocol, address) == "refused\n"


def test_everyone_reaches_everything_else(loaded: Lab) -> None:
    for address in map(ip_address, (STRANGER, STRANGER6)):
        assert as_user(loaded, NOBODY, "tcp", address) == "80\n"


def test_roots_connections_to_the_metadata_service_end_properly(loaded: Lab) -> None:
    """The kernel sends a closed connection's last packet itself: refused, it would leave the other side hanging."""
    close_first = (
        "import socket\n"
        f"s = socket.create_connection(('{METADATA_V4[0]}', 8081)); s.sendall(b'x'); s.recv(1); s.close()\n"
    )
    close_last = (
        "import socket, sys, time\n"
        "l = socket.create_server(('', 8081)); print('ready', flush=True)\n"
        "c, _ = l.accept(); c.recv(1); c.sendall(b'x'); c.recv(1); c.close(); time.sleep(30)\n"
    )
    with subprocess.Popen(
        ["ip", "netns", "exec", loaded.client, sys.executable, "-c", close_last], stdout=subprocess.PIPE, text=True
    ) as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            inside(loaded.server, sys.executable, "-c", close_first)
            time.sleep(0.5)
            assert inside(loaded.client, "ss", "-H", "-tan", "state", "last-ack") == ""
        finally:
            listener.kill()
