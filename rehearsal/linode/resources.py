"""Linode's resources, made of this host's machines and networks."""

import base64
import datetime
import uuid
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import ClassVar

from rehearsal.cloud_firewall import CloudFirewall
from rehearsal.linode import rules
from rehearsal.machines import Machine, MachineSpec
from rehearsal.network import PUBLIC, Nic
from rehearsal.provider.base import Resource
from rehearsal.provider.schema import Problem
from rehearsal.provider.values import Plain
from rehearsal.realm import VPCS, Account
from rehearsal.store import RealmError, Record

SUBNETS, FIREWALLS = "subnets", "firewalls"

Values = dict[str, Plain]


class Cloud(Account):
    """The rehearsal's realm, seen as a Linode account."""

    def find(self, kind: str, number: int, what: str) -> Record:
        """A record, or the API's refusal."""
        record = self.store.get(kind, number)
        if record is None:
            raise RealmError(f"[404] Not found: there is no {what} with the id {number}")
        return record

    def unique(self, label: str, others: Iterable[str], what: str) -> None:
        """Refuse a label that is taken."""
        if label in set(others):
            raise RealmError(f"[400] [label] Label must be unique among your {what}: {label!r} is taken")


class Vpc(Resource):
    """A private network: a bridge on which this host itself has no address."""

    args = ("pulumi_linode.vpc", "VpcArgs")
    replaces = frozenset({"region", "vpcType"})

    def __init__(self, cloud: Cloud) -> None:
        """In this cloud."""
        self._cloud = cloud

    def check(self, inputs: Values) -> Iterable[Problem]:
        """See `rules.vpc`."""
        return rules.vpc(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """A bridge, for subnets to come."""
        store = self._cloud.store
        with store.lock():
            self._cloud.unique(inputs["label"], (vpc["inputs"]["label"] for vpc in store.all(VPCS).values()), "VPCs")
            number = store.new_id()
            store.put(VPCS, number, {"inputs": inputs, "created": _now(), "updated": _now()})
        self._cloud.realm.create_vpc(number)
        return str(number), self._outputs(number)

    def read(self, number: int) -> tuple[Values, Values] | None:
        """What the database says."""
        record = self._cloud.store.get(VPCS, number)
        return None if record is None else (record["inputs"], self._outputs(number))

    def update(self, number: int, old: Values, new: Values) -> Values:
        """Label and description."""
        del old
        _rewrite(self._cloud, VPCS, number, new)
        return self._outputs(number)

    def delete(self, number: int) -> None:
        """Refused while machines are inside."""
        store = self._cloud.store
        subnets = [key for key, subnet in store.all(SUBNETS).items() if subnet["inputs"]["vpcId"] == number]
        if subnets:
            raise RealmError(f"[409] VPC {number} still has subnets ({', '.join(map(str, subnets))})")
        self._cloud.realm.destroy_vpc(number)

    def _outputs(self, number: int) -> Values:
        record = self._cloud.find(VPCS, number, "VPC")
        return {
            "created": record["created"],
            "updated": record["updated"],
            "description": record["inputs"].get("description", ""),
            "vpcType": record["inputs"].get("vpcType", "regular"),
            "subnets": [],
        }


class VpcSubnet(Resource):
    """A range of a VPC's addresses."""

    args = ("pulumi_linode.vpc_subnet", "VpcSubnetInitArgs")
    replaces = frozenset({"vpcId", "ipv4"})

    def __init__(self, cloud: Cloud) -> None:
        """In this cloud."""
        self._cloud = cloud

    def check(self, inputs: Values) -> Iterable[Problem]:
        """See `rules.subnet`."""
        return rules.subnet(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Refused where it overlaps another subnet of its VPC."""
        store = self._cloud.store
        with store.lock():
            self._cloud.find(VPCS, inputs["vpcId"], "VPC")
            siblings = [
                one["inputs"] for one in store.all(SUBNETS).values() if one["inputs"]["vpcId"] == inputs["vpcId"]
            ]
            self._cloud.unique(inputs["label"], (one["label"] for one in siblings), "subnets of this VPC")
            for one in siblings:
                if IPv4Network(one["ipv4"]).overlaps(IPv4Network(inputs["ipv4"])):
                    raise RealmError(f"[400] [ipv4] {inputs['ipv4']} overlaps the subnet {one['label']}, {one['ipv4']}")
            number = store.new_id()
            store.put(SUBNETS, number, {"inputs": inputs, "created": _now(), "updated": _now()})
        return str(number), self._outputs(number)

    def read(self, number: int) -> tuple[Values, Values] | None:
        """What the database says."""
        record = self._cloud.store.get(SUBNETS, number)
        return None if record is None else (record["inputs"], self._outputs(number))

    def update(self, number: int, old: Values, new: Values) -> Values:
        """The label."""
        del old
        _rewrite(self._cloud, SUBNETS, number, new)
        return self._outputs(number)

    def delete(self, number: int) -> None:
        """Refused while machines are inside."""
        used = [machine.label for machine in self._cloud.realm.machines() if number in machine.details["subnets"]]
        if used:
            raise RealmError(f"[409] subnet {number} is in use by {', '.join(used)}")
        self._cloud.store.remove(SUBNETS, number)

    def _outputs(self, number: int) -> Values:
        record = self._cloud.find(SUBNETS, number, "VPC subnet")
        return {
            "created": record["created"],
            "updated": record["updated"],
            "databases": [],
            "linodes": [],
            "nodebalancers": [],
            "vpcType": "regular",
        }


class Firewall(Resource):
    """A cloud firewall; its rules are loaded in front of each machine that has it."""

    args = ("pulumi_linode.firewall", "FirewallArgs")
    replaces: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, cloud: Cloud) -> None:
        """In this cloud."""
        self._cloud = cloud

    def check(self, inputs: Values) -> Iterable[Problem]:
        """See `rules.firewall`."""
        return rules.firewall(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Rules without a machine yet."""
        store = self._cloud.store
        with store.lock():
            self._cloud.unique(
                inputs["label"], (one["inputs"]["label"] for one in store.all(FIREWALLS).values()), "firewalls"
            )
            number = store.new_id()
            store.put(FIREWALLS, number, {"inputs": inputs, "created": _now(), "updated": _now(), "version": 1})
        return str(number), self._outputs(number)

    def read(self, number: int) -> tuple[Values, Values] | None:
        """What the database says."""
        record = self._cloud.store.get(FIREWALLS, number)
        return None if record is None else (record["inputs"], self._outputs(number))

    def update(self, number: int, old: Values, new: Values) -> Values:
        """New rules, at once, on every machine that has this firewall."""
        del old
        _rewrite(self._cloud, FIREWALLS, number, new)
        for machine in self._users(number):
            self._cloud.realm.power.set_firewall(machine.number, cloud_firewall(new))
        return self._outputs(number)

    def delete(self, number: int) -> None:
        """Refused while a machine has it."""
        users = self._users(number)
        if users:
            raise RealmError(f"[409] firewall {number} is in use by {', '.join(machine.label for machine in users)}")
        self._cloud.store.remove(FIREWALLS, number)

    def _users(self, number: int) -> Sequence[Machine]:
        return [one for one in self._cloud.realm.machines() if one.details["inputs"].get("firewallId") == number]

    def _outputs(self, number: int) -> Values:
        record = self._cloud.find(FIREWALLS, number, "firewall")
        return {
            "created": record["created"],
            "updated": record["updated"],
            "version": record["version"],
            "disabled": False,
            "devices": [],
            "status": "disabled" if record["inputs"].get("disabled") else "enabled",
        }


class Instance(Resource):
    """A machine."""

    args = ("pulumi_linode.instance", "InstanceArgs")
    # pulumi-linode 6: each of these destroys the server.
    replaces = frozenset(
        {
            "authorizedKeys",
            "authorizedUsers",
            "diskEncryption",
            "firewallId",
            "image",
            "interfaceGeneration",
            "metadatas",
            "networkHelper",
        }
    )

    def __init__(self, cloud: Cloud) -> None:
        """In this cloud."""
        self._cloud = cloud

    def check(self, inputs: Values) -> Iterable[Problem]:
        """See `rules.instance`."""
        return rules.instance(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Boots it and returns when it runs, long before its first boot is done: as the real one does."""
        label = inputs.get("label") or f"linode{uuid.uuid4().hex[:8]}"
        details: Record = {
            "inputs": _public(inputs),
            "subnets": self._subnets(inputs),
            "hasUserData": bool(_user_data(inputs)),
            "host": uuid.uuid4().hex,
            "disk": rules.disk(inputs["type"]),
        }
        spec = MachineSpec(
            label=label,
            nics=self._nics(inputs),
            user_data=base64.b64decode(_user_data(inputs)),
            image=rules.IMAGES[inputs["image"]],
            root_keys=tuple(inputs.get("authorizedKeys") or ()),
            firewall=self._firewall(inputs),
            details=details,
        )
        machine = self._cloud.realm.power.create(spec, progress=_silent)
        if inputs.get("booted") is False:
            self._cloud.realm.power.stop(machine.number)
        return str(machine.number), self._outputs(self._cloud.realm.power.get(machine.number))

    def read(self, number: int) -> tuple[Values, Values] | None:
        """What the database says; whether it runs is asked from the machine."""
        found = [machine for machine in self._cloud.realm.machines() if machine.number == number]
        if not found:
            return None
        return found[0].details["inputs"], self._outputs(found[0])

    def update(self, number: int, old: Values, new: Values) -> Values:
        """Most properties change a record; interfaces and power change the machine, and another size reboots it.

        The disk stays as it is, so that it must fit (`resize_disk` of the real one, which is off by default).
        """
        power = self._cloud.realm.power
        details = {**power.get(number).details, "inputs": _public(new), "subnets": self._subnets(new)}
        if rules.disk(new["type"]) < details["disk"]:
            raise RealmError(
                "[400] Linode has allocated more disk than the new service plan allows. Delete or resize disks smaller."
            )
        if old.get("label") != new.get("label") and new.get("label"):
            power.rename(number, new["label"])
        if old.get("interfaces") != new.get("interfaces"):
            power.set_nics(number, self._nics(new, number))
        power.set_details(number, details)
        if any(old.get(name) != new.get(name) for name in ("interfaces", "type")):
            power.reboot(number)
        booted = new.get("booted", True)
        if booted != power.get(number).powered:
            (power.start if booted else power.stop)(number)
        return self._outputs(power.get(number))

    def delete(self, number: int) -> None:
        """With its disk."""
        self._cloud.realm.power.destroy(number)

    def _firewall(self, inputs: Values) -> CloudFirewall:
        if inputs.get("firewallId") is None:
            return CloudFirewall()
        return cloud_firewall(self._cloud.find(FIREWALLS, inputs["firewallId"], "firewall")["inputs"])

    def _subnets(self, inputs: Values) -> list[int]:
        return [nic["subnetId"] for nic in inputs.get("interfaces") or [] if nic["purpose"] == "vpc"]

    def _nics(self, inputs: Values, number: int | None = None) -> tuple[Nic, ...]:
        nics = []
        for nic in inputs.get("interfaces") or [{"purpose": "public"}]:
            if nic["purpose"] == "public":
                nics.append(Nic(PUBLIC, ()))
                continue
            subnet = self._cloud.find(SUBNETS, nic["subnetId"], "VPC subnet")["inputs"]
            region = self._cloud.find(VPCS, subnet["vpcId"], "VPC")["inputs"]["region"]
            if region != inputs["region"]:
                raise RealmError(f"[400] [interfaces] the subnet is in {region}, the instance in {inputs['region']}")
            nics.append(self._vpc_nic(subnet, nic["ipv4"]["vpc"], number))
        return tuple(nics)

    def _vpc_nic(self, subnet: Values, address: str, number: int | None) -> Nic:
        net, ip = IPv4Network(subnet["ipv4"]), IPv4Address(address)
        if ip not in net:
            raise RealmError(f"[400] [interfaces] {ip} is not in the subnet {net}")
        # The first two and the last two addresses of a subnet are Linode's.
        if ip in {net[0], net[1], net[-2], net[-1]}:
            raise RealmError(f"[400] [interfaces] {ip} is reserved: the first two and last two of {net} are")
        for machine in self._cloud.realm.machines():
            if machine.number != number and address in machine.addresses(str(subnet["vpcId"])):
                raise RealmError(f"[400] [interfaces] {ip} is in use by {machine.label}")
        return Nic(str(subnet["vpcId"]), (f"{ip}/{net.prefixlen}",))

    def _outputs(self, machine: Machine) -> Values:
        running = machine.number in self._cloud.realm.power.running()
        v4 = [address for address in machine.addresses() if ":" not in address]
        v6 = [address for address in machine.addresses() if ":" in address]
        return {
            "label": machine.label,
            "status": "running" if running else "offline",
            "booted": running,
            "ipv4s": v4,
            "ipAddress": v4[0] if v4 else None,
            "ipv6": f"{v6[0]}/128" if v6 else None,
            "hasUserData": machine.details["hasUserData"],
            "hostUuid": machine.details["host"],
            "capabilities": [],
            "locks": [],
            "watchdogEnabled": True,
            "specs": [{"disk": machine.details["disk"], "gpus": 0, "memory": 4096, "transfer": 4000, "vcpus": 2}],
        }


def cloud_firewall(inputs: Values) -> CloudFirewall:
    """The firewall that a Firewall resource describes."""
    if inputs.get("disabled"):
        return CloudFirewall()
    return CloudFirewall(
        inbound=rules.to_rules(inputs.get("inbounds") or ()),
        inbound_policy="accept" if inputs["inboundPolicy"] == "ACCEPT" else "drop",
        outbound=rules.to_rules(inputs.get("outbounds") or ()),
        outbound_policy="accept" if inputs["outboundPolicy"] == "ACCEPT" else "drop",
    )


def resources(workspace: Path) -> dict[str, Resource]:
    """The resource types by token."""
    cloud = Cloud(workspace)
    return {
        "linode:index/vpc:Vpc": Vpc(cloud),
        "linode:index/vpcSubnet:VpcSubnet": VpcSubnet(cloud),
        "linode:index/firewall:Firewall": Firewall(cloud),
        "linode:index/instance:Instance": Instance(cloud),
    }


def _rewrite(cloud: Cloud, kind: str, number: int, inputs: Values) -> None:
    with cloud.store.lock():
        record = cloud.find(kind, number, kind.rstrip("s"))
        record.update(inputs=inputs, updated=_now())
        if "version" in record:
            record["version"] += 1
        cloud.store.put(kind, number, record)


def _user_data(inputs: Values) -> str:
    metadatas = inputs.get("metadatas") or [{}]
    return str(metadatas[0].get("userData") or "")


def _public(inputs: Values) -> Values:
    """An instance's inputs that the API tells again."""
    return {name: value for name, value in inputs.items() if name not in {"authorizedKeys", "metadatas"}}


def _silent(_text: str) -> None:
    """Images are there before Pulumi runs; a plugin has no one to tell."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
