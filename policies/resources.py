"""Linode's and AWS' resources in one shape: firewalls, servers, and what belongs to them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, TypeAlias

from pulumi_policy import PolicyResource
from pulumi_policy.proxy import UnknownValueError

from policies.policy import Resource, Stack, each, given
from policies.user_data import packages, told

Network: TypeAlias = IPv4Network | IPv6Network

LINODE_INSTANCE = "linode:index/instance:Instance"
LINODE_FIREWALL = "linode:index/firewall:Firewall"
LINODE_FIREWALL_DEVICE = "linode:index/firewallDevice:FirewallDevice"
AWS_INSTANCE = "aws:ec2/instance:Instance"
AWS_LAUNCH_TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
AWS_INTERFACE = "aws:ec2/networkInterface:NetworkInterface"
AWS_GROUP_ATTACHMENT = "aws:ec2/networkInterfaceSecurityGroupAttachment:NetworkInterfaceSecurityGroupAttachment"
AWS_SECURITY_GROUP = "aws:ec2/securityGroup:SecurityGroup"
AWS_DEFAULT_SECURITY_GROUP = "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup"
AWS_INGRESS_RULE = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
AWS_RULE = "aws:ec2/securityGroupRule:SecurityGroupRule"
COMMAND = "command:remote:Command"
STACK = "pulumi:pulumi:Stack"

SERVERS = frozenset({LINODE_INSTANCE, AWS_INSTANCE})
HAVE_USER_DATA = SERVERS | {AWS_LAUNCH_TEMPLATE}
TELL_SERVERS = HAVE_USER_DATA | {COMMAND}
SECURITY_GROUPS = frozenset({AWS_SECURITY_GROUP, AWS_DEFAULT_SECURITY_GROUP})
FIREWALLS = SECURITY_GROUPS | {LINODE_FIREWALL, AWS_INGRESS_RULE, AWS_RULE}

MANAGED_DATABASES = frozenset(
    {
        "aws:rds/instance:Instance",
        "aws:rds/cluster:Cluster",
        "linode:index/databaseMysqlV2:DatabaseMysqlV2",
        "linode:index/databasePostgresqlV2:DatabasePostgresqlV2",
    }
)

BUCKETS = frozenset({"aws:s3/bucket:Bucket", "aws:s3/bucketV2:BucketV2"})
# By name, as people name them.
BACKUP_BUCKET_NAME = r"backup"

ALL_PORTS = (0, 65535)

# By name, as people name them: db-1, users_mysql, database. "dbt" or "sandbox" is none.
DATABASE_NAME = r"(^|[^a-z])(db|database|mysql|mariadb|postgres|postgresql|mongo|mongodb|redis)s?($|[^a-z])"
_DATABASE_PACKAGE = re.compile(
    r"(default-)?(mysql|mariadb)-server([.-].*)?|postgresql(-\d+)?|mongodb(-org|-server)?|redis(-server)?"
)


@dataclass(frozen=True)
class Opening:
    """Traffic that a cloud's firewall lets in. `groups` says that other security groups are among the sources."""

    protocol: str
    first: int
    last: int
    sources: tuple[Network, ...]
    groups: bool = False

    @property
    def ports(self) -> str:
        """As people write it: `tcp 22`."""
        if (self.first, self.last) == ALL_PORTS:
            return "everything" if self.protocol == "all" else f"{self.protocol}, all ports"
        return f"{self.protocol} {self.first}" + ("" if self.first == self.last else f"-{self.last}")

    def covers(self, port: int, protocol: str = "tcp") -> bool:
        """Whether this port is open."""
        return self.protocol in (protocol, "all") and self.first <= port <= self.last

    @property
    def to_the_world(self) -> tuple[Network, ...]:
        """The sources that are no office but a part of the internet."""
        return tuple(source for source in self.sources if is_world(source))


def is_world(network: Network) -> bool:
    """Whether a network is far too wide to be anyone's own (halves of the internet are as wide as all of it)."""
    return network.prefixlen < (8 if network.version == 4 else 19)


def is_public(network: Network) -> bool:
    """Whether there are addresses of the internet in it."""
    if is_world(network):
        return True
    # Python's own is_private holds for documentation addresses (RFC 5737, RFC 3849) too, which stand for real ones.
    own = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16")
    own6 = ("fc00::/7", "fe80::/10", "::1/128")
    return not any(_within(network, block) for block in (own if network.version == 4 else own6))


def _within(network: Network, block: str) -> bool:
    wide = ip_network(block)
    return network.version == wide.version and network.subnet_of(wide)  # type: ignore[arg-type] # of one version


def networks(values: Iterable[Any]) -> tuple[Network, ...]:
    """The values that are networks or addresses."""
    found = []
    for value in values:
        try:
            found.append(ip_network(str(value), strict=False))
        except ValueError:
            continue
    return tuple(found)


def openings(resource: Resource) -> Iterator[Opening]:
    """What a firewall resource lets in. One unknown rule is complained of after all others."""
    props = resource.props
    if resource.resource_type == LINODE_FIREWALL:
        if props.get("inboundPolicy") == "ACCEPT":
            yield Opening("all", *ALL_PORTS, networks(["0.0.0.0/0", "::/0"]))
        for group in each(props.get("inbounds"), lambda rule: list(_linode(rule))):
            yield from group
    elif resource.resource_type in SECURITY_GROUPS:
        yield from each(props.get("ingress"), _security_group)
    elif resource.resource_type == AWS_RULE:
        if props.get("type") == "ingress":
            yield _security_group(props)
    elif resource.resource_type == AWS_INGRESS_RULE:
        yield _ingress_rule(props)


def _linode(rule: Mapping[str, Any]) -> Iterator[Opening]:
    if rule.get("action") != "ACCEPT":
        return
    sources = networks([*_all(rule.get("ipv4s")), *_all(rule.get("ipv6s"))])
    protocol = str(rule.get("protocol") or "").lower()
    ports = rule.get("ports")
    for piece in str(ports).split(",") if ports else [f"{ALL_PORTS[0]}-{ALL_PORTS[1]}"]:
        first, _, last = piece.strip().partition("-")
        yield Opening(protocol, int(first), int(last or first), sources)


def _security_group(rule: Mapping[str, Any]) -> Opening:
    sources = networks([*_all(rule.get("cidrBlocks")), *_all(rule.get("ipv6CidrBlocks"))])
    groups = given(rule, "securityGroups") or given(rule, "sourceSecurityGroupId") or bool(rule.get("self"))
    return _aws(rule, rule.get("protocol"), sources, groups=groups)


def _ingress_rule(rule: Mapping[str, Any]) -> Opening:
    sources = networks(value for value in (rule.get("cidrIpv4"), rule.get("cidrIpv6")) if value)
    return _aws(rule, rule.get("ipProtocol"), sources, groups=given(rule, "referencedSecurityGroupId"))


def _aws(rule: Mapping[str, Any], protocol: Any, sources: tuple[Network, ...], *, groups: bool) -> Opening:  # noqa: ANN401 - a value of the engine
    name = {"-1": "all", "6": "tcp", "17": "udp", "1": "icmp"}.get(
        str(protocol).removesuffix(".0"), str(protocol).lower()
    )
    first, last = rule.get("fromPort"), rule.get("toPort")
    if name == "all" or first is None or int(first) < 0:
        return Opening(name, *ALL_PORTS, sources, groups)
    return Opening(name, int(first), int(first if last is None else last), sources, groups)


def _all(values: Sequence[Any] | None) -> list[Any]:
    return list(each(values, lambda value: value))


def linked(resource: PolicyResource, *properties: str) -> list[PolicyResource]:
    """The resources that these properties are made of: known before any id is."""
    found = [other for name in properties for other in resource.property_dependencies.get(name) or []]
    return list({other.urn: other for other in found}.values())


def interfaces_of(server: PolicyResource) -> list[PolicyResource]:
    """The network interfaces of an EC2 instance that are resources of their own."""
    found = linked(server, "primaryNetworkInterface", "networkInterfaces")
    return [other for other in found if other.resource_type == AWS_INTERFACE]


def firewalls_of(server: PolicyResource, stack: Stack) -> list[PolicyResource]:
    """The cloud firewalls that a server has from its first moment, with rules that are resources of their own."""
    names = ("firewallId", "linodeInterfaces", "vpcSecurityGroupIds", "securityGroups")
    holders = [server, *interfaces_of(server)]
    kinds = SECURITY_GROUPS | {LINODE_FIREWALL}
    own = {other.urn: other for holder in holders for other in linked(holder, *names) if other.resource_type in kinds}
    rules = [
        other
        for other in stack
        if other.resource_type in (AWS_INGRESS_RULE, AWS_RULE)
        and any(group.urn in own for group in linked(other, "securityGroupId"))
    ]
    return [*own.values(), *rules]


def has_firewall(server: PolicyResource) -> bool:
    """Whether a server is made behind a firewall, known or not."""
    props = server.props
    if server.resource_type == LINODE_INSTANCE:
        # On Linode's newer interfaces, each has its own.
        return given(props, "firewallId") or any(
            each(props.get("linodeInterfaces"), lambda nic: given(nic, "firewallId"))
        )
    interfaces = interfaces_of(server)
    if interfaces:
        return all(given(interface.props, "securityGroups") for interface in interfaces)
    names = ("vpcSecurityGroupIds", "securityGroups", "primaryNetworkInterface", "networkInterfaces")
    return any(given(props, name) for name in names)


def is_database_server(server: Resource, pattern: str) -> bool:
    """Whether a server holds a database: by its name, or by what its first boot installs."""
    tags = server.props.get("tags")
    named = tags.get("Name") if isinstance(tags, Mapping) else ""
    if any(re.search(pattern, str(name or ""), re.I) for name in (server.name, server.props.get("label"), named)):
        return True
    try:
        data = told(server)
    except UnknownValueError:
        return False
    return data is not None and any(_DATABASE_PACKAGE.fullmatch(name) for name in packages(data))


def base_names(server: PolicyResource) -> set[str]:
    """What a server is called: its own name and its component's, without what kind of resource it is."""
    names = {server.name, re.sub(r"[-_](instance|server|vm|linode|ec2)$", "", server.name)}
    if server.parent is not None and server.parent.resource_type != STACK:
        names.add(server.parent.name)
    return names


def about(server: PolicyResource, stack: Stack, types: Iterable[str], words: str) -> bool:
    """Whether something in the stack is of these types, or called so, and belongs to this server by its name."""
    wanted, pattern = set(types), re.compile(words, re.I)
    bases = base_names(server)
    for other in stack:
        rest = next(
            (other.name[len(base) :] for base in bases if re.match(re.escape(base) + r"[-_]", other.name)), None
        )
        if rest is not None and (other.resource_type in wanted or pattern.search(rest)):
            return True
    return False
