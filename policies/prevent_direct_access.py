"""Prevent direct access when it isn't required."""

from collections.abc import Mapping
from typing import Any

from pulumi_policy import PolicyResource, ResourceValidationArgs, Severity
from pulumi_policy.proxy import UnknownValueError

from policies.host_firewall import HostFirewall, differences, host_firewalls, other_firewall
from policies.least_privilege import statements
from policies.policy import Config, Guideline, Option, Properties, Resource, Stack, Violations, each, given, mended
from policies.resources import (
    AWS_DEFAULT_SECURITY_GROUP,
    AWS_GROUP_ATTACHMENT,
    AWS_INSTANCE,
    AWS_LAUNCH_TEMPLATE,
    COMMAND,
    DATABASE_NAME,
    FIREWALLS,
    LINODE_FIREWALL,
    LINODE_FIREWALL_DEVICE,
    LINODE_INSTANCE,
    SERVERS,
    STACK,
    TELL_SERVERS,
    firewalls_of,
    has_firewall,
    interfaces_of,
    is_database_server,
    is_public,
    is_world,
    linked,
    networks,
    openings,
)
from policies.user_data import told

GUIDELINE = Guideline("Prevent direct access when it isn't required")

DATABASE_PATTERN = Option(DATABASE_NAME, "Servers with such a name are database servers (regular expression)")

_BUCKETS = (
    "aws:s3/bucket:Bucket",
    "aws:s3/bucketV2:BucketV2",
    "aws:s3/bucketAcl:BucketAcl",
    "aws:s3/bucketAclV2:BucketAclV2",
    "linode:index/objectStorageBucket:ObjectStorageBucket",
)


def _open_to_the_world(resource: Resource, ports: list[int]) -> Violations:
    for opening in openings(resource):
        hit = [port for port in ports if opening.covers(port)]
        # Everything for everyone is complained of by a rule of its own, and here too: each of these ports is open.
        for source in opening.to_the_world:
            if hit:
                yield f"opens {opening.ports} to {source}"


@GUIDELINE.rule(
    "database-port-open-to-world",
    "No database answers the internet",
    section="3.9",
    severity=Severity.CRITICAL,
    types=FIREWALLS,
    steps="Allow the database's port from the application servers' private addresses (or security group) only.",
    options={
        "ports": Option([1433, 1521, 3306, 5432, 5984, 6379, 7000, 9042, 9200, 11211, 27017], "Ports of databases"),
    },
)
def _database_port(resource: Resource, config: Config) -> Violations:
    yield from _open_to_the_world(resource, config["ports"])


@GUIDELINE.rule(
    "ssh-open-to-world",
    "SSH is for known addresses",
    section="3.9",
    severity=Severity.HIGH,
    types=FIREWALLS,
    steps="Allow port 22 from your office's or VPN's addresses, and to private servers from the bastion only.",
    options={"ports": Option([22], "Ports on which sshd listens")},
)
def _ssh_open(resource: Resource, config: Config) -> Violations:
    yield from _open_to_the_world(resource, config["ports"])


@GUIDELINE.rule(
    "management-port-open-to-world",
    "No remote control but SSH, and none for everyone: desktops, containers and clusters",
    section="3.9",
    severity=Severity.CRITICAL,
    types=FIREWALLS,
    steps="Close the port in the firewall and reach it through SSH (ssh -L), or allow known addresses only.",
    options={"ports": Option([2375, 2376, 3389, 5900, 5985, 5986, 6443, 8006, 10250], "Ports of management services")},
)
def _management_port(resource: Resource, config: Config) -> Violations:
    yield from _open_to_the_world(resource, config["ports"])


@GUIDELINE.rule(
    "inbound-default-accept",
    "A firewall drops what no rule allows",
    section="3.9",
    severity=Severity.CRITICAL,
    types=[LINODE_FIREWALL],
    steps='Set inboundPolicy to "DROP" and allow what is needed in inbounds.',
)
def _default_accept(resource: Resource, _config: Config) -> Violations:
    if resource.props.get("inboundPolicy") != "DROP":
        yield "lets in everything that no rule refuses"


@GUIDELINE.rule(
    "firewall-disabled",
    "A firewall is switched on",
    section="3.9",
    severity=Severity.CRITICAL,
    types=[LINODE_FIREWALL],
    steps="Remove disabled, or set it to false.",
)
def _disabled(resource: Resource, _config: Config) -> Violations:
    if resource.props.get("disabled"):
        yield "is switched off"


@GUIDELINE.rule(
    "ipv6-wider-than-ipv4",
    "What is closed for IPv4 isn't open for IPv6",
    section="3.9",
    severity=Severity.HIGH,
    types=FIREWALLS - {"aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"},
    steps="Give the IPv6 sources of the rule, or leave them out: without them IPv6 stays closed.",
)
def _wider_v6(resource: Resource, _config: Config) -> Violations:
    found = list(openings(resource))
    for opening in found:
        if not any(source.version == 6 for source in opening.to_the_world):
            continue
        v4 = [other for other in found if other.protocol == opening.protocol and other.covers(opening.first)]
        v4 = v4 if opening.protocol == "tcp" else [other for other in found if other.ports == opening.ports]
        if not any(source.version == 4 and is_world(source) for other in v4 for source in other.sources):
            yield f"opens {opening.ports} to every IPv6 address, but not to every IPv4 address"


@GUIDELINE.stack_rule(
    "server-without-firewall",
    "Every server is behind a firewall of the cloud",
    section="3.9",
    severity=Severity.CRITICAL,
    types=SERVERS,
    steps="Make the firewall first, and give it to the server when that is made: firewallId, or vpcSecurityGroupIds.",
)
def _without_firewall(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    if not has_firewall(resource) and not _attached_later(resource, stack):
        yield "has no firewall of the cloud"


@GUIDELINE.stack_rule(
    "firewall-after-boot",
    "A server is behind its firewall from its first moment",
    section="3.9",
    severity=Severity.HIGH,
    types=SERVERS,
    steps="Give the firewall's id to the instance (firewallId) in place of the instance's to the firewall.",
)
def _late_firewall(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    later = _attached_later(resource, stack)
    if later and not has_firewall(resource):
        yield f"is open until {later.name} is attached, after its boot"


def _attached_later(server: PolicyResource, stack: Stack) -> PolicyResource | None:
    attach = {
        LINODE_FIREWALL: "linodes",
        LINODE_FIREWALL_DEVICE: "entityId",
        AWS_GROUP_ATTACHMENT: "networkInterfaceId",
    }
    targets = {server.urn, *(interface.urn for interface in interfaces_of(server))}
    for other in stack:
        name = attach.get(other.resource_type)
        if name and any(target.urn in targets for target in linked(other, name)):
            return other
    return None


@GUIDELINE.rule(
    "host-firewall-missing",
    "A server that hardens itself at its first boot also closes its own firewall",
    section="3.9",
    severity=Severity.MEDIUM,
    types=SERVERS,
    steps="Let the user data write /etc/iptables/rules.v4 and rules.v6 with INPUT DROP (or enable ufw or nftables).",
)
def _no_host_firewall(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data and data.first_boot and not host_firewalls(data) and not other_firewall(data):
        yield "sets up no firewall of its own in its user data"


@GUIDELINE.rule(
    "host-firewall-accepts-by-default",
    "A server's own firewall drops what no rule accepts",
    section="3.9",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="Set the policy of INPUT to DROP in every family (:INPUT DROP [0:0]).",
)
def _host_accepts(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    for family, firewall in (host_firewalls(data) if data else {}).items():
        if firewall.policy != "DROP":
            yield f"its IPv{family} firewall accepts what no rule refuses"


@GUIDELINE.rule(
    "host-firewall-leaves-ipv6-open",
    "A server's own firewall closes IPv6 as it closes IPv4",
    section="3.9",
    severity=Severity.HIGH,
    types=TELL_SERVERS,
    steps="Write /etc/iptables/rules.v6 beside rules.v4, with the same rules and neighbour discovery.",
)
def _host_without_v6(resource: Resource, _config: Config) -> Violations:
    data = told(resource)
    if data and 4 in (firewalls := host_firewalls(data)) and 6 not in firewalls and not other_firewall(data):
        yield "has rules for IPv4 and none for IPv6"


@GUIDELINE.stack_rule(
    "cloud-and-host-firewall-differ",
    "The cloud's firewall and the server's own allow the same, so that each holds alone",
    section="3.9",
    severity=Severity.MEDIUM,
    types=SERVERS,
    steps="Make both from one list of rules.",
)
def _firewalls_differ(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    firewalls = firewalls_of(resource, stack)
    hosts = _firewalls_told(resource, stack) if firewalls else {}
    cloud = [opening for firewall in firewalls for opening in openings(firewall)]
    for family, host in hosts.items():
        if host.policy == "DROP":
            for difference in differences(cloud, host):
                yield f"IPv{family}: {difference}"


def _firewalls_told(server: PolicyResource, stack: Stack) -> dict[int, HostFirewall]:
    """A server's own firewalls: of a command of its component, if there is one that is known, else of its user data.

    User data stays as the server was made with it, while the cloud's firewall and such a command follow the program.
    """
    for other in stack:
        if other.resource_type == COMMAND and _of_one_component(server, other):
            try:
                data = told(other)
            except UnknownValueError:
                continue
            if data and (found := host_firewalls(data)):
                return found
    data = told(server)
    return host_firewalls(data) if data else {}


def _of_one_component(one: PolicyResource, other: PolicyResource) -> bool:
    parents = [resource.parent for resource in (one, other) if resource.parent is not None]
    return len(parents) == 2 and parents[0].urn == parents[1].urn and parents[0].resource_type != STACK


@GUIDELINE.stack_rule(
    "database-server-reachable",
    "The public can't reach a database server: every source that its firewalls admit is private",
    section="3.9",
    severity=Severity.CRITICAL,
    types=SERVERS,
    steps="Allow the private addresses of the application servers only, and reach SSH through one of them.",
    options={"databaseServers": DATABASE_PATTERN},
)
def _reachable_database(resource: PolicyResource, config: Config, stack: Stack) -> Violations:
    if not is_database_server(resource, config["databaseServers"]):
        return
    for firewall in firewalls_of(resource, stack):
        for opening in openings(firewall):
            for source in filter(is_public, opening.sources):
                yield f"{firewall.name} opens {opening.ports} to {source}"


@GUIDELINE.stack_rule(
    "database-server-with-public-address",
    "A database server has no public address where the cloud can do without (AWS)",
    section="3.9",
    severity=Severity.HIGH,
    types=[AWS_INSTANCE],
    steps="Put it into a private subnet, with associatePublicIpAddress false and without an Elastic IP.",
    options={"databaseServers": DATABASE_PATTERN},
)
def _public_database(resource: PolicyResource, config: Config, stack: Stack) -> Violations:
    if not is_database_server(resource, config["databaseServers"]):
        return
    holders = [resource, *interfaces_of(resource)]
    own = resource.props.get("associatePublicIpAddress")
    subnets = [subnet for holder in holders for subnet in linked(holder, "subnetId")]
    if own:
        yield "asks for a public address"
    elif own is None and any(subnet.props.get("mapPublicIpOnLaunch") for subnet in subnets):
        yield "gets a public address from its subnet"
    urns = {holder.urn for holder in holders}
    for other in stack:
        if other.resource_type in ("aws:ec2/eip:Eip", "aws:ec2/eipAssociation:EipAssociation"):
            targets = linked(other, "instance", "instanceId", "networkInterface", "networkInterfaceId")
            if any(target.urn in urns for target in targets):
                yield f"gets a public address from {other.name}"


@GUIDELINE.rule(
    "managed-database-public",
    "A managed database is for the private network",
    section="3.9",
    severity=Severity.CRITICAL,
    types=[
        "aws:rds/instance:Instance",
        "aws:rds/clusterInstance:ClusterInstance",
        "linode:index/databaseMysqlV2:DatabaseMysqlV2",
        "linode:index/databasePostgresqlV2:DatabasePostgresqlV2",
        "linode:index/databaseAccessControls:DatabaseAccessControls",
    ],
    steps="Set publiclyAccessible to false (AWS), or list the application servers' addresses in allowLists (Linode).",
)
def _managed_public(resource: Resource, _config: Config) -> Violations:
    if resource.resource_type.startswith("aws:") and resource.props.get("publiclyAccessible"):
        yield "has a public address"
    for source in each(resource.props.get("allowLists"), lambda value: value):
        if any(map(is_world, networks([source]))):
            yield f"admits {source}"


@GUIDELINE.rule(
    "default-security-group-with-rules",
    "A VPC's default security group allows nothing: whatever forgets its own gets that one",
    section="3.9",
    severity=Severity.MEDIUM,
    types=[AWS_DEFAULT_SECURITY_GROUP],
    steps="Manage aws.ec2.DefaultSecurityGroup without ingress and egress.",
)
def _default_group(resource: Resource, _config: Config) -> Violations:
    for direction in ("ingress", "egress"):
        if given(resource.props, direction) and len(resource.props[direction]):
            yield f"has rules ({direction})"


@GUIDELINE.stack_rule(
    "default-security-group-left-open",
    "The default security group of a VPC of ours is emptied",
    section="3.9",
    severity=Severity.MEDIUM,
    types=["aws:ec2/vpc:Vpc"],
    steps="Add aws.ec2.DefaultSecurityGroup(vpc_id=...) without ingress and egress.",
)
def _default_group_left(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    groups = [other for other in stack if other.resource_type == AWS_DEFAULT_SECURITY_GROUP]
    if not any(vpc.urn == resource.urn for group in groups for vpc in linked(group, "vpcId")):
        yield "keeps its default security group as AWS makes it"


def _require_tokens(args: ResourceValidationArgs) -> Mapping[str, Any] | None:
    current = args.props.get("metadataOptions") or {}
    # A remedy gets an unknown value as some text.
    if not isinstance(current, Mapping) or current.get("httpTokens") == "required":
        return None
    return mended(args, metadataOptions={"httpEndpoint": "enabled", **current, "httpTokens": "required"})


def _one_hop(args: ResourceValidationArgs) -> Mapping[str, Any] | None:
    current = args.props.get("metadataOptions") or {}
    if not isinstance(current, Mapping) or current.get("httpPutResponseHopLimit") in (None, 1):
        return None
    return mended(args, metadataOptions={**current, "httpPutResponseHopLimit": 1})


def _metadata_service(resource: Resource) -> Properties | None:
    options: Properties = resource.props.get("metadataOptions") or {}
    return None if options.get("httpEndpoint") == "disabled" else options


@GUIDELINE.rule(
    "imds-v1",
    "The metadata service, which hands out credentials, answers nobody who just asks (IMDSv2)",
    section="3.9",
    severity=Severity.HIGH,
    types=[AWS_INSTANCE, AWS_LAUNCH_TEMPLATE],
    steps='Set metadataOptions.httpTokens to "required".',
    remedy=_require_tokens,
)
def _imds_v1(resource: Resource, _config: Config) -> Violations:
    options = _metadata_service(resource)
    if options is not None and options.get("httpTokens") != "required":
        yield "answers requests without a token (IMDSv1)"


@GUIDELINE.rule(
    "imds-hop-limit",
    "The metadata service's answers don't leave the server",
    section="3.9",
    severity=Severity.MEDIUM,
    types=[AWS_INSTANCE, AWS_LAUNCH_TEMPLATE],
    steps="Set metadataOptions.httpPutResponseHopLimit to 1.",
    remedy=_one_hop,
    options={"maxHops": Option(1, "Hops that an answer may go; 2 lets containers ask")},
)
def _imds_hops(resource: Resource, config: Config) -> Violations:
    options = _metadata_service(resource)
    if options is not None and int(options.get("httpPutResponseHopLimit") or 1) > config["maxHops"]:
        yield "lets the metadata service's answers go further than allowed"


@GUIDELINE.rule(
    "bucket-public-acl",
    "No bucket is readable by everyone",
    section="4.8",
    severity=Severity.CRITICAL,
    types=_BUCKETS,
    steps='Set acl to "private" and hand out what is public through the application.',
)
def _public_acl(resource: Resource, _config: Config) -> Violations:
    acl = resource.props.get("acl")
    if acl in ("public-read", "public-read-write", "authenticated-read"):
        yield f"has the acl {acl}"


@GUIDELINE.rule(
    "bucket-public-policy",
    "No bucket's policy allows everyone",
    section="4.8",
    severity=Severity.CRITICAL,
    types=["aws:s3/bucketPolicy:BucketPolicy", "aws:s3/bucket:Bucket", "aws:s3/bucketV2:BucketV2"],
    steps="Name the accounts or roles in Principal, or add a condition on where requests come from.",
)
def _public_policy(resource: Resource, _config: Config) -> Violations:
    for statement in statements(resource.props.get("policy")):
        principal = statement.get("Principal")
        everyone = principal == "*" or (isinstance(principal, Mapping) and "*" in principal.values())
        if statement.get("Effect") == "Allow" and everyone and not statement.get("Condition"):
            yield "allows everyone (Principal *)"


@GUIDELINE.stack_rule(
    "bucket-public-access-not-blocked",
    "A bucket refuses ever to become public",
    section="4.8",
    severity=Severity.MEDIUM,
    types=["aws:s3/bucket:Bucket", "aws:s3/bucketV2:BucketV2"],
    steps="Add aws.s3.BucketPublicAccessBlock with all four settings true.",
)
def _not_blocked(resource: PolicyResource, _config: Config, stack: Stack) -> Violations:
    names = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
    for other in stack:
        if other.resource_type != "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock":
            continue
        if any(bucket.urn == resource.urn for bucket in linked(other, "bucket")):
            for name in names:
                if not other.props.get(name):
                    yield f"{other.name} leaves {name} off"
            return
    yield "has no public access block"


@GUIDELINE.rule(
    "snapshot-shared",
    "No snapshot or image of a disk is handed to everyone",
    section="4.8",
    severity=Severity.CRITICAL,
    types=[
        "aws:ec2/amiLaunchPermission:AmiLaunchPermission",
        "aws:ec2/snapshotCreateVolumePermission:SnapshotCreateVolumePermission",
    ],
    steps="Share with the account that needs it (accountId), and never with the group all.",
)
def _shared_snapshot(resource: Resource, _config: Config) -> Violations:
    if "all" in (resource.props.get("group"), resource.props.get("accountId")):
        yield "shares a disk with everyone"


@GUIDELINE.rule(
    "shared-private-network",
    "Servers talk over a network of their own, not over one that other customers are in too",
    section="3.2",
    severity=Severity.MEDIUM,
    types=[LINODE_INSTANCE],
    steps="Use a VPC interface with an address of its own in place of privateIp (192.168.128.0/17).",
)
def _shared_network(resource: Resource, _config: Config) -> Violations:
    if resource.props.get("privateIp"):
        yield "is in Linode's old private network, which all customers of the data centre share"
