"""Machines of a realm: systemd in a podman container that looks to its guest like a fresh cloud server."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from rehearsal import image
from rehearsal.boot import ANNOTATION
from rehearsal.cloud_firewall import CloudFirewall
from rehearsal.network import NAMESPACES, PUBLIC, Network, Nic
from rehearsal.podman import Podman, run_options
from rehearsal.store import RealmError, Record, Store, write_atomically

KIND = "machines"
REALM_LABEL = "uds.realm"
NUMBER_LABEL = "uds.number"

FIRST_PUBLIC, LAST_PUBLIC = 10, 199
"""Host numbers of machines on the public network; above are temporary ones (attackers in tests)."""

SEED = "/var/lib/cloud/seed/nocloud"


@dataclass(frozen=True)
class MachineSpec:
    """What a cloud is asked for.

    nics: eth0, eth1, ...; a public one gets its addresses here, a VPC's ones are given (CIDR).
    user_data: as cloud-init gets it. root_keys: authorized keys of the stock root account.
    details: the provider plugin's own notes, kept with the machine.
    """

    label: str
    nics: tuple[Nic, ...]
    user_data: bytes = b""
    image: str = image.DEFAULT_IMAGE
    root_keys: tuple[str, ...] = ()
    firewall: CloudFirewall = field(default_factory=CloudFirewall)
    details: Record = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """A machine in the database; `addresses` without prefix lengths, public first."""

    number: int
    label: str
    image: str
    nics: tuple[Nic, ...]
    firewall: CloudFirewall
    powered: bool
    details: Record

    def addresses(self, network: str = PUBLIC) -> tuple[str, ...]:
        """Its addresses on the public network or on a VPC."""
        found = [nic.addresses for nic in self.nics if nic.network == network]
        return tuple(str(ip_interface(address).ip) for addresses in found for address in addresses)


class Machines:
    """Create, find, power and remove the machines of one realm."""

    def __init__(self, workspace: Path, store: Store, network: Network) -> None:
        """The realm's database and networks."""
        self._workspace, self._store, self._network = workspace, store, network
        self.podman = Podman(store.folder / "containers.conf")
        self._write_hook()

    def create(self, spec: MachineSpec, progress: image.Progress) -> Machine:
        """Boot a new machine and return when its first process runs (cloud-init comes later).

        Raises RealmError when it can't be made; then nothing of it is left.
        """
        reference = image.ensure(spec.image, progress)
        with self._store.lock():
            self._refuse_taken(spec.label)
            number = self._store.new_id()
            nics = self._with_addresses(spec.nics)
            record: Record = {
                "label": spec.label,
                "image": spec.image,
                "reference": reference,
                "nics": _nics_to_json(nics),
                "root_keys": list(spec.root_keys),
                "firewall": spec.firewall.to_json(),
                "powered": True,
                "details": spec.details,
            }
            # First, so that every machine that is known can boot; alone it is a folder that goes with the realm.
            self._write_seed(number, spec)
            self._store.put(KIND, number, record)
        try:
            self._boot_new(number, record)
        except BaseException:
            self.destroy(number)
            raise
        return self.get(number)

    def get(self, number: int) -> Machine:
        """The machine with this id. Raises RealmError if there is none."""
        record = self._store.get(KIND, number)
        if record is None:
            raise RealmError(f"there is no machine {number}")
        return _machine(number, record)

    def all(self) -> list[Machine]:
        """Every machine of the realm, oldest first."""
        return [_machine(number, record) for number, record in self._store.all(KIND).items()]

    def destroy(self, number: int) -> None:
        """Remove the machine with its disk and addresses; no error if it's gone."""
        self.podman("rm", "--force", "--volumes", "--time", "0", "--ignore", self._network.namespace(number))
        self._network.drop(number)
        shutil.rmtree(self._seed(number), ignore_errors=True)
        self._store.remove(KIND, number)

    def start(self, number: int) -> None:
        """Power on: boots the machine with the disk it has, or for the first time if it never ran."""
        record = self._change(number, powered=True)
        if self.podman("container", "exists", self._network.namespace(number), check=False).returncode != 0:
            self._boot_new(number, record)
        else:
            self._network.reserve(number)
            self.podman("start", self._network.namespace(number))

    def stop(self, number: int) -> None:
        """Shut down in order, at the latest after 20 s by force."""
        self._change(number, powered=False)
        self.podman("stop", "--time", "20", self._network.namespace(number))

    def reboot(self, number: int) -> None:
        """Shut down and boot again."""
        self.podman("restart", "--time", "20", self._network.namespace(number))

    def kill(self, number: int) -> None:
        """Pull the plug; the machine stays off until `start` (or the realm's start)."""
        self.podman("kill", "--signal", "KILL", self._network.namespace(number))

    def running(self) -> set[int]:
        """Ids of the machines whose first process runs."""
        rows = self.podman.json("ps", "--filter", f"label={REALM_LABEL}={self._workspace}")
        return {int(row["Labels"][ANNOTATION]) for row in rows}

    def healthy(self, machine: Machine) -> bool:
        """Whether a running machine is still in the namespace and on the bridges that it should be on."""
        name = self._network.namespace(machine.number)
        pid = self.podman("inspect", "--format", "{{.State.Pid}}", name).stdout.strip()
        try:
            inside, outside = Path(f"/proc/{pid}/ns/net").stat(), (NAMESPACES / name).stat()
        except FileNotFoundError:
            return False
        return inside.st_ino == outside.st_ino and self._network.attached(machine.number, machine.nics)

    def set_firewall(self, number: int, firewall: CloudFirewall) -> None:
        """Give the machine these cloud firewall rules, now and at every boot."""
        self._change(number, firewall=firewall.to_json())
        if (NAMESPACES / self._network.namespace(number)).exists():
            self._network.load_firewall(number, firewall.nft())

    def set_nics(self, number: int, nics: Iterable[Nic]) -> None:
        """Give the machine these interfaces at its next boot; a public one keeps its addresses."""
        kept = [nic for nic in self.get(number).nics if nic.network == PUBLIC]
        new = [kept[0] if nic.network == PUBLIC and kept else nic for nic in nics]
        self._change(number, nics=_nics_to_json(new))

    def rename(self, number: int, label: str) -> None:
        """Change the cloud's label; the machine's own name stays, as it does in a cloud."""
        with self._store.lock():
            self._refuse_taken(label)
        self._change(number, label=label)

    def set_details(self, number: int, details: Record) -> None:
        """Replace the provider plugin's notes."""
        self._change(number, details=details)

    def exec(
        self, number: int, argv: Sequence[str], *, stdin: str = "", timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside (the cloud's rescue console); its exit status is in the result."""
        name = self._network.namespace(number)
        return self.podman("exec", "--interactive", name, *argv, check=False, stdin=stdin, timeout=timeout)

    def _boot_new(self, number: int, record: Record) -> None:
        name = self._network.namespace(number)
        self._network.reserve(number)
        self.podman(
            "run",
            "--detach",
            "--replace",
            f"--name={name}",
            f"--hostname={record['label']}",
            f"--label={REALM_LABEL}={self._workspace}",
            f"--label={NUMBER_LABEL}={self._network.number}",
            f"--label={ANNOTATION}={number}",
            f"--annotation={ANNOTATION}={number}",
            f"--network=ns:{NAMESPACES / name}",
            f"--volume={self._seed(number)}:{SEED}:ro",
            # A reboot from inside ends the first process: podman starts it again, as a cloud's watchdog does.
            "--restart=always",
            "--log-driver=k8s-file",
            "--pids-limit=-1",
            *run_options(),
            record["reference"],
        )

    def _refuse_taken(self, label: str) -> None:
        if any(record["label"] == label for record in self._store.all(KIND).values()):
            raise RealmError(f"[400] [label] Label must be unique among your machines: {label!r} is taken")

    def _with_addresses(self, nics: Iterable[Nic]) -> tuple[Nic, ...]:
        taken = {
            str(address)
            for record in self._store.all(KIND).values()
            for nic in record["nics"]
            if nic["network"] == PUBLIC
            for address in nic["addresses"]
        }
        free = (
            pair
            for pair in map(self._network.public_addresses, range(FIRST_PUBLIC, LAST_PUBLIC + 1))
            if not taken.intersection(pair)
        )
        try:
            return tuple(Nic(PUBLIC, next(free)) if nic.network == PUBLIC else nic for nic in nics)
        except StopIteration:
            raise RealmError("the rehearsal's public network is full") from None

    def _change(self, number: int, **values: Any) -> Record:  # noqa: ANN401 - JSON values
        with self._store.lock():
            record = self._store.get(KIND, number)
            if record is None:
                raise RealmError(f"there is no machine {number}")
            record.update(values)
            self._store.put(KIND, number, record)
        return record

    def _seed(self, number: int) -> Path:
        return self._store.folder / "seeds" / str(number)

    def _write_seed(self, number: int, spec: MachineSpec) -> None:
        """cloud-init's NoCloud files: 0700/0600, or every local user of the machine could read them."""
        folder = self._seed(number)
        folder.mkdir(mode=0o700, parents=True)
        files = {
            "meta-data": json.dumps({"instance-id": f"{number}", "local-hostname": spec.label}).encode(),
            "network-config": b"network: {config: disabled}\n",
            "user-data": spec.user_data,
        }
        for name, content in files.items():
            path = folder / name
            path.touch(mode=0o600)
            path.write_bytes(content)

    def _write_hook(self) -> None:
        """Tell podman of the boot hook, with the interpreter and the place that this program runs from now."""
        folder = self._store.folder / "hooks"
        folder.mkdir(mode=0o700, exist_ok=True)
        hook = {
            "version": "1.0.0",
            "hook": {
                "path": sys.executable,
                "args": [sys.executable, "-S", "-m", "rehearsal.boot", str(self._workspace)],
                "env": [f"PYTHONPATH={Path(__file__).parents[1]}", f"PATH={os.environ['PATH']}"],
            },
            "when": {"annotations": {f"^{ANNOTATION}$": ".*"}},
            "stages": ["precreate"],
        }
        write_atomically(folder / "boot.json", json.dumps(hook))
        configuration = f"[engine]\nhooks_dir = [{json.dumps(str(folder))}]\n"
        write_atomically(self._store.folder / "containers.conf", configuration)


def _nics_to_json(nics: Iterable[Nic]) -> list[Record]:
    return [nic.to_json() for nic in nics]


def _machine(number: int, record: Record) -> Machine:
    return Machine(
        number=number,
        label=record["label"],
        image=record["image"],
        nics=tuple(map(Nic.from_json, record["nics"])),
        firewall=CloudFirewall.from_json(record["firewall"]),
        powered=record["powered"],
        details=record["details"],
    )
