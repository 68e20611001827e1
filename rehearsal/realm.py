"""A rehearsal's cloud on this host: its number, networks, machines and database, from one workspace folder."""

import contextlib
import fcntl
import functools
import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

from rehearsal import network
from rehearsal.aws import endpoints
from rehearsal.image import Progress
from rehearsal.machines import NUMBER_LABEL, REALM_LABEL, Machine, Machines
from rehearsal.network import PUBLIC, Network, Nic, Router
from rehearsal.podman import run
from rehearsal.store import RealmError, Store, write_atomically

NUMBERS = 256
VPCS, ROUTERS = "vpcs", "routers"
RESOURCES = "resources"
"""What the clouds keep beside machines and networks: nothing of it is on this host."""
KINDS = (RESOURCES, "subnets", "firewalls", VPCS, ROUTERS)
"""Every kind of record but machines; those that use others come first."""
FIRST_TEMPORARY = 200

_HOST_LOCK = Path("/run/lock/uds-rehearsal.lock")


@dataclass(frozen=True)
class Bystander:
    """A network namespace beside the machines: an attacker on the internet, or a neighbour on a VPC."""

    namespace: str
    addresses: tuple[str, ...]

    def run(
        self, argv: Sequence[str], *, stdin: str = "", timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the host with this namespace's network; its exit status is in the result."""
        return run(["ip", "netns", "exec", self.namespace, *argv], check=False, stdin=stdin, timeout=timeout)


class Realm:
    """The cloud of one workspace. Everything may be called again; what's there stays."""

    def __init__(self, workspace: Path, number: int) -> None:
        """Use `open`."""
        self.workspace = workspace
        self.store = Store(workspace / "cloud")
        self.network = Network(number)
        self.power = Machines(workspace, self.store, self.network)

    @classmethod
    def open(cls, workspace: Path) -> "Realm":
        """The realm of this workspace; the first time it gets a number that nothing on this host uses.

        If the workspace was deleted while its machines ran, the realm is found again by what runs.
        """
        network.check_tools()
        workspace = workspace.resolve()
        store = Store(workspace / "cloud")
        saved = store.folder / "realm.json"
        with _host_lock():
            if saved.exists():
                number = int(json.loads(saved.read_text())["number"])
            else:
                found = _found_on_host(workspace)
                number = found if found is not None else _free_number(workspace)
                write_atomically(saved, json.dumps({"number": number}))
        return cls(workspace, number)

    @property
    def operator_v4(self) -> str:
        """The address from which the operator (this host) reaches the machines."""
        return str(self.network.operator_v4.ip)

    @property
    def operator_v6(self) -> str:
        """The operator's IPv6 address."""
        return str(self.network.operator_v6.ip)

    def machines(self) -> list[Machine]:
        """Every machine, oldest first."""
        return self.power.all()

    def machine(self, label: str) -> Machine:
        """The machine with this label. Raises RealmError if there is none."""
        for machine in self.machines():
            if machine.label == label:
                return machine
        raise RealmError(f"there is no machine {label!r} in {self.workspace}")

    def start(self, progress: Progress) -> None:
        """Networks up and every machine on that should be on, with its disk: after a reboot, kill or loss of networks.

        Raises RealmError when another program of this host has taken the realm's networks meanwhile.
        """
        self._start_network()
        for vpc in self.store.all(VPCS):
            self.network.start_vpc(str(vpc), str(self.workspace))
        for router, record in self.store.all(ROUTERS).items():
            self.network.set_router(router, Router.from_json(record["router"]))
        self._start_endpoints(progress)
        running = self.power.running()
        wanted = [machine for machine in self.machines() if machine.powered]
        down = [one for one in wanted if one.number not in running or not self.power.healthy(one)]
        if down:
            progress(f"starting {', '.join(machine.label for machine in down)}")
            with ThreadPoolExecutor(max_workers=4) as pool:
                list(pool.map(lambda one: self._revive(one.number, running), down))

    def destroy(self) -> None:
        """Remove machines, networks, rules and records; the workspace's other files stay."""
        podman = self.power.podman
        names = podman("ps", "--all", "--quiet", "--filter", f"label={REALM_LABEL}={self.workspace}").stdout.split()
        if names:
            podman("rm", "--force", "--volumes", "--time", "0", "--ignore", *names)
        with _host_lock():
            forwarding = json.loads((self.store.folder / "realm.json").read_text()).get("forwarding", False)
            endpoints.stop(self)
            self.network.stop()
            if forwarding:
                network.restore_forwarding()
        shutil.rmtree(self.store.folder)

    def create_vpc(self, vpc: int) -> None:
        """The bridge of a VPC that has a record in the database."""
        self.network.start_vpc(str(vpc), str(self.workspace))

    def destroy_vpc(self, vpc: int) -> None:
        """Remove the VPC's bridge, then its record."""
        self.network.stop_vpc(str(vpc))
        self.store.remove(VPCS, vpc)

    def remove_unknown(self, known: Set[int]) -> Iterator[str]:
        """Remove every resource whose id is not in `known`, and say which.

        Machines first: what they use can go only after them.
        """
        for machine in self.machines():
            if machine.number not in known:
                self.power.destroy(machine.number)
                yield f"machine {machine.label}"
        for kind in KINDS:
            for number, record in self.store.all(kind).items():
                if number not in known:
                    if kind == VPCS:
                        self.network.stop_vpc(str(number))
                    elif kind == ROUTERS:
                        self.network.drop_router(number)
                    self.store.remove(kind, number)
                    yield f"{record.get('what', kind.removesuffix('s'))} {number}"

    def set_router(self, number: int, router: Router) -> None:
        """Change what a router that has a record in the database lets through."""
        with self.store.lock():
            record = self.store.get(ROUTERS, number)
            if record is not None:
                self.store.put(ROUTERS, number, {**record, "router": router.to_json()})
                self.network.set_router(number, router)

    def destroy_router(self, number: int) -> None:
        """Remove the router, then its record."""
        self.network.drop_router(number)
        self.store.remove(ROUTERS, number)

    @contextlib.contextmanager
    def outsider(self, index: int = FIRST_TEMPORARY) -> Iterator[Bystander]:
        """Somebody on the internet, with host number `index` (200..254) of the public network."""
        addresses = self.network.public_addresses(index)
        with self._bystander(f"x{index}", Nic(PUBLIC, addresses)) as somebody:
            yield somebody

    @contextlib.contextmanager
    def neighbour(self, vpc: int, address: str) -> Iterator[Bystander]:
        """Another machine on the VPC with this address (CIDR)."""
        with self._bystander(f"n{int(ip_interface(address).ip) % 100000}", Nic(str(vpc), (address,))) as somebody:
            yield somebody

    @contextlib.contextmanager
    def cloud_firewall_off(self, machine: Machine) -> Iterator[None]:
        """Only the machine's own firewall stands for a while; the cloud's comes back at the end."""
        self.network.load_firewall(machine.number, "table inet cloud\ndelete table inet cloud\n")
        try:
            yield
        finally:
            self.network.load_firewall(machine.number, self.power.get(machine.number).firewall.nft())

    @contextlib.contextmanager
    def _bystander(self, name: str, nic: Nic) -> Iterator[Bystander]:
        try:
            self.network.build(name, [nic], "")
            plain = tuple(str(ip_interface(address).ip) for address in nic.addresses)
            yield Bystander(self.network.namespace(name), plain)
        finally:
            self.network.drop(name)

    def _start_network(self) -> None:
        with _host_lock():
            owner = self.network.owner()
            taken = self.network.conflicts() if owner is None else []
            if owner not in {None, str(self.workspace)[-255:]}:
                taken = [f"the rehearsal in {owner}"]
            if taken and (self.machines() or self.store.all(VPCS)):
                raise RealmError(
                    f"this rehearsal's network {self.network.operator_v4.network} is now also used by"
                    f" {', '.join(taken)}: remove that, or take the rehearsal down and up again"
                )
            saved = self.store.folder / "realm.json"
            realm = json.loads(saved.read_text())
            if taken:
                realm["number"] = _free_number(self.workspace)
                self.network = Network(realm["number"])
                self.power = Machines(self.workspace, self.store, self.network)
            realm["forwarding"] = network.enable_forwarding() or realm.get("forwarding", False)
            write_atomically(saved, json.dumps(realm))
            self.network.start_public(str(self.workspace))

    def _start_endpoints(self, progress: Progress) -> None:
        try:
            if endpoints.sync(self):
                progress("S3 had ended: its buckets are made again, and what this rehearsal kept in them is lost")
        except RealmError as error:
            # Of what a killed run left half done, which is removed after this.
            progress(str(error))

    def _revive(self, number: int, running: set[int]) -> None:
        if number in running:
            self.power.kill(number)
        self.power.start(number)


class Account:
    """A cloud's account: a workspace's realm, opened when first needed. A preview needs neither machines nor root."""

    def __init__(self, workspace: Path) -> None:
        """Use the realm of this workspace."""
        self._workspace = workspace

    @functools.cached_property
    def realm(self) -> Realm:
        """The realm; it was started by the rehearsal's driver."""
        return Realm.open(self._workspace)

    @property
    def store(self) -> Store:
        """The realm's database."""
        return self.realm.store


def _found_on_host(workspace: Path) -> int | None:
    """The number of a realm whose workspace was deleted while it ran."""
    rows = json.loads(
        run(["podman", "ps", "--all", "--filter", f"label={REALM_LABEL}={workspace}", "--format", "json"]).stdout
        or "[]"
    )
    for row in rows or []:
        return int(row["Labels"][NUMBER_LABEL])
    for number in range(NUMBERS):
        if Path(f"/sys/class/net/uds{number}-pub").exists() and Network(number).owner() == str(workspace)[-255:]:
            return number
    return None


def _free_number(workspace: Path) -> int:
    """A number that no route, bridge or stopped machine uses; the same workspace mostly gets the same one."""
    label = f"{{{{index .Labels {json.dumps(NUMBER_LABEL)}}}}}"
    listed = run(["podman", "ps", "--all", "--filter", f"label={NUMBER_LABEL}", "--format", label]).stdout.split()
    used = {int(word) for word in listed}
    first = zlib.crc32(str(workspace).encode()) % NUMBERS
    for step in range(NUMBERS):
        number = (first + step) % NUMBERS
        one = Network(number)
        if number not in used and one.owner() is None and not one.conflicts():
            return number
    raise RealmError("every network from 198.18.0.0/24 to 198.18.255.0/24 is in use on this host")


@contextlib.contextmanager
def _host_lock() -> Iterator[None]:
    """One realm at a time picks a number or changes the host's rules."""
    with _HOST_LOCK.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
