"""What Linode refuses, by the inputs alone.

Sources: the Linode API reference (labels, firewall rules, VPC subnets, types), Akamai's guides "Manage firewall rules"
(limits) and "Metadata service" (user data).
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, ip_interface, ip_network

from pulumi.runtime.rpc import UNKNOWN

from rehearsal.cloud_firewall import Rule
from rehearsal.provider.schema import Problem
from rehearsal.provider.values import Plain

IMAGES = {"linode/debian13": "debian13", "linode/debian12": "debian12", "linode/ubuntu24.04": "ubuntu24.04"}

_DISKS = {
    **{"g6-nanode-1": 25600, "g6-standard-1": 51200, "g6-standard-2": 81920, "g6-standard-4": 163840},
    **{"g6-dedicated-2": 81920, "g6-dedicated-4": 163840},
}

USER_DATA_LIMIT = 16384
RULES_LIMIT, ADDRESSES_LIMIT, PORT_PIECES_LIMIT = 25, 255, 15

_ALNUM_ENDS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VPC_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_PROTOCOLS = {"TCP", "UDP", "ICMP", "IPENCAP", "ALL"}
_VPC_RANGES = [IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/17")]
"""Private networks that a subnet may have: 192.168.128.0/17 is the data centre's shared one."""

# Real properties whose effect isn't rehearsed: better refused than silently without effect.
_NOT_REHEARSED = (
    "backupId",
    "bootConfigLabel",
    "configs",
    "disks",
    "ipv4s",
    "linodeInterfaces",
    "placementGroup",
    "rootPass",
    "sharedIpv4s",
    "stackscriptData",
    "stackscriptId",
)


def vpc(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a VPC."""
    yield from _vpc_label(inputs)
    yield from _no_region(inputs)
    for name in ("ipv4s", "ipv6s"):
        if inputs.get(name):
            yield name, "is not rehearsed"


def subnet(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a VPC's subnet."""
    yield from _vpc_label(inputs)
    if inputs.get("ipv6s"):
        yield "ipv6s", "is not rehearsed"
    text = inputs.get("ipv4")
    if text is None:
        yield "ipv4", "is required"
    elif text != UNKNOWN:
        try:
            net = IPv4Network(text)
        except ValueError:
            yield "ipv4", "must be an IPv4 network in CIDR form, e.g. 10.0.0.0/24"
            return
        if net.prefixlen > 29 or not any(net.subnet_of(allowed) for allowed in _VPC_RANGES):
            yield "ipv4", "must lie in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/17 and be /29 or larger"


def firewall(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of a firewall and its rules."""
    yield from _label(inputs.get("label"), "label", 3, 32)
    for name in ("inboundPolicy", "outboundPolicy"):
        yield from _one_of(inputs[name], name, {"ACCEPT", "DROP"})
    for name in ("linodes", "interfaces", "nodebalancers"):
        if inputs.get(name):
            yield name, "is not rehearsed: give the firewall to the instance (firewallId)"
    total = 0
    for name in ("inbounds", "outbounds"):
        rules = inputs.get(name) or []
        if rules == UNKNOWN:
            continue
        total += len(rules)
        for index, rule in enumerate(rules):
            if rule != UNKNOWN:
                yield from _rule(rule, f"{name}[{index}]")
    if total > RULES_LIMIT:
        yield (
            "inbounds",
            f"a firewall has at most {RULES_LIMIT} rules, in and out together: these are {total}",
        )


def instance(inputs: dict[str, Plain]) -> Iterator[Problem]:
    """Problems of an instance."""
    yield from _no_region(inputs)
    if "label" in inputs:
        yield from _label(inputs["label"], "label", 3, 64)
    for name in _NOT_REHEARSED:
        if inputs.get(name):
            yield name, "is not rehearsed"
    if inputs.get("privateIp"):
        yield "privateIp", "is not rehearsed: this network is shared by every customer of the data centre"
    generation = inputs.get("interfaceGeneration")
    if generation is None:
        yield "interfaceGeneration", "must be given: accounts differ in their default"
    elif generation not in {UNKNOWN, "legacy_config"}:
        yield "interfaceGeneration", 'only "legacy_config" is rehearsed'
    if not inputs.get("type"):
        yield "type", "is required"
    yield from _image(inputs)
    yield from _keys(inputs.get("authorizedKeys"))
    yield from _metadata(inputs.get("metadatas"))
    yield from _interfaces(inputs.get("interfaces"))


def disk(size: str) -> int:
    """MiB of the disk that a size comes with; of sizes that aren't listed, more than of any that is."""
    return _DISKS.get(size, 327680)


def to_rules(rules: Iterable[dict[str, Plain]]) -> tuple[Rule, ...]:
    """A firewall's rules, checked before, as the machines' cloud firewall takes them."""
    return tuple(
        Rule(
            action="accept" if rule["action"] == "ACCEPT" else "drop",
            protocol=rule["protocol"].lower(),
            ports=tuple(_ports(rule["ports"])) if rule.get("ports") else (),
            networks=tuple(str(ip_interface(net).network) for net in _addresses(rule)),
        )
        for rule in rules
    )


def _addresses(rule: dict[str, Plain]) -> list[str]:
    return [*(rule.get("ipv4s") or ()), *(rule.get("ipv6s") or ())]


def _rule(rule: dict[str, Plain], path: str) -> Iterator[Problem]:
    yield from _label(rule["label"], f"{path}.label", 3, 32)
    yield from _one_of(rule["action"], f"{path}.action", {"ACCEPT", "DROP"})
    protocol, ports = rule["protocol"], rule.get("ports")
    numbered = protocol.isdigit() and int(protocol) <= 255
    if protocol != UNKNOWN and not numbered:
        yield from _one_of(protocol, f"{path}.protocol", _PROTOCOLS)
    if ports is not None and ports != UNKNOWN:
        if protocol not in {"TCP", "UDP", UNKNOWN}:
            yield f"{path}.ports", f"is not allowed with {protocol}"
        yield from _port_problems(ports, f"{path}.ports")
    count = 0
    for name, version in (("ipv4s", 4), ("ipv6s", 6)):
        addresses = rule.get(name)
        if addresses is None or addresses == UNKNOWN:
            count += addresses is not None
            continue
        if not addresses:
            yield f"{path}.{name}", "must not be an empty list: leave it out"
        count += len(addresses)
        for index, address in enumerate(addresses):
            if address != UNKNOWN and not _is_network(address, version):
                yield f"{path}.{name}[{index}]", f"must be an IPv{version} address with its prefix length"
    if not count:
        yield path, "needs addresses in ipv4s or ipv6s"
    elif count > ADDRESSES_LIMIT:
        yield path, f"has {count} addresses; at most {ADDRESSES_LIMIT} are allowed"


def _ports(text: str) -> Iterator[tuple[int, int]]:
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        yield int(first), int(last) if dash else int(first)


def _port_problems(text: str, path: str) -> Iterator[Problem]:
    if not re.fullmatch(r"\d+(-\d+)?(, ?\d+(-\d+)?)*", text):
        yield path, "must be ports and ranges with commas between, e.g. 22,8000-8010"
        return
    pairs = list(_ports(text))
    if any(not 1 <= first <= last <= 65535 for first, last in pairs):
        yield path, "must lie between 1 and 65535, ranges from the lower to the higher port"
    if sum(1 if first == last else 2 for first, last in pairs) > PORT_PIECES_LIMIT:
        yield path, f"has more than {PORT_PIECES_LIMIT} pieces (a range counts two)"


def _is_network(text: str, version: int) -> bool:
    try:
        return "/" in text and ip_network(text, strict=False).version == version
    except ValueError:
        return False


def _image(inputs: dict[str, Plain]) -> Iterator[Problem]:
    image = inputs.get("image")
    if image is None:
        yield "image", "is required: an instance without a disk isn't rehearsed"
    elif image != UNKNOWN and image not in IMAGES:
        yield "image", f"must be one of {', '.join(IMAGES)} in a rehearsal"
    if not inputs.get("authorizedKeys"):
        yield (
            "authorizedKeys",
            "an image needs rootPass or authorizedKeys, and only keys are rehearsed",
        )
    if inputs.get("authorizedUsers"):
        yield "authorizedUsers", "is not rehearsed: there's no Linode account behind"


def _keys(keys: Plain) -> Iterator[Problem]:
    if keys == UNKNOWN:
        return
    for index, key in enumerate(keys or []):
        words = key.split()
        if key != UNKNOWN and (len(words) < 2 or "\n" in key.strip() or not _decoded(words[1])):
            yield f"authorizedKeys[{index}]", "must be one SSH public key, as in a .pub file"


def _metadata(metadatas: Plain) -> Iterator[Problem]:
    if metadatas is None or metadatas == UNKNOWN:
        return
    if len(metadatas) > 1:
        yield "metadatas", "has one element at most"
    for index, metadata in enumerate(metadatas):
        text = None if metadata == UNKNOWN else metadata.get("userData")
        if text is None or text == UNKNOWN:
            continue
        path, data = f"metadatas[{index}].userData", _decoded(text)
        if data is None:
            yield path, "must be base64"
        elif len(data) > USER_DATA_LIMIT:
            yield path, f"is {len(data)} bytes; the metadata service takes {USER_DATA_LIMIT} (before base64)"


def _interfaces(interfaces: Plain) -> Iterator[Problem]:
    if interfaces is None or interfaces == UNKNOWN:
        return
    if len(interfaces) > 3:
        yield "interfaces", "at most three interfaces are allowed"
    for index, nic in enumerate(interfaces):
        path = f"interfaces[{index}]"
        if nic == UNKNOWN:
            continue
        if nic["purpose"] == "public":
            if index > 0:
                yield path, "the public interface must be the first one"
            if nic.get("subnetId") or nic.get("ipv4"):
                yield path, "a public interface has neither subnetId nor ipv4"
        elif nic["purpose"] == "vpc":
            yield from _vpc_interface(nic, path)
        elif nic["purpose"] != UNKNOWN:
            yield f"{path}.purpose", "must be public or vpc (vlan is not rehearsed)"
        for name in ("ipRanges", "ipamAddress", "ipv6", "label"):
            if nic.get(name):
                yield f"{path}.{name}", "is not rehearsed"


def _vpc_interface(nic: dict[str, Plain], path: str) -> Iterator[Problem]:
    if nic.get("subnetId") is None:
        yield f"{path}.subnetId", "is required for a VPC interface"
    ipv4 = nic.get("ipv4")
    if ipv4 == UNKNOWN:
        return
    if not ipv4 or not ipv4.get("vpc"):
        yield f"{path}.ipv4.vpc", "is required in a rehearsal: private addresses are fixed"
    elif ipv4["vpc"] != UNKNOWN and not _is_network(f"{ipv4['vpc']}/32", 4):
        yield f"{path}.ipv4.vpc", "must be an IPv4 address"
    if ipv4 and ipv4.get("nat11"):
        yield f"{path}.ipv4.nat11", "is not rehearsed"


def _vpc_label(inputs: dict[str, Plain]) -> Iterator[Problem]:
    label = inputs["label"]
    if label != UNKNOWN and (len(label) > 64 or "--" in label or not _VPC_LABEL.fullmatch(label)):
        yield "label", "must be 1 to 64 letters, digits and single dashes, no dash at the ends"


def _label(label: Plain, path: str, shortest: int, longest: int) -> Iterator[Problem]:
    if label is None or label == UNKNOWN:
        return
    if not shortest <= len(label) <= longest:
        yield path, f"must be {shortest} to {longest} characters long, not {len(label)}"
    elif not _ALNUM_ENDS.fullmatch(label) or re.search(r"--|__|\.\.", label):
        yield path, "must be letters, digits, and single . _ - between them"


def _no_region(inputs: dict[str, Plain]) -> Iterator[Problem]:
    if not inputs["region"]:
        yield "region", "must not be empty"


def _one_of(value: Plain, path: str, allowed: set[str]) -> Iterator[Problem]:
    if value not in {UNKNOWN, *allowed}:
        yield path, f"must be one of {', '.join(sorted(allowed))}"


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
