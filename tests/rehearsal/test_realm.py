"""The rehearsal's cloud itself: real machines, networks and cloud firewalls on this host, and nothing left of them."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from pathlib import Path

import pytest

from rehearsal.cloud_firewall import CloudFirewall, Rule
from rehearsal.machines import REALM_LABEL, Machine, MachineSpec
from rehearsal.network import PUBLIC, Nic
from rehearsal.realm import VPCS, Realm
from rehearsal.store import RealmError
from tests.rehearsal.support import until

ANYWHERE = ("0.0.0.0/0", "::/0")
# 80 is open in the cloud and redirected by the guest; 3000, where it goes, is closed in the cloud.
FIREWALL = CloudFirewall(
    inbound=(
        Rule("drop", "tcp", ((2222, 2222),), ANYWHERE),
        Rule("accept", "tcp", ((22, 22), (80, 80), (2000, 2999)), ANYWHERE),
    ),
    inbound_policy="drop",
)
LISTENER = """
import http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
PORTS = (80, 2222, 2500, 3000, 8080)


def host_state() -> dict[str, list[str]]:
    """What a realm could leave on this host; without what tests of another kind use, which may run at the same time."""
    commands = {
        "links": ["ip", "-br", "link"],
        "namespaces": ["ip", "netns", "list"],
        "containers": ["podman", "ps", "--all", "--filter", f"label={REALM_LABEL}", "--format", "{{.Names}}"],
        "rules": ["iptables-save"],
        "rules6": ["ip6tables-save"],
    }
    state = {}
    for name, argv in commands.items():
        printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        # The tables themselves stay once they were used.
        kept = [line for line in printed if not name.startswith("rules") or line.startswith("-A")]
        state[name] = [line for line in kept if not line.startswith("fwtest-")]
    return state


def of_realm(number: int) -> dict[str, list[str]]:
    """The lines of `host_state` that belong to a realm."""
    mine = re.compile(rf"\buds{number}\b")
    return {
        name: found for name, lines in host_state().items() if (found := [one for one in lines if mine.search(one)])
    }


def new_vpc(realm: Realm) -> int:
    with realm.store.lock():
        number = realm.store.new_id()
        realm.store.put(VPCS, number, {"inputs": {"label": f"vpc-{number}"}})
    realm.create_vpc(number)
    return number


def spec(label: str, vpc: int, address: str, *, public: bool = True) -> MachineSpec:
    nics = (Nic(PUBLIC, ()),) if public else ()
    user_data = b"#cloud-config\nusers: [{name: deploy, shell: /bin/bash}]\n"
    return MachineSpec(label, (*nics, Nic(str(vpc), (address,))), user_data, firewall=FIREWALL, root_keys=("ssh-x AA",))


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    opened = Realm.open(tmp_path_factory.mktemp("workspace"))
    try:
        opened.start(print)
        yield opened
    finally:
        opened.destroy()
    assert of_realm(opened.network.number) == {}


@pytest.fixture(scope="module")
def vpc(realm: Realm) -> int:
    return new_vpc(realm)


@pytest.fixture(scope="module")
def machines(realm: Realm, vpc: int) -> list[Machine]:
    """Two machines, booted at the same time, with a listener on each of PORTS on the first."""
    specs = [spec("app-1", vpc, "10.20.0.11/24"), spec("app-2", vpc, "10.20.0.12/24")]
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda one: realm.power.create(one, print), specs))
    for machine in made:
        until_printed(realm, machine.number, ["cloud-init", "status"], "done")
    listen(realm, made[0].number)
    return made


def listen(realm: Realm, number: int) -> None:
    for port in PORTS:
        run = ["systemd-run", "--quiet", f"--unit=listen-{port}", "python3", "-c", LISTENER, str(port)]
        assert realm.power.exec(number, run).returncode == 0
    for port in PORTS:
        until_printed(realm, number, ["ss", "-ltn"], f":{port} ")


def inside(realm: Realm, number: int, *argv: str) -> str:
    return realm.power.exec(number, argv).stdout


def until_printed(realm: Realm, number: int, argv: Sequence[str], words: str) -> None:
    until(lambda: words in inside(realm, number, *argv))


def open_ports(run: Callable[..., subprocess.CompletedProcess[str]], address: str, ports: Sequence[int]) -> list[int]:
    """The ports that answer a connection within a second; they are tried at once."""
    program = (
        "import socket, sys\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "def one(port):\n    with socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET) as s:\n"
        "        s.settimeout(1)\n        return s.connect_ex((sys.argv[1], port)) == 0\n"
        "ports = list(map(int, sys.argv[2:]))\nwith ThreadPoolExecutor(16) as pool:\n"
        "    print(*(p for p, is_open in zip(ports, pool.map(one, ports)) if is_open))\n"
    )
    return [int(word) for word in run(["python3", "-c", program, address, *map(str, ports)]).stdout.split()]


def ssh_answers(run: Callable[..., subprocess.CompletedProcess[str]], address: str) -> bool:
    """Whether an SSH server says something there: some networks accept every connection in the destination's place."""
    program = (
        "import socket, sys\nwith socket.create_connection((sys.argv[1], 22), 1) as s:\n"
        "    s.settimeout(1)\n    print(s.recv(8))\n"
    )
    return "SSH-2.0" in run(["python3", "-c", program, address]).stdout


def test_a_machine_is_a_fresh_cloud_server(realm: Realm, machines: list[Machine], vpc: int) -> None:
    number = machines[0].number
    assert inside(realm, number, "systemctl", "is-system-running", "--wait").strip() == "running"
    assert inside(realm, number, "hostname").strip() == "app-1"
    assert inside(realm, number, "cat", "/etc/hostname").strip() == "app-1"
    assert "deploy" in inside(realm, number, "cat", "/etc/passwd")
    assert (
        inside(realm, number, "stat", "-c", "%a %U", "/root/.ssh", "/root/.ssh/authorized_keys")
        == "700 root\n600 root\n"
    )
    assert "uds" not in inside(realm, number, "cat", "/etc/hosts")
    assert (
        inside(realm, number, "find", "/var/lib/cloud/seed", "-perm", "/077", "-not", "-path", "/var/lib/cloud/seed")
        == ""
    )
    addresses = inside(realm, number, "ip", "-br", "address")
    for address in (*machines[0].addresses(), *machines[0].addresses(str(vpc))):
        assert f" {address}/" in addresses
    assert "default" not in inside(realm, number, "ip", "-6", "route")
    assert realm.power.exec(number, ["test", "-e", "/run/.containerenv"]).returncode == 1
    # Two servers of one image share no identity.
    for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"):
        assert len({inside(realm, machine.number, "cat", path) for machine in machines}) == 2


def test_network_settings_are_the_machines_own_and_the_kernels_are_not(realm: Realm, machines: list[Machine]) -> None:
    number = machines[0].number
    before = Path("/proc/sys/net/ipv4/conf/all/log_martians").read_text()
    other = "0" if before.strip() == "1" else "1"
    set_to = realm.power.exec(number, ["sysctl", "-w", f"net.ipv4.conf.all.log_martians={other}"])
    assert set_to.returncode == 0
    assert Path("/proc/sys/net/ipv4/conf/all/log_martians").read_text() == before
    assert realm.power.exec(number, ["sysctl", "-w", "vm.swappiness=60"]).returncode != 0


def test_the_way_out_works(realm: Realm, machines: list[Machine]) -> None:
    assert realm.power.exec(machines[0].number, ["apt-get", "update"], timeout=90).returncode == 0


def test_a_packet_to_outside_is_no_larger_than_this_hosts_way_out_takes(realm: Realm, machines: list[Machine]) -> None:
    # IP_MTU (ip(7)) of a datagram socket that has a destination; nothing is sent.
    program = (
        "import socket\nwith socket.socket(type=socket.SOCK_DGRAM) as s:\n"
        "    s.connect(('198.51.100.1', 9))\n    print(s.getsockopt(socket.IPPROTO_IP, 14))\n"
    )
    ours = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(inside(realm, machines[0].number, "python3", "-c", program)) == min(1500, int(ours))


def test_the_cloud_firewall_filters_both_families_before_the_guests_nat(realm: Realm, machines: list[Machine]) -> None:
    machine = machines[0]
    ports = [22, *PORTS]
    redirect = ["-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "REDIRECT", "--to-ports", "3000"]
    for tool in ("iptables", "ip6tables"):
        assert realm.power.exec(machine.number, [tool, *redirect]).returncode == 0
    assert inside(realm, machine.number, "systemctl", "stop", "listen-80") == ""
    with realm.outsider() as outsider:
        for address in machine.addresses():
            assert open_ports(outsider.run, address, ports) == [22, 80, 2500]
        with realm.cloud_firewall_off(machine):
            for address in machine.addresses():
                assert open_ports(outsider.run, address, ports) == [22, 80, 2222, 2500, 3000, 8080]
        for address in machine.addresses():
            assert open_ports(outsider.run, address, ports) == [22, 80, 2500]
        realm.power.set_firewall(machine.number, CloudFirewall(inbound_policy="drop"))
        for address in machine.addresses():
            assert open_ports(outsider.run, address, ports) == []
        realm.power.set_firewall(machine.number, FIREWALL)


def test_outbound_rules_are_kept(realm: Realm, machines: list[Machine]) -> None:
    first, second = machines

    def out(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return realm.power.exec(second.number, argv)

    assert open_ports(out, first.addresses()[0], [22, 80]) != []
    realm.power.set_firewall(second.number, CloudFirewall(outbound=(Rule("drop", "tcp", ((22, 22),), ANYWHERE),)))
    for address in first.addresses():
        assert 22 not in open_ports(out, address, [22, 2500])
        assert 2500 in open_ports(out, address, [22, 2500])
    realm.power.set_firewall(second.number, FIREWALL)


def test_a_vpc_is_closed_to_the_host_and_to_other_vpcs(realm: Realm, machines: list[Machine], vpc: int) -> None:
    private = machines[0].addresses(str(vpc))[0]
    with realm.neighbour(vpc, "10.20.0.99/24") as neighbour:
        assert ssh_answers(neighbour.run, private)
    other = new_vpc(realm)
    with realm.neighbour(other, "10.20.0.99/24") as stranger, realm.outsider() as outsider:
        assert not ssh_answers(stranger.run, private)
        assert not ssh_answers(outsider.run, private)
        # Not even when somebody on the public network routes there on purpose.
        outsider.run(["ip", "route", "add", f"{private}/32", "via", realm.operator_v4])
        assert not ssh_answers(outsider.run, private)
    found = subprocess.run(["ip", "route", "get", private], capture_output=True, text=True, check=False).stdout
    assert realm.network.prefix not in found
    realm.destroy_vpc(other)


def test_a_machine_without_a_public_interface_has_no_way_out(realm: Realm, vpc: int) -> None:
    machine = realm.power.create(spec("db-1", vpc, "10.20.0.13/24", public=False), print)
    assert machine.addresses() == ()
    assert (
        inside(realm, machine.number, "ip", "route").split()
        == "10.20.0.0/24 dev eth0 proto kernel scope link src 10.20.0.13".split()
    )
    realm.power.destroy(machine.number)


def test_a_label_is_given_once(realm: Realm, machines: list[Machine], vpc: int) -> None:
    with pytest.raises(RealmError, match="must be unique"):
        realm.power.create(spec(machines[0].label, vpc, "10.20.0.14/24"), print)


@pytest.mark.parametrize("how", ["from inside", "by the cloud"])
def test_a_reboot_keeps_the_disk_and_the_cloud_firewall_and_no_rule_of_the_guests(
    realm: Realm, machines: list[Machine], how: str
) -> None:
    machine = machines[1]
    inside(realm, machine.number, "sh", "-c", "iptables -P INPUT DROP; touch /root/kept; touch /run/gone")
    inside(realm, machine.number, "sysctl", "-w", "net.ipv4.conf.all.log_martians=1")
    if how == "from inside":
        realm.power.exec(machine.number, ["systemctl", "reboot"])
    else:
        realm.power.reboot(machine.number)
    until(lambda: realm.power.exec(machine.number, ["test", "!", "-e", "/run/gone"]).returncode == 0)
    assert inside(realm, machine.number, "iptables", "-S", "INPUT").strip() == "-P INPUT ACCEPT"
    assert realm.power.exec(machine.number, ["test", "-e", "/root/kept"]).returncode == 0
    assert inside(realm, machine.number, "sysctl", "-n", "net.ipv4.conf.all.log_martians").strip() == "0"
    assert "policy drop" in inside(realm, machine.number, "nft", "list", "table", "inet", "cloud")
    assert realm.power.get(machine.number).addresses() == machine.addresses()


def test_the_cloud_firewall_is_there_before_the_first_process(realm: Realm) -> None:
    """A port that the image itself opens (22), closed in the cloud, is never seen open, from the first moment on."""
    closed = MachineSpec("early-1", (Nic(PUBLIC, ()),), firewall=CloudFirewall(inbound_policy="drop"))
    seen: list[int] = []
    with realm.outsider() as outsider, ThreadPoolExecutor() as pool:
        making = pool.submit(realm.power.create, closed, print)
        free = next(
            address
            for index in range(10, 30)
            if (address := str(ip_interface(realm.network.public_addresses(index)[0]).ip))
            not in {one for machine in realm.machines() if machine.label != "early-1" for one in machine.addresses()}
        )
        end = time.monotonic() + 4
        while time.monotonic() < end:
            seen += open_ports(outsider.run, free, [22])
        machine = making.result()
        assert machine.addresses()[0] == free
        assert seen == []
        realm.power.set_firewall(machine.number, CloudFirewall())
        until(lambda: open_ports(outsider.run, free, [22]) == [22])
    realm.power.destroy(machine.number)


def test_everything_comes_back_after_a_crash_of_the_host(realm: Realm, machines: list[Machine], vpc: int) -> None:
    inside(realm, machines[0].number, "sh", "-c", "echo mine > /root/kept; sync")
    for machine in machines:
        realm.power.kill(machine.number)
    realm.network.stop()
    assert set(of_realm(realm.network.number)) == {"containers"}
    again = Realm.open(realm.workspace)
    again.start(print)
    assert {one.label: one.nics for one in again.machines()} == {one.label: one.nics for one in machines}
    assert inside(again, machines[0].number, "cat", "/root/kept") == "mine\n"
    with again.outsider() as outsider, again.neighbour(vpc, "10.20.0.99/24") as neighbour:
        until(lambda: open_ports(outsider.run, machines[0].addresses()[1], [22, 8080]) == [22])
        assert open_ports(neighbour.run, machines[1].addresses(str(vpc))[0], [22]) == [22]


def test_start_mends_what_was_lost_under_running_machines(realm: Realm, machines: list[Machine], vpc: int) -> None:
    realm.network.stop_vpc(str(vpc))
    subprocess.run(["ip", "netns", "delete", realm.network.namespace(machines[1].number)], check=True)
    realm.start(print)
    with realm.neighbour(vpc, "10.20.0.99/24") as neighbour:
        for machine in machines:
            until_printed(realm, machine.number, ["ss", "-ltn"], ":22 ")
            assert open_ports(neighbour.run, machine.addresses(str(vpc))[0], [22]) == [22]
    started = realm.power.running()
    realm.start(print)
    assert realm.power.running() == started


def test_resources_that_nobody_knows_of_are_removed(realm: Realm, machines: list[Machine], vpc: int) -> None:
    orphan = realm.power.create(spec("orphan-1", vpc, "10.20.0.15/24"), print)
    known = {vpc, *(machine.number for machine in machines)}
    assert list(realm.remove_unknown(known)) == ["machine orphan-1"]
    assert orphan.number not in realm.power.running()
    assert list(realm.remove_unknown(known)) == []


def test_a_machine_that_cannot_be_made_leaves_nothing(realm: Realm) -> None:
    before = of_realm(realm.network.number)
    with pytest.raises(RealmError):
        realm.power.create(MachineSpec("lost-1", (Nic("99999", ("10.99.0.10/24",)),)), print)
    assert of_realm(realm.network.number) == before
    assert "lost-1" not in [machine.label for machine in realm.machines()]


def test_a_realm_is_removed_though_its_workspace_is_gone(tmp_path: Path) -> None:
    def volumes() -> str:
        return subprocess.run(["podman", "volume", "ls", "-q"], capture_output=True, text=True, check=True).stdout

    before, workspace = volumes(), tmp_path / "workspace"
    realm = Realm.open(workspace)
    try:
        realm.start(print)
        assert realm.network.number == Realm.open(workspace).network.number
        realm.power.create(spec("app-1", new_vpc(realm), "10.20.0.11/24"), print)
        subprocess.run(["rm", "-rf", str(workspace)], check=True)
    finally:
        Realm.open(workspace).destroy()
    assert of_realm(realm.network.number) == {}
    assert not (workspace / "cloud").exists()
    assert volumes() == before
