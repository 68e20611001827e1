"""AWS's resources, made of this host's machines and networks.

What is only told to the API (tables, groups, logs, roles) is a record; what machines notice of it is put into their
firewalls and their VPC's router whenever a record changes.
"""

import base64
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, ClassVar

from rehearsal.aws import routing, rules
from rehearsal.aws.endpoints import PROFILE
from rehearsal.cloud_firewall import CloudFirewall
from rehearsal.machines import FIRST_PUBLIC, LAST_PUBLIC, Machine, MachineSpec
from rehearsal.network import Nic, Router
from rehearsal.provider.base import Function, Resource
from rehearsal.provider.schema import Problem
from rehearsal.provider.values import Plain
from rehearsal.realm import RESOURCES, ROUTERS, VPCS, Account
from rehearsal.store import RealmError, Record

Values = dict[str, Plain]

_ACCOUNT = "000000000000"
_RULES_LIMIT = 60

# What an instance's API tells nobody again.
_SECRET = frozenset({"userData", "userDataBase64"})


class Api(Account):
    """The rehearsal's realm, seen as an AWS account."""

    def __init__(self, workspace: Path) -> None:
        """Use the realm of this workspace."""
        super().__init__(workspace)
        self._routing = threading.Lock()

    def all(self, what: str) -> dict[str, Record]:
        """Every record of one type, by its id."""
        kind = _KINDS.get(what, RESOURCES)
        found = self.store.all(kind).items()
        return {record["id"]: record for _, record in found if record["what"] == what}

    def find(self, what: str, identifier: str) -> Record:
        """A record, or the API's refusal."""
        record = self.all(what).get(identifier)
        if record is None:
            raise RealmError(f"Invalid{what.title().replace(' ', '')}ID.NotFound: there is no {what} {identifier!r}")
        return record

    def users(self, identifier: str) -> list[str]:
        """Whatever names this id."""
        records = [record for kind in (RESOURCES, VPCS, ROUTERS) for record in self.store.all(kind).values()]
        used = [f"{one['what']} {one['id']}" for one in records if identifier in _texts(one["inputs"])]
        machines = self.realm.machines()
        return used + [one.label for one in machines if identifier in _texts(one.details["inputs"])]

    def gateway_of(self, vpc: str) -> str | None:
        """The internet gateway of a VPC."""
        found = [key for key, one in self.all(INTERNET_GATEWAY).items() if one["inputs"].get("vpcId") == vpc]
        return found[0] if found else None

    def vpc_of(self, interface: str) -> str:
        """The VPC that a network interface is in."""
        subnet = self.find(INTERFACE, interface)["inputs"]["subnetId"]
        return str(self.find(SUBNET, subnet)["inputs"]["vpcId"])

    def public_address(self, interface: str) -> str | None:
        """The Elastic IP of a network interface."""
        addresses = self.all(ADDRESS).values()
        found = [one["facts"]["publicIp"] for one in addresses if one["inputs"].get("networkInterface") == interface]
        return found[0] if found else None

    def route(self) -> None:
        """Let every VPC's router know what has changed."""
        with self._routing:
            for vpc, record in self.all(VPC).items():
                subnets = {
                    key: self._subnet(key, one)
                    for key, one in self.all(SUBNET).items()
                    if one["inputs"]["vpcId"] == vpc
                }
                interfaces = [
                    routing.Attached(
                        subnets[one["inputs"]["subnetId"]],
                        one["inputs"]["privateIps"][0],
                        one["facts"].get("ipv6"),
                        self.public_address(key),
                    )
                    for key, one in self.all(INTERFACE).items()
                    if one["inputs"]["subnetId"] in subnets
                ]
                router = routing.router(IPv4Network(record["inputs"]["cidrBlock"]), list(subnets.values()), interfaces)
                if record["router"] != router.to_json():
                    self.realm.set_router(record["number"], router)

    def firewall(self, groups: Iterable[str]) -> CloudFirewall:
        """What these groups let through: nothing that no rule names, in or out."""
        wanted = set(groups)

        def rules_of(what: str) -> tuple[Any, ...]:
            found = [one["inputs"] for one in self.all(what).values()]
            return tuple(rules.to_rule(one) for one in found if one["securityGroupId"] in wanted)

        return CloudFirewall(rules_of(INGRESS), "drop", rules_of(EGRESS), "drop")

    def guard(self, group: str) -> None:
        """Give the machines behind a group its rules as they are now."""
        with self._routing:
            for machine in self.realm.machines():
                groups = self.find(INTERFACE, machine.details["interface"])["inputs"]["securityGroups"]
                if group in groups:
                    self.realm.power.set_firewall(machine.number, self.firewall(groups))

    def _subnet(self, identifier: str, record: Record) -> routing.Subnet:
        v6 = record["inputs"].get("ipv6CidrBlock")
        tables = [
            one["inputs"]["routeTableId"]
            for one in self.all(ASSOCIATION).values()
            if one["inputs"]["subnetId"] == identifier
        ]
        routes = [one["inputs"] for one in self.all(ROUTE).values() if one["inputs"]["routeTableId"] in tables]
        internet, nat = set(), None
        for one in routes:
            if one.get("gatewayId"):
                internet.add(4 if one.get("destinationCidrBlock") == "0.0.0.0/0" else 6)
            elif one.get("natGatewayId"):
                gateway = self.find(NAT_GATEWAY, one["natGatewayId"])["inputs"]
                nat = self.find(ADDRESS, gateway["allocationId"])["facts"]["publicIp"]
        return routing.Subnet(
            str(record["number"]),
            IPv4Network(record["inputs"]["cidrBlock"]),
            IPv6Network(v6) if v6 else None,
            frozenset(internet),
            nat,
        )


class Recorded(Resource):
    """A resource that is a record. Subclasses say what AWS refuses, what it tells, and who has to know."""

    what: ClassVar[str]
    """Its type, in messages and in the database."""
    rehearsed: ClassVar[frozenset[str]]
    """Properties that have their effect, or none that a machine could notice."""
    problems: ClassVar[tuple[Callable[[Values], Iterable[Problem]], ...]] = ()
    """What AWS refuses by the inputs alone."""

    def __init__(self, api: Api) -> None:
        """In this account."""
        self.api = api

    def check(self, inputs: Values) -> Iterable[Problem]:
        """Refuses also what would silently have no effect here."""
        for name in inputs:
            if name not in self.rehearsed | {"region", "tags"} and not name.startswith("__"):
                yield name, "is not rehearsed"
        for problems in self.problems:
            yield from problems(inputs)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """A record, with what AWS makes up for it."""
        with self.api.store.lock():
            self.refuse(inputs, "")
            number = self.api.store.new_id()
            record: Record = {
                "id": f"{self.prefix}{number:08d}",
                "number": number,
                "what": self.what,
                "inputs": inputs,
                "facts": self.facts(number, inputs),
            }
            self.put(record)
        self.changed(record)
        return str(record["id"]), record["facts"]

    def read(self, number: int) -> tuple[Values, Values] | None:
        """What the database says."""
        record = self.get(number)
        return None if record is None else (record["inputs"], record["facts"])

    def update(self, number: int, old: Values, new: Values) -> Values:
        """In place."""
        del old
        with self.api.store.lock():
            record = self.get(number)
            if record is None:
                raise RealmError(f"there is no {self.what} {number}")
            self.refuse(new, record["id"])
            self.put({**record, "inputs": new})
        self.changed({**record, "inputs": new})
        facts: Values = record["facts"]
        return facts

    def delete(self, number: int) -> None:
        """Refused while something names it."""
        record = self.get(number)
        if record is None:
            return
        users = self.api.users(record["id"])
        if users:
            raise RealmError(f"DependencyViolation: {self.what} {record['id']} is used by {', '.join(users)}")
        self.removed(record)
        self.changed(record)

    def get(self, number: int) -> Record | None:
        """Its record."""
        return self.api.store.get(_KINDS.get(self.what, RESOURCES), number)

    def put(self, record: Record) -> None:
        """Write its record."""
        self.api.store.put(_KINDS.get(self.what, RESOURCES), record["number"], record)

    def removed(self, record: Record) -> None:
        """Forget the record, and take away what is on this host for it."""
        self.api.store.remove(RESOURCES, record["number"])

    def refuse(self, inputs: Values, own: str) -> None:
        """Raise what AWS says against these inputs, seeing what else is there; `own` is the id of what changes."""

    def facts(self, number: int, inputs: Values) -> Values:
        """Outputs that aren't inputs."""
        del inputs
        return {"arn": f"arn:aws:ec2:rehearsal:{_ACCOUNT}:{self.what.replace(' ', '-')}/{self.prefix}{number:08d}"}

    def changed(self, record: Record) -> None:
        """Tell those whom a new, changed or removed record concerns."""

    def others(self, own: str) -> Iterator[tuple[str, Values]]:
        """The ids and inputs of all others of this type."""
        for key, record in self.api.all(self.what).items():
            if key != own:
                yield key, record["inputs"]


class Routed(Recorded):
    """A record that decides who reaches whom."""

    def changed(self, record: Record) -> None:
        """See `Api.route`."""
        del record
        self.api.route()


class Vpc(Recorded):
    """A private network: a router, to which subnets are added."""

    args = ("pulumi_aws.ec2.vpc", "VpcArgs")
    prefix, what = "vpc-", "VPC"
    rehearsed = frozenset({"cidrBlock", "assignGeneratedIpv6CidrBlock", "enableDnsHostnames", "enableDnsSupport"})
    replaces = frozenset({"cidrBlock", "region"})
    problems = (rules.vpc,)

    def facts(self, number: int, inputs: Values) -> Values:
        """The IPv6 block is a piece of what the public network routes here."""
        facts = super().facts(number, inputs)
        if inputs.get("assignGeneratedIpv6CidrBlock"):
            used = {record["facts"].get("ipv6CidrBlock") for record in self.api.all(VPC).values()}
            # The first piece is the public network's own.
            pieces = list(self.api.realm.network.operator_v6.network.subnets(new_prefix=56))[1:]
            facts["ipv6CidrBlock"] = next(str(piece) for piece in pieces if str(piece) not in used)
        return facts

    def put(self, record: Record) -> None:
        """It routes nothing yet."""
        router = routing.router(IPv4Network(record["inputs"]["cidrBlock"]), [], [])
        super().put({"router": router.to_json(), **record})

    def changed(self, record: Record) -> None:
        """Its router is there from now on."""
        known = self.get(record["number"])
        if known is not None:
            self.api.realm.set_router(record["number"], Router.from_json(known["router"]))

    def removed(self, record: Record) -> None:
        """With its router."""
        self.api.realm.destroy_router(record["number"])


class Subnet(Routed):
    """A part of a VPC: a bridge, on which machines see each other and the router."""

    args = ("pulumi_aws.ec2.subnet", "SubnetArgs")
    prefix, what = "subnet-", "subnet"
    rehearsed = frozenset({"vpcId", "cidrBlock", "ipv6CidrBlock", "availabilityZone", "mapPublicIpOnLaunch"})
    replaces = frozenset({"vpcId", "cidrBlock", "availabilityZone", "region"})
    problems = (rules.subnet,)

    def refuse(self, inputs: Values, own: str) -> None:
        """Inside its VPC, and beside the others."""
        vpc = self.api.find(VPC, inputs["vpcId"])
        for name, whole in (("cidrBlock", vpc["inputs"]), ("ipv6CidrBlock", vpc["facts"])):
            if not inputs.get(name):
                continue
            net = inputs[name]
            if not whole.get(name) or not _inside(net, whole[name]):
                raise RealmError(
                    f"InvalidSubnet.Range: {net} is not in the VPC's {whole.get(name, 'IPv6, it has none')}"
                )
            for other, values in self.others(own):
                taken = values.get(name) if values["vpcId"] == inputs["vpcId"] else None
                if taken and ip_network(taken).overlaps(ip_network(net)):
                    raise RealmError(f"InvalidSubnet.Conflict: {net} overlaps {other}, {taken}")

    def facts(self, number: int, inputs: Values) -> Values:
        """AWS picks a zone where none is asked for."""
        zone = inputs.get("availabilityZone") or f"{inputs.get('region') or 'rehearsal'}a"
        return {**super().facts(number, inputs), "availabilityZone": zone}

    def changed(self, record: Record) -> None:
        """Its bridge is there before the router uses it."""
        if self.get(record["number"]) is not None:
            self.api.realm.create_vpc(record["number"])
        super().changed(record)

    def removed(self, record: Record) -> None:
        """With its bridge."""
        self.api.realm.destroy_vpc(record["number"])


class InternetGateway(Routed):
    """The way between a VPC and the world, for those who have a public address and a route."""

    args = ("pulumi_aws.ec2.internet_gateway", "InternetGatewayArgs")
    prefix, what = "igw-", "internet gateway"
    rehearsed = frozenset({"vpcId"})
    replaces = frozenset({"region"})

    def refuse(self, inputs: Values, own: str) -> None:
        """One for each VPC."""
        self.api.find(VPC, inputs["vpcId"])
        if self.api.gateway_of(inputs["vpcId"]) not in {None, own}:
            raise RealmError(f"Resource.AlreadyAssociated: {inputs['vpcId']} has an internet gateway already")

    def removed(self, record: Record) -> None:
        """Refused while an Elastic IP is reached through it."""
        vpc = record["inputs"]["vpcId"]
        for key, one in self.api.all(ADDRESS).items():
            used = one["inputs"].get("networkInterface")
            if used and self.api.vpc_of(used) == vpc:
                raise RealmError(f"DependencyViolation: {vpc} has mapped public addresses: {key}")
        super().removed(record)


class RouteTable(Recorded):
    """Routes of subnets."""

    args = ("pulumi_aws.ec2.route_table", "RouteTableArgs")
    prefix, what = "rtb-", "route table"
    rehearsed = frozenset({"vpcId"})
    replaces = frozenset({"vpcId", "region"})
    problems = (rules.route_table,)

    def refuse(self, inputs: Values, own: str) -> None:
        """In a VPC."""
        del own
        self.api.find(VPC, inputs["vpcId"])


class Route(Routed):
    """Where a destination is reached."""

    args = ("pulumi_aws.ec2.route", "RouteArgs")
    prefix, what = "r-", "route"
    rehearsed = frozenset(
        {"routeTableId", "destinationCidrBlock", "destinationIpv6CidrBlock", "gatewayId", "natGatewayId"}
    )
    replaces = frozenset({"routeTableId", "destinationCidrBlock", "destinationIpv6CidrBlock", "region"})
    problems = (rules.route,)

    def refuse(self, inputs: Values, own: str) -> None:
        """One for each destination, to a gateway of the same VPC."""
        vpc = self.api.find(TABLE, inputs["routeTableId"])["inputs"]["vpcId"]
        if inputs.get("gatewayId"):
            if self.api.find(INTERNET_GATEWAY, inputs["gatewayId"])["inputs"].get("vpcId") != vpc:
                raise RealmError(f"InvalidParameterValue: {inputs['gatewayId']} is not attached to {vpc}")
        else:
            self.api.find(NAT_GATEWAY, inputs["natGatewayId"])
        target = _destination(inputs)
        if target not in {"0.0.0.0/0", "::/0"}:
            raise RealmError(f"a route to {target} is not rehearsed: only those to everywhere are")
        for _, values in self.others(own):
            if values["routeTableId"] == inputs["routeTableId"] and _destination(values) == target:
                raise RealmError(f"RouteAlreadyExists: {inputs['routeTableId']} has a route to {target}")


class RouteTableAssociation(Routed):
    """A subnet's route table."""

    args = ("pulumi_aws.ec2.route_table_association", "RouteTableAssociationArgs")
    prefix, what = "rtbassoc-", "route table association"
    rehearsed = frozenset({"routeTableId", "subnetId"})
    replaces = frozenset({"subnetId", "region"})

    def refuse(self, inputs: Values, own: str) -> None:
        """One for each subnet, in the same VPC."""
        table, subnet = self.api.find(TABLE, inputs["routeTableId"]), self.api.find(SUBNET, inputs["subnetId"])
        if table["inputs"]["vpcId"] != subnet["inputs"]["vpcId"]:
            raise RealmError("InvalidParameterValue: route table and subnet belong to different networks")
        for other, values in self.others(own):
            if values["subnetId"] == inputs["subnetId"]:
                raise RealmError(f"Resource.AlreadyAssociated: {inputs['subnetId']} has a route table already: {other}")


class Eip(Routed):
    """A public address, which no machine has itself: the internet gateway translates it."""

    args = ("pulumi_aws.ec2.eip", "EipArgs")
    prefix, what = "eipalloc-", "elastic IP"
    rehearsed = frozenset({"domain", "networkInterface"})
    replaces = frozenset({"domain", "region"})
    problems = (rules.address,)

    def refuse(self, inputs: Values, own: str) -> None:
        """One for each interface, where there is an internet gateway."""
        interface = inputs.get("networkInterface")
        if not interface:
            return
        vpc = self.api.vpc_of(interface)
        if self.api.gateway_of(vpc) is None:
            raise RealmError(f"Gateway.NotAttached: {vpc} has no internet gateway")
        for other, values in self.others(own):
            if values.get("networkInterface") == interface:
                raise RealmError(f"Resource.AlreadyAssociated: {interface} has the Elastic IP {other}")

    def facts(self, number: int, inputs: Values) -> Values:
        """The first address that is free."""
        network = self.api.realm.network
        used = {record["facts"]["publicIp"] for record in self.api.all(ADDRESS).values()}
        found = (network.public_addresses(index)[0].partition("/")[0] for index in range(FIRST_PUBLIC, LAST_PUBLIC + 1))
        free = next((address for address in found if address not in used), None)
        if free is None:
            raise RealmError("AddressLimitExceeded: the rehearsal's public network is full")
        facts = super().facts(number, inputs)
        return {**facts, "publicIp": free, "allocationId": f"{self.prefix}{number:08d}"}


class NatGateway(Routed):
    """The way out of private subnets, by which nobody comes in."""

    args = ("pulumi_aws.ec2.nat_gateway", "NatGatewayArgs")
    prefix, what = "nat-", "NAT gateway"
    rehearsed = frozenset({"allocationId", "subnetId"})
    replaces = frozenset({"allocationId", "subnetId", "region"})
    problems = (rules.nat_gateway,)

    def refuse(self, inputs: Values, own: str) -> None:
        """With an address of its own, in a VPC that has an internet gateway."""
        vpc = self.api.find(SUBNET, inputs["subnetId"])["inputs"]["vpcId"]
        if self.api.gateway_of(vpc) is None:
            raise RealmError(f"Gateway.NotAttached: {vpc} has no internet gateway")
        address = self.api.find(ADDRESS, inputs["allocationId"])["inputs"]
        taken = [values["allocationId"] for _, values in self.others(own)]
        if address.get("networkInterface") or inputs["allocationId"] in taken:
            raise RealmError(f"Resource.AlreadyAssociated: {inputs['allocationId']} is in use")


class NetworkInterface(Routed):
    """A machine's interface, before and after there is a machine."""

    args = ("pulumi_aws.ec2.network_interface", "NetworkInterfaceArgs")
    prefix, what = "eni-", "network interface"
    rehearsed = frozenset({"subnetId", "privateIps", "ipv6AddressCount", "securityGroups", "description"})
    # A first address can't change; that of a real one ends in an error of the API.
    replaces = frozenset({"subnetId", "privateIps", "region"})
    problems = (rules.interface,)

    def refuse(self, inputs: Values, own: str) -> None:
        """At an address that is free, behind groups of the same VPC."""
        subnet = self.api.find(SUBNET, inputs["subnetId"])["inputs"]
        for group in inputs["securityGroups"]:
            if self.api.find(GROUP, group)["inputs"]["vpcId"] != subnet["vpcId"]:
                raise RealmError(f"InvalidGroup.NotFound: {group} is not in {subnet['vpcId']}")
        net, address = IPv4Network(subnet["cidrBlock"]), IPv4Address(inputs["privateIps"][0])
        if address not in net:
            raise RealmError(f"InvalidParameterValue: {address} is not in the subnet {net}")
        # VPC user guide, "Subnet CIDR blocks".
        if address in {net[0], net[1], net[2], net[3], net[-1]}:
            raise RealmError(f"InvalidParameterValue: {address} is reserved: the first four and the last of {net} are")
        for other, values in self.others(own):
            if values["subnetId"] == inputs["subnetId"] and values["privateIps"] == inputs["privateIps"]:
                raise RealmError(f"InvalidIPAddress.InUse: {address} is {other}'s")
        if inputs.get("ipv6AddressCount") and not subnet.get("ipv6CidrBlock"):
            raise RealmError(f"InvalidParameterValue: the subnet {inputs['subnetId']} has no IPv6")

    def facts(self, number: int, inputs: Values) -> Values:
        """An IPv6 address of the subnet, if one is asked for."""
        facts = super().facts(number, inputs)
        facts["privateIp"] = inputs["privateIps"][0]
        if inputs.get("ipv6AddressCount"):
            block = self.api.find(SUBNET, inputs["subnetId"])["inputs"]["ipv6CidrBlock"]
            facts["ipv6"] = str(IPv6Network(block)[number])
            facts["ipv6Addresses"] = [facts["ipv6"]]
        return facts

    def changed(self, record: Record) -> None:
        """Other groups count at once."""
        super().changed(record)
        if self.get(record["number"]) is not None:
            for group in record["inputs"]["securityGroups"]:
                self.api.guard(group)


class SecurityGroup(Recorded):
    """A cloud firewall, empty: nothing goes in or out until a rule says so."""

    args = ("pulumi_aws.ec2.security_group", "SecurityGroupArgs")
    prefix, what = "sg-", "security group"
    rehearsed = frozenset({"name", "description", "vpcId", "revokeRulesOnDelete"})
    replaces = frozenset({"name", "description", "vpcId", "region"})
    problems = (rules.security_group,)

    def refuse(self, inputs: Values, own: str) -> None:
        """Names differ in a VPC."""
        self.api.find(VPC, inputs["vpcId"])
        for _, values in self.others(own):
            if (values["vpcId"], values.get("name")) == (inputs["vpcId"], inputs.get("name")):
                raise RealmError(
                    f"InvalidGroup.Duplicate: {inputs['vpcId']} has a security group {inputs.get('name')!r}"
                )


class DefaultSecurityGroup(Recorded):
    """The group that a VPC is born with, emptied."""

    args = ("pulumi_aws.ec2.default_security_group", "DefaultSecurityGroupArgs")
    prefix, what = "sg-", "default security group"
    rehearsed = frozenset({"vpcId"})
    replaces = frozenset({"vpcId", "region"})
    problems = (rules.default_group,)

    def refuse(self, inputs: Values, own: str) -> None:
        """A VPC has one, and one resource adopts it."""
        self.api.find(VPC, inputs["vpcId"])
        if any(values["vpcId"] == inputs["vpcId"] for _, values in self.others(own)):
            raise RealmError(f"the default security group of {inputs['vpcId']} is managed already")


class _GroupRule(Recorded):
    """A rule of a security group; the machines behind it have it at once."""

    prefix = "sgr-"
    rehearsed = frozenset(
        {
            *("securityGroupId", "ipProtocol", "fromPort", "toPort", "cidrIpv4", "cidrIpv6", "description"),
            *("prefixListId", "referencedSecurityGroupId"),
        }
    )
    replaces = frozenset({"securityGroupId", "region"})
    problems = (rules.group_rule,)

    def refuse(self, inputs: Values, own: str) -> None:
        """Each once, and not too many."""
        group = inputs["securityGroupId"]
        self.api.find(GROUP, group)
        siblings = [values for _, values in self.others(own) if values["securityGroupId"] == group]
        if any(_rule(values) == _rule(inputs) for values in siblings):
            raise RealmError(f"InvalidPermission.Duplicate: {group} has this rule: {' '.join(map(str, _rule(inputs)))}")
        family = "cidrIpv4" if inputs.get("cidrIpv4") else "cidrIpv6"
        if sum(1 for values in siblings if values.get(family)) >= _RULES_LIMIT:
            raise RealmError(f"RulesPerSecurityGroupLimitExceeded: {group} has {_RULES_LIMIT} rules")

    def changed(self, record: Record) -> None:
        """See `Api.guard`."""
        self.api.guard(record["inputs"]["securityGroupId"])


class IngressRule(_GroupRule):
    """What may come in."""

    args = ("pulumi_aws.vpc.security_group_ingress_rule", "SecurityGroupIngressRuleArgs")
    what = "ingress rule"


class EgressRule(_GroupRule):
    """What may go out."""

    args = ("pulumi_aws.vpc.security_group_egress_rule", "SecurityGroupEgressRuleArgs")
    what = "egress rule"


class LogGroup(Recorded):
    """Where flow logs would go: a rehearsal writes none."""

    args = ("pulumi_aws.cloudwatch.log_group", "LogGroupArgs")
    prefix, what = "log-", "log group"
    rehearsed = frozenset({"name", "retentionInDays"})
    replaces = frozenset({"name", "region"})


class FlowLog(Recorded):
    """A log of connections: kept as a record, with nothing written."""

    args = ("pulumi_aws.ec2.flow_log", "FlowLogArgs")
    prefix, what = "fl-", "flow log"
    rehearsed = frozenset({"vpcId", "trafficType", "logDestinationType", "logDestination", "iamRoleArn"})
    replaces = rehearsed | {"region"}
    problems = (rules.flow_log,)


class Instance(Recorded):
    """A machine."""

    args = ("pulumi_aws.ec2.instance", "InstanceArgs")
    prefix, what = "i-", "instance"
    rehearsed = frozenset(
        {
            *("ami", "instanceType", "primaryNetworkInterface", "userDataBase64", "metadataOptions"),
            *("rootBlockDevice", "disableApiTermination", "monitoring", "iamInstanceProfile"),
        }
    )
    replaces = frozenset({"ami", "primaryNetworkInterface", "region"})
    problems = (rules.instance,)

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Boots it and returns when it runs, long before its first boot is done: as the real one does."""
        self._refuse_profile(inputs)
        identifier = inputs["primaryNetworkInterface"]["networkInterfaceId"]
        interface = self.api.find(INTERFACE, identifier)
        for machine in self.api.realm.machines():
            if machine.details["interface"] == identifier:
                raise RealmError(f"InvalidNetworkInterface.InUse: {identifier} is {machine.label}'s")
        subnet = self.api.find(SUBNET, interface["inputs"]["subnetId"])
        v6 = subnet["inputs"].get("ipv6CidrBlock")
        place = routing.Subnet(
            str(subnet["number"]), IPv4Network(subnet["inputs"]["cidrBlock"]), IPv6Network(v6) if v6 else None
        )
        own = [interface["facts"]["ipv6"]] if interface["facts"].get("ipv6") else []
        addresses = (f"{interface['inputs']['privateIps'][0]}/{place.v4.prefixlen}", *(f"{one}/64" for one in own))
        spec = MachineSpec(
            label=(inputs.get("tags") or {}).get("Name") or f"i-{uuid.uuid4().hex[:8]}",
            nics=(Nic(place.network, addresses, place.gateways[: len(addresses)]),),
            user_data=base64.b64decode(inputs.get("userDataBase64") or ""),
            image=rules.IMAGES[inputs["ami"]],
            firewall=self.api.firewall(interface["inputs"]["securityGroups"]),
            details={"inputs": _public(inputs), "interface": identifier},
        )
        machine = self.api.realm.power.create(spec, progress=_silent)
        # A rule that came while it was made.
        groups = interface["inputs"]["securityGroups"]
        self.api.realm.power.set_firewall(machine.number, self.api.firewall(groups))
        return f"{self.prefix}{machine.number:08d}", self._outputs(machine)

    def read(self, number: int) -> tuple[Values, Values] | None:
        """What the database says."""
        found = [machine for machine in self.api.realm.machines() if machine.number == number]
        return (found[0].details["inputs"], self._outputs(found[0])) if found else None

    def update(self, number: int, old: Values, new: Values) -> Values:
        """Most properties change a record; a size or user data need the machine off for a while."""
        self._refuse_profile(new)
        power = self.api.realm.power
        power.set_details(number, {**power.get(number).details, "inputs": _public(new)})
        if any(old.get(name) != new.get(name) for name in ("instanceType", "userDataBase64")):
            power.reboot(number)
        return self._outputs(power.get(number))

    def delete(self, number: int) -> None:
        """With its disk. Refused while the termination protection is on."""
        found = [machine for machine in self.api.realm.machines() if machine.number == number]
        if found and found[0].details["inputs"].get("disableApiTermination"):
            raise RealmError(f"OperationNotPermitted: {found[0].label} may not be terminated (disableApiTermination)")
        self.api.realm.power.destroy(number)

    def _refuse_profile(self, inputs: Values) -> None:
        name = inputs.get("iamInstanceProfile")
        if name and name not in [record["facts"]["name"] for record in self.api.all(PROFILE).values()]:
            raise RealmError(f"InvalidParameterValue: there is no instance profile {name!r}")

    def _outputs(self, machine: Machine) -> Values:
        interface = self.api.find(INTERFACE, machine.details["interface"])
        running = machine.number in self.api.realm.power.running()
        return {
            "arn": f"arn:aws:ec2:rehearsal:{_ACCOUNT}:instance/{self.prefix}{machine.number:08d}",
            "instanceState": "running" if running else "stopped",
            "primaryNetworkInterfaceId": machine.details["interface"],
            "privateIp": interface["facts"]["privateIp"],
            "publicIp": self.api.public_address(machine.details["interface"]) or "",
            "ipv6Addresses": interface["facts"].get("ipv6Addresses", []),
        }


VPC, SUBNET, INTERNET_GATEWAY, TABLE, ROUTE = Vpc.what, Subnet.what, InternetGateway.what, RouteTable.what, Route.what
ASSOCIATION, ADDRESS, NAT_GATEWAY = RouteTableAssociation.what, Eip.what, NatGateway.what
INTERFACE, GROUP = NetworkInterface.what, SecurityGroup.what
INGRESS, EGRESS = IngressRule.what, EgressRule.what

# Where records are that this host has something for.
_KINDS = {VPC: ROUTERS, SUBNET: VPCS}


def resources(api: Api) -> dict[str, Resource]:
    """The resource types by token."""
    return {
        "aws:ec2/vpc:Vpc": Vpc(api),
        "aws:ec2/subnet:Subnet": Subnet(api),
        "aws:ec2/internetGateway:InternetGateway": InternetGateway(api),
        "aws:ec2/routeTable:RouteTable": RouteTable(api),
        "aws:ec2/route:Route": Route(api),
        "aws:ec2/routeTableAssociation:RouteTableAssociation": RouteTableAssociation(api),
        "aws:ec2/eip:Eip": Eip(api),
        "aws:ec2/natGateway:NatGateway": NatGateway(api),
        "aws:ec2/networkInterface:NetworkInterface": NetworkInterface(api),
        "aws:ec2/securityGroup:SecurityGroup": SecurityGroup(api),
        "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup": DefaultSecurityGroup(api),
        "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": IngressRule(api),
        "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": EgressRule(api),
        "aws:cloudwatch/logGroup:LogGroup": LogGroup(api),
        "aws:ec2/flowLog:FlowLog": FlowLog(api),
        "aws:ec2/instance:Instance": Instance(api),
    }


def functions() -> dict[str, Function]:
    """What a program may look up, by token."""
    return {"aws:ssm/getParameter:getParameter": rules.parameter}


def _destination(inputs: Values) -> str:
    return str(inputs.get("destinationCidrBlock") or inputs.get("destinationIpv6CidrBlock"))


def _inside(net: str, whole: str) -> bool:
    part, block = ip_network(net), ip_network(whole)
    return part.version == block.version and part[0] in block and part[-1] in block


def _rule(inputs: Values) -> tuple[Plain, ...]:
    """What makes a rule the same as another: not its description."""
    return tuple(inputs.get(name) for name in ("ipProtocol", "fromPort", "toPort", "cidrIpv4", "cidrIpv6"))


def _texts(value: Plain) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(_texts, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(_texts, value)) if value else set()
    return {value} if isinstance(value, str) else set()


def _public(inputs: Values) -> Values:
    return {name: value for name, value in inputs.items() if name not in _SECRET}


def _silent(_text: str) -> None:
    """Images are there before Pulumi runs; a plugin has no one to tell."""
