"""The stand-in for the AWS plugin refuses what the SDK or the API refuse, replaces what they do, and routes alike."""

import asyncio
import base64
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pulumi.provider.experimental import provider
from pulumi.runtime.rpc import UNKNOWN

from rehearsal.aws import endpoints, routing, rules, storage
from rehearsal.aws.resources import Api, functions, resources
from rehearsal.cloud_firewall import CloudFirewall, Rule
from rehearsal.network import PUBLIC, Network, Router
from rehearsal.provider.base import StandIn
from rehearsal.provider.values import plain_map
from rehearsal.realm import RESOURCES, ROUTERS, VPCS
from rehearsal.store import RealmError, Store
from tests.unit.stand_ins import properties, refusals

Values = dict[str, Any]

POLICY = '{"Version": "2012-10-17", "Statement": [{}]}'
RULE = {"securityGroupId": "sg-1", "ipProtocol": "tcp", "fromPort": 22, "toPort": 22, "cidrIpv4": "192.0.2.0/24"}
OF_BUCKET = {"bucket": "rehearsed-bucket-00001001", "region": "eu-central-1"}
INPUTS: dict[str, Values] = {
    "ec2/vpc:Vpc": {"cidrBlock": "10.20.0.0/24", "assignGeneratedIpv6CidrBlock": True, "region": "eu-central-1"},
    "ec2/subnet:Subnet": {"vpcId": "vpc-1", "cidrBlock": "10.20.0.0/25", "ipv6CidrBlock": "2001:db8:7:100::/64"},
    "ec2/internetGateway:InternetGateway": {"vpcId": "vpc-1"},
    "ec2/routeTable:RouteTable": {"vpcId": "vpc-1"},
    "ec2/route:Route": {"routeTableId": "rtb-1", "destinationCidrBlock": "0.0.0.0/0", "gatewayId": "igw-1"},
    "ec2/routeTableAssociation:RouteTableAssociation": {"routeTableId": "rtb-1", "subnetId": "subnet-1"},
    "ec2/eip:Eip": {"domain": "vpc", "networkInterface": "eni-1"},
    "ec2/natGateway:NatGateway": {"allocationId": "eipalloc-1", "subnetId": "subnet-1"},
    "ec2/networkInterface:NetworkInterface": {
        "subnetId": "subnet-1",
        "privateIps": ["10.20.0.5"],
        "securityGroups": ["sg-1"],
        "ipv6AddressCount": 1,
    },
    "ec2/securityGroup:SecurityGroup": {"vpcId": "vpc-1", "name": "app-1", "description": "Firewall of app-1"},
    "ec2/defaultSecurityGroup:DefaultSecurityGroup": {"vpcId": "vpc-1"},
    "vpc/securityGroupIngressRule:SecurityGroupIngressRule": RULE,
    "vpc/securityGroupEgressRule:SecurityGroupEgressRule": {
        "securityGroupId": "sg-1",
        "ipProtocol": "-1",
        "cidrIpv6": "::/0",
    },
    "cloudwatch/logGroup:LogGroup": {"name": "/flows", "retentionInDays": 90},
    "iam/role:Role": {"assumeRolePolicy": POLICY},
    "iam/rolePolicy:RolePolicy": {"role": "role-1", "policy": POLICY},
    "iam/instanceProfile:InstanceProfile": {"role": "role-1"},
    "s3/bucket:Bucket": {"objectLockEnabled": True, "forceDestroy": False, "region": "eu-central-1"},
    "s3/bucketVersioning:BucketVersioning": {**OF_BUCKET, "versioningConfiguration": {"status": "Enabled"}},
    "s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration": {
        **OF_BUCKET,
        "rule": {"defaultRetention": {"mode": "GOVERNANCE", "days": 35}},
    },
    "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": {
        **OF_BUCKET,
        "rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}}],
    },
    "s3/bucketPublicAccessBlock:BucketPublicAccessBlock": {**OF_BUCKET, "blockPublicAcls": True},
    "s3/bucketOwnershipControls:BucketOwnershipControls": {
        **OF_BUCKET,
        "rule": {"objectOwnership": "BucketOwnerEnforced"},
    },
    "s3/bucketPolicy:BucketPolicy": {
        **OF_BUCKET,
        "policy": '{"Version": "2012-10-17", "Statement": [{"Condition": {"Bool": {"aws:SecureTransport": "false"}}}]}',
    },
    "s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": {
        **OF_BUCKET,
        "rules": [{"id": "all", "status": "Enabled", "filter": {"prefix": ""}, "expiration": {"days": 35}}],
    },
    "ec2/flowLog:FlowLog": {
        "vpcId": "vpc-1",
        "trafficType": "ALL",
        "logDestinationType": "cloud-watch-logs",
        "logDestination": "arn:1",
        "iamRoleArn": "arn:2",
    },
    "ec2/instance:Instance": {
        "ami": "ami-0deb1300000000000",
        "instanceType": "t3.micro",
        "primaryNetworkInterface": {"networkInterfaceId": "eni-1"},
        "userDataBase64": base64.b64encode(b"#cloud-config\n").decode(),
        "metadataOptions": {"httpEndpoint": "enabled", "httpTokens": "required", "httpPutResponseHopLimit": 1},
        "rootBlockDevice": {"encrypted": True, "volumeType": "gp3", "volumeSize": 30},
        "disableApiTermination": True,
        "tags": {"Name": "app-1"},
    },
}
(VPC, SUBNET, GATEWAY, TABLE, ROUTE, ASSOCIATION, ADDRESS, NAT, INTERFACE, GROUP, DEFAULT) = list(INPUTS)[:11]
(INGRESS, EGRESS, LOG, ROLE, POLICIES, PROFILE, BUCKET, VERSIONS, LOCK, ENCRYPTION) = list(INPUTS)[11:21]
(ACCESS, OWNERSHIP, BUCKET_POLICY, LIFECYCLE, FLOWS, INSTANCE) = list(INPUTS)[21:]


@dataclass
class Power:
    """Machines that nobody boots."""

    firewalls: dict[int, CloudFirewall] = field(default_factory=dict)

    def set_firewall(self, number: int, firewall: CloudFirewall) -> None:
        self.firewalls[number] = firewall


@dataclass
class Account:
    """The API over a database, without networks and machines."""

    plugin: StandIn
    api: Api
    store: Store
    machines: list[Any] = field(default_factory=list)
    power: Power = field(default_factory=Power)
    told: list[int] = field(default_factory=list)
    """How many buckets there were whenever S3 was told."""
    full: set[str] = field(default_factory=set)
    """Buckets that hold something."""

    def make(self, kind: str, **changes: object) -> str:
        """The id of a new resource."""
        inputs = {key: value for key, value in {**INPUTS[kind], **changes}.items() if value is not None}
        request = provider.CreateRequest(urn(kind), properties(inputs), 0, preview=False)
        return str(asyncio.run(self.plugin.create(request)).resource_id)

    def delete(self, kind: str, identifier: str) -> None:
        asyncio.run(self.plugin.delete(provider.DeleteRequest(urn(kind), identifier, {}, 0)))

    def router(self) -> Router:
        [record] = self.store.all(ROUTERS).values()
        return Router.from_json(record["router"])


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    api, store = Api(tmp_path), Store(tmp_path / "cloud")
    found = Account(StandIn({**resources(api), **storage.resources(api)}, functions()), api, store)
    monkeypatch.setattr(endpoints, "sync", lambda _: found.told.append(len(api.all(endpoints.BUCKET))))
    monkeypatch.setattr(endpoints, "holds_something", lambda _realm, bucket: bucket in found.full)

    def set_router(number: int, router: Router) -> None:
        record = store.get(ROUTERS, number)
        store.put(ROUTERS, number, {**(record or {}), "router": router.to_json()})

    # Set where `cached_property` would put the real one.
    api.__dict__["realm"] = SimpleNamespace(
        store=store,
        network=Network(7),
        power=found.power,
        machines=lambda: found.machines,
        set_router=set_router,
        create_vpc=lambda _number: None,
        destroy_vpc=lambda number: store.remove(VPCS, number),
        destroy_router=lambda number: store.remove(ROUTERS, number),
    )
    return found


@pytest.fixture
def plugin(account: Account) -> StandIn:
    return account.plugin


def urn(kind: str) -> str:
    return f"urn:pulumi:dev::project::aws:{kind}::name"


def check(plugin: StandIn, kind: str, inputs: Values) -> dict[str, str]:
    return refusals(plugin, urn(kind), inputs)


def changed(kind: str, **changes: object) -> Values:
    return {key: value for key, value in {**INPUTS[kind], **changes}.items() if value is not None}


@pytest.mark.parametrize("kind", INPUTS)
def test_good_inputs_pass(plugin: StandIn, kind: str) -> None:
    assert check(plugin, kind, INPUTS[kind]) == {}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_that_a_preview_cannot_know_pass(plugin: StandIn, kind: str) -> None:
    for name in INPUTS[kind]:
        assert check(plugin, kind, changed(kind, **{name: UNKNOWN})) == {}, name


BAD: list[tuple[str, Values, str]] = [
    # The SDK's classes.
    (VPC, {"colour": "red"}, "colour"),
    (VPC, {"cidrBlock": 7}, "cidrBlock"),
    (SUBNET, {"vpcId": None}, "vpcId"),
    (INSTANCE, {"metadataOptions": {"httpToken": "required"}}, "metadataOptions.httpToken"),
    (INSTANCE, {"disableApiTermination": "yes"}, "disableApiTermination"),
    (INTERFACE, {"privateIps": "10.20.0.5"}, "privateIps"),
    (INGRESS, {"ipProtocol": None}, "ipProtocol"),
    # What would silently have no effect here.
    (INSTANCE, {"keyName": "mine"}, "keyName"),
    (INSTANCE, {"associatePublicIpAddress": True}, "associatePublicIpAddress"),
    (INSTANCE, {"vpcSecurityGroupIds": ["sg-1"]}, "vpcSecurityGroupIds"),
    (VPC, {"instanceTenancy": "dedicated"}, "instanceTenancy"),
    (SUBNET, {"mapPublicIpOnLaunch": True}, "mapPublicIpOnLaunch"),
    # AWS's API.
    (VPC, {"cidrBlock": "10.20.0.0/29"}, "cidrBlock"),
    (VPC, {"cidrBlock": "10.20.0.1/24"}, "cidrBlock"),
    (VPC, {"cidrBlock": None}, "cidrBlock"),
    (SUBNET, {"cidrBlock": "10.0.0.0/8"}, "cidrBlock"),
    (SUBNET, {"ipv6CidrBlock": "2001:db8:7:100::/56"}, "ipv6CidrBlock"),
    (TABLE, {"routes": [{"cidrBlock": "0.0.0.0/0", "gatewayId": "igw-1"}]}, "routes"),
    (ROUTE, {"destinationIpv6CidrBlock": "::/0"}, "destinationCidrBlock"),
    (ROUTE, {"destinationCidrBlock": None}, "destinationCidrBlock"),
    (ROUTE, {"natGatewayId": "nat-1"}, "gatewayId"),
    (ROUTE, {"gatewayId": None}, "gatewayId"),
    (
        ROUTE,
        {
            "destinationCidrBlock": None,
            "destinationIpv6CidrBlock": "::/0",
            "gatewayId": None,
            "natGatewayId": "nat-1",
        },
        "natGatewayId",
    ),
    (ADDRESS, {"domain": "standard"}, "domain"),
    (NAT, {"allocationId": None}, "allocationId"),
    (INTERFACE, {"privateIps": None}, "privateIps"),
    (INTERFACE, {"privateIps": ["10.20.0.5", "10.20.0.6"]}, "privateIps"),
    (INTERFACE, {"privateIps": ["x"]}, "privateIps[0]"),
    (INTERFACE, {"securityGroups": None}, "securityGroups"),
    (INTERFACE, {"securityGroups": []}, "securityGroups"),
    (INTERFACE, {"ipv6AddressCount": 2}, "ipv6AddressCount"),
    (GROUP, {"name": "sg-mine"}, "name"),
    (GROUP, {"description": ""}, "description"),
    (GROUP, {"description": "Größe"}, "description"),
    (GROUP, {"ingress": [{"protocol": "tcp", "fromPort": 22, "toPort": 22}]}, "ingress"),
    (GROUP, {"egress": [{"protocol": "-1", "fromPort": 0, "toPort": 0}]}, "egress"),
    (DEFAULT, {"ingress": [{"protocol": "-1", "fromPort": 0, "toPort": 0, "self": True}]}, "ingress"),
    (INGRESS, {"cidrIpv6": "::/0"}, "cidrIpv4"),
    (INGRESS, {"cidrIpv4": None}, "cidrIpv4"),
    (INGRESS, {"cidrIpv4": "192.0.2.1/24"}, "cidrIpv4"),
    (INGRESS, {"cidrIpv4": "192.0.2.1"}, "cidrIpv4"),
    (INGRESS, {"cidrIpv4": None, "cidrIpv6": "192.0.2.0/24"}, "cidrIpv6"),
    (INGRESS, {"cidrIpv4": None, "referencedSecurityGroupId": "sg-2"}, "referencedSecurityGroupId"),
    (INGRESS, {"ipProtocol": "TCP"}, "ipProtocol"),
    (INGRESS, {"ipProtocol": "-1"}, "fromPort"),
    (INGRESS, {"toPort": None}, "fromPort"),
    (INGRESS, {"fromPort": 23}, "fromPort"),
    (INGRESS, {"toPort": 65536}, "fromPort"),
    (INGRESS, {"description": "a < b"}, "description"),
    (ROLE, {"assumeRolePolicy": "{}"}, "assumeRolePolicy"),
    (POLICIES, {"policy": "no JSON"}, "policy"),
    (BUCKET, {"bucket": "mine"}, "bucket"),
    (BUCKET, {"acl": "private"}, "acl"),
    (BUCKET, {"forceDestroy": True}, "forceDestroy"),
    (BUCKET, {"region": None}, "region"),
    (VERSIONS, {"versioningConfiguration": {"status": "enabled"}}, "versioningConfiguration.status"),
    (LOCK, {"rule": None}, "rule"),
    (LOCK, {"rule": {"defaultRetention": {"mode": "SOFT", "days": 1}}}, "rule.defaultRetention.mode"),
    (LOCK, {"rule": {"defaultRetention": {"mode": "GOVERNANCE", "days": 0}}}, "rule.defaultRetention.days"),
    (LOCK, {"rule": {"defaultRetention": {"mode": "GOVERNANCE", "years": 1}}}, "rule.defaultRetention.years"),
    (ENCRYPTION, {"rules": []}, "rules"),
    (
        ENCRYPTION,
        {"rules": [{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "aws:kms"}}]},
        "rules[0].applyServerSideEncryptionByDefault.sseAlgorithm",
    ),
    (OWNERSHIP, {"rule": {"objectOwnership": "Mine"}}, "rule.objectOwnership"),
    (BUCKET_POLICY, {"policy": "no JSON"}, "policy"),
    (BUCKET_POLICY, {"policy": POLICY}, "policy"),
    (LIFECYCLE, {"rules": []}, "rules"),
    (LIFECYCLE, {"rules": [{"id": "x", "status": "On"}]}, "rules[0].status"),
    (LIFECYCLE, {"rules": [{"id": "x", "status": "Enabled", "expiration": {"days": 0}}]}, "rules[0].expiration.days"),
    (LIFECYCLE, {"rules": [{"id": "x", "status": "Enabled", "transitions": []}]}, "rules[0].transitions"),
    (PROFILE, {"path": "/x/"}, "path"),
    (FLOWS, {"trafficType": "all"}, "trafficType"),
    (FLOWS, {"iamRoleArn": None}, "iamRoleArn"),
    (INSTANCE, {"ami": None}, "ami"),
    (INSTANCE, {"ami": "ami-0123456789abcdef0"}, "ami"),
    (INSTANCE, {"instanceType": None}, "instanceType"),
    (INSTANCE, {"primaryNetworkInterface": None}, "primaryNetworkInterface"),
    (INSTANCE, {"userDataBase64": "#cloud-config"}, "userDataBase64"),
    (INSTANCE, {"userDataBase64": base64.b64encode(bytes(16385)).decode()}, "userDataBase64"),
    (INSTANCE, {"metadataOptions": {"httpTokens": "mandatory"}}, "metadataOptions.httpTokens"),
    (INSTANCE, {"metadataOptions": {"httpPutResponseHopLimit": 65}}, "metadataOptions.httpPutResponseHopLimit"),
    (INSTANCE, {"rootBlockDevice": {"volumeType": "ssd"}}, "rootBlockDevice.volumeType"),
]


@pytest.mark.parametrize(("kind", "changes", "path"), BAD)
def test_bad_inputs_are_named(plugin: StandIn, kind: str, changes: Values, path: str) -> None:
    assert path in check(plugin, kind, changed(kind, **changes))


def test_a_refusal_does_not_show_the_value(plugin: StandIn) -> None:
    assert "hunter2" not in str(check(plugin, INSTANCE, changed(INSTANCE, userDataBase64="hunter2!")))


@pytest.mark.parametrize(
    ("kind", "name", "value", "replaces"),
    [
        (VPC, "cidrBlock", "10.21.0.0/24", True),
        (VPC, "tags", {"Name": "x"}, False),
        (VPC, "region", "eu-north-1", True),
        (SUBNET, "availabilityZone", "eu-central-1b", True),
        (ROUTE, "gatewayId", "igw-2", False),
        (ROUTE, "routeTableId", UNKNOWN, True),
        (ASSOCIATION, "routeTableId", "rtb-2", False),
        (ADDRESS, "networkInterface", "eni-2", False),
        (NAT, "allocationId", "eipalloc-2", True),
        (INTERFACE, "securityGroups", ["sg-2"], False),
        (INTERFACE, "subnetId", "subnet-2", True),
        (GROUP, "name", "x", True),
        (GROUP, "description", "x", True),
        (INGRESS, "cidrIpv4", "192.0.2.0/25", False),
        (INGRESS, "description", "x", False),
        (INGRESS, "securityGroupId", "sg-2", True),
        (FLOWS, "trafficType", "REJECT", True),
        (BUCKET, "objectLockEnabled", False, True),
        (BUCKET, "tags", {"Name": "x"}, False),
        (LOCK, "rule", {"defaultRetention": {"mode": "GOVERNANCE", "days": 36}}, False),
        (LOCK, "bucket", "rehearsed-bucket-00001002", True),
        (PROFILE, "role", "role-2", False),
        (INSTANCE, "iamInstanceProfile", "profile-2", False),
        (INSTANCE, "ami", "ami-0deb1200000000000", True),
        (INSTANCE, "primaryNetworkInterface", {"networkInterfaceId": "eni-2"}, True),
        (INSTANCE, "instanceType", "t3.small", False),
        (INSTANCE, "userDataBase64", "", False),
        (INSTANCE, "metadataOptions", {"httpTokens": "optional"}, False),
        (INSTANCE, "disableApiTermination", False, False),
    ],
)
def test_what_replaces(plugin: StandIn, kind: str, name: str, value: object, replaces: bool) -> None:
    old = {**INPUTS[kind], "arn": "x", "__given": sorted(INPUTS[kind])}
    new = properties(changed(kind, **{name: value}))
    found = asyncio.run(plugin.diff(provider.DiffRequest(urn(kind), "x-1", properties(old), new, [])))
    assert found.diffs == [name]
    assert found.replaces == ([name] if replaces else [])


def test_images_are_looked_up_by_their_makers_parameters(plugin: StandIn) -> None:
    def ask(name: str) -> Values:
        arguments = properties({"name": name, "region": "eu-central-1"})
        request = provider.InvokeRequest("aws:ssm/getParameter:getParameter", arguments)
        return plain_map(asyncio.run(plugin.invoke(request)).return_value or {})

    for parameter in rules.PARAMETERS:
        assert ask(parameter)["insecureValue"] in rules.IMAGES
    with pytest.raises(RealmError, match="ParameterNotFound"):
        ask("/aws/service/debian/release/14/latest/amd64")


# What the API refuses, seeing what is there.


@dataclass
class Net:
    """A VPC with a public and a private subnet, as the program makes it."""

    vpc: str
    public: str
    private: str
    gateway: str
    table: str
    group: str


@pytest.fixture
def net(account: Account) -> Net:
    vpc = account.make(VPC)
    public = account.make(SUBNET, vpcId=vpc, cidrBlock="10.20.0.128/25")
    private = account.make(SUBNET, vpcId=vpc, ipv6CidrBlock=None)
    gateway = account.make(GATEWAY, vpcId=vpc)
    table = account.make(TABLE, vpcId=vpc)
    return Net(vpc, public, private, gateway, table, account.make(GROUP, vpcId=vpc))


def test_ids_are_the_clouds_own(account: Account, net: Net) -> None:
    assert net.vpc == "vpc-00001001"
    with pytest.raises(RealmError, match=r"InvalidVpcID\.NotFound"):
        account.make(SUBNET, vpcId=net.group)
    with pytest.raises(RealmError, match="is not an id of this cloud"):
        account.delete(VPC, net.group)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"cidrBlock": "10.21.0.0/25"}, "InvalidSubnet.Range"),
        ({"cidrBlock": "10.20.0.0/23"}, "InvalidSubnet.Range"),
        ({"cidrBlock": "10.20.0.64/26"}, "InvalidSubnet.Conflict"),
        ({"cidrBlock": "10.20.0.0/28", "ipv6CidrBlock": "2001:db8:8::/64"}, "InvalidSubnet"),
    ],
)
def test_subnets_lie_in_their_vpc_and_apart(account: Account, net: Net, blocks: Values, said: str) -> None:
    with pytest.raises(RealmError, match=said):
        account.make(SUBNET, vpcId=net.vpc, **{"ipv6CidrBlock": None, **blocks})


@pytest.mark.parametrize("address", ["10.20.0.0", "10.20.0.3", "10.20.0.127", "10.20.0.200"])
def test_interfaces_have_addresses_that_aws_gives(account: Account, net: Net, address: str) -> None:
    with pytest.raises(RealmError, match="InvalidParameterValue"):
        interface(account, net.private, net.group, address)


def test_an_address_is_one_interfaces(account: Account, net: Net) -> None:
    interface(account, net.private, net.group)
    with pytest.raises(RealmError, match="InUse"):
        interface(account, net.private, net.group)


def interface(account: Account, subnet: str, group: str, address: str = "10.20.0.5") -> str:
    return account.make(INTERFACE, subnetId=subnet, securityGroups=[group], privateIps=[address], ipv6AddressCount=None)


def test_public_addresses_need_an_internet_gateway_and_are_one_interfaces(account: Account) -> None:
    vpc = account.make(VPC)
    group = account.make(GROUP, vpcId=vpc)
    subnet = account.make(SUBNET, vpcId=vpc)
    one = interface(account, subnet, group)
    spare = account.make(ADDRESS, networkInterface=None)
    for kind, inputs in (
        (ADDRESS, {"networkInterface": one}),
        (NAT, {"allocationId": spare, "subnetId": subnet}),
    ):
        with pytest.raises(RealmError, match=r"Gateway\.NotAttached"):
            account.make(kind, **inputs)
    gateway = account.make(GATEWAY, vpcId=vpc)
    used = account.make(ADDRESS, networkInterface=one)
    with pytest.raises(RealmError, match="AlreadyAssociated"):
        account.make(ADDRESS, networkInterface=one)
    with pytest.raises(RealmError, match="AlreadyAssociated"):
        account.make(NAT, allocationId=used, subnetId=subnet)
    account.make(NAT, allocationId=spare, subnetId=subnet)
    with pytest.raises(RealmError, match="AlreadyAssociated"):
        account.make(NAT, allocationId=spare, subnetId=subnet)
    with pytest.raises(RealmError, match="AlreadyAssociated"):
        account.make(GATEWAY, vpcId=vpc)
    with pytest.raises(RealmError, match="mapped public addresses"):
        account.delete(GATEWAY, gateway)


def test_routes_are_one_for_each_destination(account: Account, net: Net) -> None:
    account.make(ROUTE, routeTableId=net.table, gatewayId=net.gateway)
    with pytest.raises(RealmError, match="RouteAlreadyExists"):
        account.make(ROUTE, routeTableId=net.table, gatewayId=net.gateway)
    account.make(ASSOCIATION, routeTableId=net.table, subnetId=net.public)
    with pytest.raises(RealmError, match="AlreadyAssociated"):
        account.make(ASSOCIATION, routeTableId=net.table, subnetId=net.public)


def test_a_groups_rules_differ_and_are_sixty_at_most(account: Account, net: Net) -> None:
    account.make(INGRESS, securityGroupId=net.group)
    with pytest.raises(RealmError, match=r"InvalidPermission\.Duplicate"):
        account.make(INGRESS, securityGroupId=net.group, description="Another reason for the same")
    for port in range(1000, 1059):
        account.make(INGRESS, securityGroupId=net.group, fromPort=port, toPort=port)
    with pytest.raises(RealmError, match="RulesPerSecurityGroupLimitExceeded"):
        account.make(INGRESS, securityGroupId=net.group, fromPort=1, toPort=1)
    # The other family is counted apart, and the other direction too.
    account.make(INGRESS, securityGroupId=net.group, cidrIpv4=None, cidrIpv6="::/0")
    account.make(EGRESS, securityGroupId=net.group)
    with pytest.raises(RealmError, match=r"InvalidGroup\.Duplicate"):
        account.make(GROUP, vpcId=net.vpc)


def test_what_is_used_stays(account: Account, net: Net) -> None:
    one = interface(account, net.private, net.group)
    for kind, identifier in ((VPC, net.vpc), (SUBNET, net.private), (GROUP, net.group)):
        with pytest.raises(RealmError, match="DependencyViolation"):
            account.delete(kind, identifier)
    account.delete(INTERFACE, one)
    account.delete(SUBNET, net.private)
    # Once more, as after a run that was killed.
    account.delete(SUBNET, net.private)


def test_a_group_lets_nothing_through_until_a_rule_says_so_and_machines_have_it_at_once(
    account: Account, net: Net
) -> None:
    one = interface(account, net.private, net.group)
    account.machines.append(SimpleNamespace(number=9, label="db-1", details={"interface": one, "inputs": {}}))
    assert account.api.firewall([net.group]) == CloudFirewall((), "drop", (), "drop")
    account.make(INGRESS, securityGroupId=net.group)
    out = account.make(EGRESS, securityGroupId=net.group)
    coming = (Rule("accept", "tcp", ((22, 22),), ("192.0.2.0/24",)),)
    assert account.power.firewalls[9] == CloudFirewall(coming, "drop", (Rule("accept", "all", (), ("::/0",)),), "drop")
    account.delete(EGRESS, out)
    assert account.power.firewalls[9] == CloudFirewall(coming, "drop", (), "drop")


def test_a_protected_instance_is_not_terminated(account: Account) -> None:
    inputs = {"disableApiTermination": True}
    account.machines.append(SimpleNamespace(number=9, label="db-1", details={"interface": "eni-1", "inputs": inputs}))
    with pytest.raises(RealmError, match="OperationNotPermitted"):
        account.delete(INSTANCE, "i-00000009")


def test_what_is_said_of_a_bucket_is_said_once_and_of_one_that_is_there(account: Account) -> None:
    with pytest.raises(RealmError, match="NoSuchBucket"):
        account.make(VERSIONS)
    bucket = account.make(BUCKET)
    with pytest.raises(RealmError, match="NoSuchBucket"):
        account.make(VERSIONS, bucket=bucket, region="eu-north-1")
    account.make(LOCK, bucket=bucket)
    with pytest.raises(RealmError, match="managed already"):
        account.make(LOCK, bucket=bucket)
    plain = account.make(BUCKET, objectLockEnabled=None)
    with pytest.raises(RealmError, match="InvalidBucketState"):
        account.make(LOCK, bucket=plain)
    # S3 is told of each when it is in the database.
    assert account.told == [1, 1, 2]


def test_a_bucket_that_holds_anything_is_not_deleted(account: Account) -> None:
    bucket = account.make(BUCKET)
    account.full.add(bucket)
    with pytest.raises(RealmError, match="BucketNotEmpty"):
        account.delete(BUCKET, bucket)
    account.full.clear()
    account.delete(BUCKET, bucket)
    assert account.told == [1, 0]


def test_an_instance_has_a_profile_that_there_is_which_then_stays(account: Account, net: Net) -> None:
    role = account.make(ROLE)
    with pytest.raises(RealmError, match="NoSuchEntity"):
        account.make(PROFILE, role="role-7")
    profile = account.make(PROFILE, role=account.api.all("role")[role]["facts"]["name"])
    name = account.api.all("instance profile")[profile]["facts"]["name"]
    one = interface(account, net.private, net.group)
    with pytest.raises(RealmError, match="there is no instance profile 'profile-7'"):
        account.make(INSTANCE, iamInstanceProfile="profile-7", primaryNetworkInterface={"networkInterfaceId": one})
    details = {"interface": one, "inputs": {"iamInstanceProfile": name}}
    account.machines.append(SimpleNamespace(number=9, label="db-1", details=details))
    with pytest.raises(RealmError, match="is db-1's"):
        account.delete(PROFILE, profile)
    account.machines.clear()
    account.delete(PROFILE, profile)


def test_the_router_follows_the_api(account: Account, net: Net) -> None:
    one = account.make(INTERFACE, subnetId=net.public, securityGroups=[net.group], privateIps=["10.20.0.139"])
    account.make(ADDRESS, networkInterface=one)
    # An address alone leads nowhere.
    assert account.router().nics[0].addresses == ()
    account.make(ROUTE, routeTableId=net.table, gatewayId=net.gateway)
    account.make(ASSOCIATION, routeTableId=net.table, subnetId=net.public)
    assert account.router().nics[0].addresses == ("198.18.7.10/32",)
    # There is no route for IPv6 yet.
    assert account.router().neighbours == ()
    away = account.make(
        ROUTE,
        routeTableId=net.table,
        gatewayId=net.gateway,
        destinationCidrBlock=None,
        destinationIpv6CidrBlock="::/0",
    )
    assert len(account.router().neighbours) == 1
    account.delete(ROUTE, away)
    assert account.router().neighbours == ()


def test_records_tell_what_was_asked_for(account: Account, net: Net) -> None:
    request = provider.ReadRequest(urn(SUBNET), net.public, {}, {})
    response = asyncio.run(account.plugin.read(request))
    told = plain_map(response.properties or {})
    assert told["cidrBlock"] == "10.20.0.128/25"
    assert {record["what"] for kind in (RESOURCES, VPCS, ROUTERS) for record in account.store.all(kind).values()} == {
        *("VPC", "subnet", "internet gateway", "route table", "security group"),
    }


# Routing, without an API.

PUBLIC_NET = routing.Subnet("1", IPv4Network("10.20.0.128/25"), IPv6Network("2001:db8:7:100::/64"), frozenset({4, 6}))
PRIVATE_NET = routing.Subnet("2", IPv4Network("10.20.0.0/25"), nat="198.18.7.10")
APP = routing.Attached(PUBLIC_NET, "10.20.0.139", "2001:db8:7:100::8b", "198.18.7.11")
DB = routing.Attached(PRIVATE_NET, "10.20.0.5")


def test_only_who_has_an_address_and_a_route_is_known_outside() -> None:
    router = routing.router(IPv4Network("10.20.0.0/24"), [PUBLIC_NET, PRIVATE_NET], [APP, DB])
    assert router.nics[0].network == PUBLIC
    assert router.nics[0].addresses == ("198.18.7.10/32", "198.18.7.11/32")
    assert router.neighbours == ("2001:db8:7:100::8b",)
    assert [nic.addresses[0] for nic in router.nics[1:]] == ["10.20.0.129/25", "10.20.0.1/25"]
    assert "10.20.0.5" not in router.nft
    # What the network doesn't have stays inside of it.
    assert f'oifname "{PUBLIC}" ip daddr 10.20.0.0/24 drop' in router.nft
    assert Router.from_json(router.to_json()) == router


def test_a_machine_sends_everything_to_its_subnets_first_address() -> None:
    assert PUBLIC_NET.gateways == ("10.20.0.129", "2001:db8:7:100::1")
    assert PRIVATE_NET.gateways == ("10.20.0.1",)
