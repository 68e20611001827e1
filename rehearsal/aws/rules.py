"""What AWS refuses, by the inputs alone.

Sources: the Amazon EC2 API reference (errors, constraints of each action), the Amazon VPC user guide (sizes of VPCs and
subnets, quotas), and what the Terraform provider behind pulumi-aws checks itself.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from pulumi.runtime.rpc import UNKNOWN

from rehearsal.cloud_firewall import Rule
from rehearsal.provider.schema import Problem
from rehearsal.provider.values import Plain
from rehearsal.store import RealmError

USER_DATA_LIMIT = 16384

# The public parameters in which makers of images publish their newest ones, and the numbers that these have here.
PARAMETERS = {
    "/aws/service/debian/release/13/latest/amd64": "ami-0deb1300000000000",
    "/aws/service/debian/release/12/latest/amd64": "ami-0deb1200000000000",
    "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id": "ami-0ca24040000000000",
}
IMAGES = dict(zip(PARAMETERS.values(), ("debian13", "debian12", "ubuntu24.04"), strict=True))

_DESCRIPTION = re.compile(r"[A-Za-z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")
_GROUP_NAME = re.compile(r"(?!sg-)[A-Za-z0-9. _\-:/()#,@\[\]+=&;{}!$*]{1,255}")


def vpc(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a VPC."""
    yield from _network(inputs.get("cidrBlock"), "cidrBlock")


def subnet(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a subnet."""
    yield from _network(inputs.get("cidrBlock"), "cidrBlock")
    text = inputs.get("ipv6CidrBlock")
    if text not in {None, UNKNOWN}:
        try:
            right = IPv6Network(text).prefixlen == 64
        except ValueError:
            right = False
        if not right:
            yield "ipv6CidrBlock", "must be an IPv6 network of the size /64"
    if inputs.get("mapPublicIpOnLaunch"):
        yield "mapPublicIpOnLaunch", "is not rehearsed: a public address is an Elastic IP"


def route(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a route: one destination, one target."""
    yield from _exactly_one(inputs, "destinationCidrBlock", "destinationIpv6CidrBlock")
    yield from _exactly_one(inputs, "gatewayId", "natGatewayId")
    if "natGatewayId" in inputs and "destinationIpv6CidrBlock" in inputs:
        yield "natGatewayId", "takes no IPv6: a NAT gateway translates IPv4"


def route_table(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a route table."""
    if inputs.get("routes"):
        yield "routes", "is not rehearsed: inline routes and Route resources undo each other"


def address(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of an Elastic IP."""
    if inputs.get("domain") not in {"vpc", UNKNOWN}:
        yield "domain", 'must be "vpc"'


def nat_gateway(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a NAT gateway."""
    for name in ("allocationId", "subnetId"):
        if inputs.get(name) is None:
            yield name, "is required for a public gateway in one zone, and others are not rehearsed"


def interface(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a network interface."""
    addresses = inputs.get("privateIps")
    if addresses is None:
        yield "privateIps", "is required in a rehearsal: private addresses are fixed"
    elif addresses != UNKNOWN:
        if len(addresses) != 1:
            yield "privateIps", "must be one address: more are not rehearsed"
        for index, text in enumerate(addresses):
            if text != UNKNOWN and not _is(IPv4Address, text):
                yield f"privateIps[{index}]", "must be an IPv4 address"
    if inputs.get("ipv6AddressCount") not in {None, UNKNOWN, 0, 1}:
        yield "ipv6AddressCount", "must be 0 or 1: more are not rehearsed"
    groups = inputs.get("securityGroups")
    if groups is None:
        yield "securityGroups", "must be given: the default group would be taken"
    elif groups != UNKNOWN and not 1 <= len(groups) <= 5:
        yield "securityGroups", "must be 1 to 5 groups"


def security_group(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a security group."""
    name, description = inputs.get("name", "x"), inputs.get("description", "x")
    if name != UNKNOWN and not _GROUP_NAME.fullmatch(name):
        yield "name", "must be 1 to 255 letters, digits, spaces and ._-:/()#,@[]+=&;{}!$*, not beginning with sg-"
    if description != UNKNOWN and (not description or not _DESCRIPTION.fullmatch(description)):
        yield "description", "must be 1 to 255 letters, digits, spaces and ._-:/()#,@[]+=&;{}!$*"
    for direction in ("ingress", "egress"):
        if inputs.get(direction):
            yield direction, "is not rehearsed: inline rules and rules that are resources undo each other"


def default_group(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a VPC's default security group."""
    for direction in ("ingress", "egress"):
        if inputs.get(direction):
            yield direction, "is not rehearsed: nobody is to use this group"


def group_rule(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a security group's rule."""
    sources = ("cidrIpv4", "cidrIpv6", "prefixListId", "referencedSecurityGroupId")
    yield from _exactly_one(inputs, *sources)
    for name in sources[2:]:
        if name in inputs:
            yield name, "is not rehearsed: sources are networks"
    for name, kind in (("cidrIpv4", IPv4Network), ("cidrIpv6", IPv6Network)):
        text = inputs.get(name)
        if text not in {None, UNKNOWN} and not ("/" in text and _is(kind, text)):
            yield name, "must be a network, with its prefix length and without an address in it"
    description = inputs.get("description", "")
    if description != UNKNOWN and not _DESCRIPTION.fullmatch(description):
        yield "description", "must be up to 255 letters, digits, spaces and ._-:/()#,@[]+=&;{}!$*"
    protocol, ports = inputs["ipProtocol"], [inputs[name] for name in ("fromPort", "toPort") if name in inputs]
    if protocol == "-1":
        if ports:
            yield "fromPort", 'must not be given with every protocol ("-1")'
    elif protocol in {"tcp", "udp"}:
        if len(ports) < 2:
            yield "fromPort", "and toPort are required with tcp and udp"
        elif UNKNOWN not in ports and not 0 <= ports[0] <= ports[1] <= 65535:
            yield "fromPort", "and toPort must lie between 0 and 65535, the lower one first"
    elif protocol != UNKNOWN:
        yield "ipProtocol", 'must be tcp, udp or "-1": others are not rehearsed'


def instance(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of an instance."""
    image = inputs.get("ami")
    if image is None or (image != UNKNOWN and image not in IMAGES):
        yield "ami", f"must be one of {', '.join(IMAGES)} in a rehearsal"
    if not inputs.get("instanceType"):
        yield "instanceType", "is required"
    if inputs.get("primaryNetworkInterface") is None:
        yield "primaryNetworkInterface", "is required in a rehearsal: an instance has an interface of its own"
    text = inputs.get("userDataBase64")
    if text not in {None, UNKNOWN}:
        try:
            size = len(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            yield "userDataBase64", "must be base64"
        else:
            if size > USER_DATA_LIMIT:
                yield "userDataBase64", f"is {size} bytes; {USER_DATA_LIMIT} are taken (before base64)"
    for name, allowed in _INSTANCE_VALUES.items():
        section, _, key = name.partition(".")
        value = (inputs.get(section) or {}).get(key) if inputs.get(section) != UNKNOWN else None
        if value not in {None, UNKNOWN, *allowed}:
            yield name, f"must be one of {', '.join(map(str, allowed))}"


_INSTANCE_VALUES: dict[str, tuple[str | int, ...]] = {
    "metadataOptions.httpEndpoint": ("enabled", "disabled"),
    "metadataOptions.httpTokens": ("required", "optional"),
    "metadataOptions.httpPutResponseHopLimit": tuple(range(1, 65)),
    "rootBlockDevice.volumeType": ("gp3", "gp2", "io1", "io2", "standard"),
}


def flow_log(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a flow log."""
    if inputs.get("trafficType") not in {"ACCEPT", "ALL", "REJECT", UNKNOWN}:
        yield "trafficType", "must be one of ACCEPT, ALL, REJECT"
    for name in ("vpcId", "logDestination", "iamRoleArn"):
        if inputs.get(name) is None:
            yield name, "is required: other kinds of flow logs are not rehearsed"


def role(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a role."""
    yield from _policy(inputs["assumeRolePolicy"], "assumeRolePolicy")


def role_policy(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a role's policy."""
    yield from _policy(inputs["policy"], "policy")


def bucket(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a bucket."""
    if inputs.get("region") is None:
        yield "region", "is required in a rehearsal"
    if inputs.get("forceDestroy") is True:
        yield "forceDestroy", "is not rehearsed: backups are deleted by nobody"


def bucket_versioning(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a bucket's versioning."""
    yield from _one_of(inputs["versioningConfiguration"], "status", "versioningConfiguration", "Enabled", "Suspended")


def bucket_object_lock(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a bucket's lock."""
    rule = inputs.get("rule")
    if rule is None:
        yield "rule", "is required in a rehearsal: a lock that nobody asks for has no effect"
    elif rule != UNKNOWN:
        retention = rule["defaultRetention"]
        yield from _one_of(retention, "mode", "rule.defaultRetention", "GOVERNANCE", "COMPLIANCE")
        yield from _whole(retention, "days", "rule.defaultRetention", 36500)
        if "years" in retention:
            yield "rule.defaultRetention.years", "is not rehearsed: days are"


def bucket_encryption(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a bucket's encryption."""
    found = inputs["rules"]
    if found != UNKNOWN:
        if len(found) != 1:
            yield "rules", "must be one rule"
        for rule in found:
            how = rule.get("applyServerSideEncryptionByDefault")
            if how is None:
                yield "rules[0].applyServerSideEncryptionByDefault", "is required"
            else:
                # Others need a key, which isn't rehearsed.
                yield from _one_of(how, "sseAlgorithm", "rules[0].applyServerSideEncryptionByDefault", "AES256")


def bucket_ownership(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a bucket's ownership controls."""
    allowed = ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter")
    yield from _one_of(inputs["rule"], "objectOwnership", "rule", *allowed)


def bucket_policy(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a bucket's policy, of which a rehearsal has one kind."""
    text = inputs["policy"]
    yield from _policy(text, "policy")
    if text != UNKNOWN and "aws:SecureTransport" not in text:
        yield "policy", "is not rehearsed: only what denies requests without TLS is"


def bucket_lifecycle(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a bucket's lifecycle rules."""
    found = inputs.get("rules")
    if not found:
        yield "rules", "must be at least one rule"
    elif found != UNKNOWN:
        for index, rule in enumerate(found):
            where = f"rules[{index}]"
            yield from _one_of(rule, "status", where, "Enabled", "Disabled")
            for section, key in _LIFECYCLE.items():
                if section in rule:
                    yield from _whole(rule[section], key, f"{where}.{section}", 36500)
            for name in rule:
                if name not in {"id", "status", "filter", *_LIFECYCLE} and not name.startswith("__"):
                    yield f"{where}.{name}", "is not rehearsed"


_LIFECYCLE = {
    "expiration": "days",
    "noncurrentVersionExpiration": "noncurrentDays",
    "abortIncompleteMultipartUpload": "daysAfterInitiation",
}


def _one_of(values: Plain, key: str, path: str, *allowed: str) -> Iterator[Problem]:
    if values != UNKNOWN and values.get(key) not in {UNKNOWN, *allowed}:
        yield f"{path}.{key}", f"must be one of {', '.join(allowed)}"


def _whole(values: Plain, key: str, path: str, most: int) -> Iterator[Problem]:
    if values != UNKNOWN and values.get(key) != UNKNOWN and not 1 <= (values.get(key) or 0) <= most:
        yield f"{path}.{key}", f"must be a number of days from 1 to {most}"


def parameter(arguments: Mapping[str, Plain]) -> dict[str, Plain]:
    """A public parameter of Systems Manager. Raises RealmError where there is none of this name."""
    name = arguments["name"]
    if name not in PARAMETERS:
        raise RealmError(f"ParameterNotFound: {name} (rehearsed: {', '.join(PARAMETERS)})")
    return {
        "id": name,
        "name": name,
        "arn": f"arn:aws:ssm:{arguments.get('region')}::parameter{name}",
        "type": "String",
        "value": PARAMETERS[name],
        "insecureValue": PARAMETERS[name],
        "version": 1,
        "region": arguments.get("region"),
        "withDecryption": True,
    }


def to_rule(inputs: Mapping[str, Plain]) -> Rule:
    """A security group's rule, checked before, as the machines' cloud firewall takes it."""
    every = inputs["ipProtocol"] == "-1"
    return Rule(
        action="accept",
        protocol="all" if every else inputs["ipProtocol"],
        ports=() if every else ((inputs["fromPort"], inputs["toPort"]),),
        networks=(inputs.get("cidrIpv4") or inputs["cidrIpv6"],),
    )


def _network(text: Plain, path: str) -> Iterator[Problem]:
    if text is None:
        yield path, "is required"
    elif text != UNKNOWN and not (_is(IPv4Network, text) and 16 <= IPv4Network(text).prefixlen <= 28):
        yield path, "must be an IPv4 network from /16 to /28"


def _exactly_one(inputs: Mapping[str, Plain], *names: str) -> Iterator[Problem]:
    if sum(name in inputs for name in names) != 1:
        yield names[0], f"exactly one of {', '.join(names)} must be given"


def _policy(text: Plain, path: str) -> Iterator[Problem]:
    if text == UNKNOWN:
        return
    try:
        right = json.loads(text)["Version"] == "2012-10-17" and json.loads(text)["Statement"]
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        yield path, "must be a policy document (JSON) with Version 2012-10-17 and a Statement"


def _is(kind: type, text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
