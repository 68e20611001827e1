"""The stand-in for the Linode plugin refuses what the SDK or the API refuse, and replaces what they do."""

import asyncio
import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pulumi.provider.experimental import provider
from pulumi.runtime.rpc import UNKNOWN

from rehearsal.cloud_firewall import CloudFirewall, Rule
from rehearsal.linode import rules
from rehearsal.linode.resources import Instance, cloud_firewall, resources
from rehearsal.machines import Machine
from rehearsal.provider.base import StandIn
from rehearsal.provider.values import plain_map, wrap
from rehearsal.store import RealmError, Record
from tests.unit.stand_ins import properties, refusals

Values = dict[str, Any]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq0Vn7xlHsWZ8LNGLzc1kNV2iLdMcoTDRuy1Oq3Ifk9 somebody"
RULE = {"label": "ssh", "action": "ACCEPT", "protocol": "TCP", "ports": "22", "ipv4s": ["192.0.2.1/32"]}
INPUTS: dict[str, Values] = {
    "vpc:Vpc": {"label": "net", "region": "eu-central"},
    "vpcSubnet:VpcSubnet": {"vpcId": 1001, "label": "servers", "ipv4": "10.20.0.0/24"},
    "firewall:Firewall": {"label": "app-1", "inboundPolicy": "DROP", "outboundPolicy": "ACCEPT", "inbounds": [RULE]},
    "instance:Instance": {
        "label": "app-1",
        "region": "eu-central",
        "type": "g6-nanode-1",
        "image": "linode/debian13",
        "authorizedKeys": [KEY],
        "firewallId": 1003,
        "interfaceGeneration": "legacy_config",
        "interfaces": [
            {"purpose": "public", "primary": True},
            {"purpose": "vpc", "subnetId": 1002, "ipv4": {"vpc": "10.20.0.10"}},
        ],
        "metadatas": [{"userData": base64.b64encode(b"#cloud-config\n").decode()}],
        "tags": ["a"],
    },
}
VPC, SUBNET, FIREWALL, INSTANCE = INPUTS


def urn(kind: str) -> str:
    return f"urn:pulumi:dev::project::linode:index/{kind}::name"


@pytest.fixture
def plugin(tmp_path: Path) -> StandIn:
    return StandIn(resources(tmp_path))


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
    (VPC, {"region": None}, "region"),
    (VPC, {"colour": "red"}, "colour"),
    (VPC, {"label": 7}, "label"),
    (SUBNET, {"vpcId": "1001"}, "vpcId"),
    (SUBNET, {"vpcId": 1.5}, "vpcId"),
    (FIREWALL, {"inboundPolicy": None}, "inboundPolicy"),
    (FIREWALL, {"inbounds": [{**RULE, "port": "22"}]}, "inbounds[0].port"),
    (FIREWALL, {"inbounds": [RULE, {"label": "ssh", "action": "ACCEPT"}]}, "inbounds[1].protocol"),
    (FIREWALL, {"inbounds": [{**RULE, "ports": 22}]}, "inbounds[0].ports"),
    (FIREWALL, {"inbounds": [{**RULE, "ipv4s": "0.0.0.0/0"}]}, "inbounds[0].ipv4s"),
    (INSTANCE, {"watchdogEnabled": "yes"}, "watchdogEnabled"),
    (INSTANCE, {"metadatas": [{"user_data": ""}]}, "metadatas[0].user_data"),
    (INSTANCE, {"interfaces": [{"purpose": "vpc", "subnetId": True}]}, "interfaces[0].subnetId"),
    # Linode's API.
    (VPC, {"label": "a--b"}, "label"),
    (VPC, {"label": "under_score"}, "label"),
    (VPC, {"label": "x" * 65}, "label"),
    (VPC, {"region": ""}, "region"),
    (SUBNET, {"ipv4": None}, "ipv4"),
    (SUBNET, {"ipv4": "10.20.0.1/24"}, "ipv4"),
    (SUBNET, {"ipv4": "10.20.0.0/30"}, "ipv4"),
    (SUBNET, {"ipv4": "192.168.128.0/24"}, "ipv4"),
    (SUBNET, {"ipv4": "203.0.113.0/24"}, "ipv4"),
    (FIREWALL, {"label": "ab"}, "label"),
    (FIREWALL, {"label": "x" * 33}, "label"),
    (FIREWALL, {"label": "-abc"}, "label"),
    (FIREWALL, {"inboundPolicy": "drop"}, "inboundPolicy"),
    (FIREWALL, {"linodes": [1]}, "linodes"),
    (FIREWALL, {"inbounds": [RULE] * 13, "outbounds": [RULE] * 13}, "inbounds"),
    (FIREWALL, {"inbounds": [{**RULE, "label": "a b c"}]}, "inbounds[0].label"),
    (FIREWALL, {"inbounds": [{**RULE, "action": "ALLOW"}]}, "inbounds[0].action"),
    (FIREWALL, {"inbounds": [{**RULE, "protocol": "tcp"}]}, "inbounds[0].protocol"),
    (FIREWALL, {"inbounds": [{**RULE, "protocol": "300"}]}, "inbounds[0].protocol"),
    (FIREWALL, {"inbounds": [{**RULE, "protocol": "ICMP"}]}, "inbounds[0].ports"),
    *(
        (FIREWALL, {"inbounds": [{**RULE, "ports": ports}]}, "inbounds[0].ports")
        for ports in (
            "",
            "0",
            "65536",
            "90-80",
            "22;80",
            "22,,80",
            "ssh",
            ",".join(map(str, range(1, 17))),
            "1-2," * 7 + "3-4",
        )
    ),
    (FIREWALL, {"inbounds": [{**RULE, "ipv4s": []}]}, "inbounds[0].ipv4s"),
    (FIREWALL, {"inbounds": [{**RULE, "ipv4s": ["192.0.2.1"]}]}, "inbounds[0].ipv4s[0]"),
    (FIREWALL, {"inbounds": [{**RULE, "ipv4s": ["::/0"]}]}, "inbounds[0].ipv4s[0]"),
    (FIREWALL, {"inbounds": [{**RULE, "ipv6s": ["0.0.0.0/0"]}]}, "inbounds[0].ipv6s[0]"),
    (FIREWALL, {"inbounds": [{**RULE, "ipv4s": [f"10.0.{n}.0/24" for n in range(256)]}]}, "inbounds[0]"),
    (FIREWALL, {"inbounds": [{key: RULE[key] for key in ("label", "action", "protocol")}]}, "inbounds[0]"),
    (INSTANCE, {"label": "ab"}, "label"),
    (INSTANCE, {"label": "a__b"}, "label"),
    (INSTANCE, {"image": "linode/ubuntu26.04"}, "image"),
    (INSTANCE, {"image": None}, "image"),
    (INSTANCE, {"type": None}, "type"),
    (INSTANCE, {"authorizedKeys": None}, "authorizedKeys"),
    (INSTANCE, {"authorizedKeys": ["ssh-ed25519"]}, "authorizedKeys[0]"),
    (INSTANCE, {"interfaceGeneration": None}, "interfaceGeneration"),
    (INSTANCE, {"interfaceGeneration": "linode"}, "interfaceGeneration"),
    (INSTANCE, {"privateIp": True}, "privateIp"),
    (INSTANCE, {"rootPass": "correct horse battery"}, "rootPass"),
    (INSTANCE, {"metadatas": [{"userData": "#cloud-config"}]}, "metadatas[0].userData"),
    (INSTANCE, {"metadatas": [{"userData": base64.b64encode(bytes(16385)).decode()}]}, "metadatas[0].userData"),
    (INSTANCE, {"interfaces": [{"purpose": "vlan"}]}, "interfaces[0].purpose"),
    (INSTANCE, {"interfaces": [{"purpose": "vpc", "ipv4": {"vpc": "10.20.0.10"}}]}, "interfaces[0].subnetId"),
    (INSTANCE, {"interfaces": [{"purpose": "vpc", "subnetId": 1, "ipv4": {"vpc": "x"}}]}, "interfaces[0].ipv4.vpc"),
    (
        INSTANCE,
        {"interfaces": [{"purpose": "vpc", "subnetId": 1, "ipv4": {"vpc": "10.20.0.10"}}, {"purpose": "public"}]},
        "interfaces[1]",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "path"), BAD)
def test_bad_inputs_are_named(plugin: StandIn, kind: str, changes: Values, path: str) -> None:
    assert path in check(plugin, kind, changed(kind, **changes))


def test_the_limits_themselves_are_allowed(plugin: StandIn) -> None:
    rule = {**RULE, "ports": "1-2,3-4,5-6,7-8,9-10,11-12,13-14,15", "ipv4s": [f"10.0.{n}.0/24" for n in range(255)]}
    assert check(plugin, FIREWALL, changed(FIREWALL, inbounds=[rule] * 20, outbounds=[RULE] * 5)) == {}
    data = base64.b64encode(bytes(16384)).decode()
    assert check(plugin, INSTANCE, changed(INSTANCE, metadatas=[{"userData": data}])) == {}


def test_a_refusal_does_not_show_the_value(plugin: StandIn) -> None:
    failures = check(plugin, INSTANCE, changed(INSTANCE, metadatas=[{"userData": "hunter2!"}]))
    assert "hunter2" not in str(failures)


def diff(plugin: StandIn, kind: str, new: Values, ignore: tuple[str, ...] = ()) -> provider.DiffResponse:
    old = {**INPUTS[kind], "status": "running", "__given": sorted(INPUTS[kind])}
    return asyncio.run(
        plugin.diff(provider.DiffRequest(urn(kind), "1", properties(old), properties(new), list(ignore)))
    )


@pytest.mark.parametrize("kind", INPUTS)
def test_nothing_changed_is_no_difference(plugin: StandIn, kind: str) -> None:
    same = diff(plugin, kind, {**INPUTS[kind], "__defaults": []})
    assert (same.changes, same.replaces) == (False, [])


def test_secretness_alone_is_no_difference(plugin: StandIn) -> None:
    secret = {**INPUTS[INSTANCE], "metadatas": wrap(INPUTS[INSTANCE]["metadatas"]).with_secret(True)}
    assert diff(plugin, INSTANCE, secret).changes is False


@pytest.mark.parametrize(
    ("kind", "name", "value", "replaces"),
    [
        (VPC, "description", "new", False),
        (VPC, "label", "other", False),
        (VPC, "region", "us-east", True),
        (SUBNET, "label", "other", False),
        (SUBNET, "ipv4", "10.21.0.0/24", True),
        (SUBNET, "vpcId", UNKNOWN, True),
        (FIREWALL, "inbounds", [], False),
        (FIREWALL, "inbounds", None, False),
        (FIREWALL, "label", "other", False),
        (INSTANCE, "label", "other", False),
        (INSTANCE, "tags", None, False),
        (INSTANCE, "type", "g6-standard-1", False),
        (INSTANCE, "interfaces", [{"purpose": "public"}], False),
        (INSTANCE, "metadatas", [{"userData": ""}], True),
        (INSTANCE, "metadatas", UNKNOWN, True),
        (INSTANCE, "authorizedKeys", [KEY, KEY], True),
        (INSTANCE, "image", "linode/debian12", True),
        (INSTANCE, "firewallId", 9, True),
        (INSTANCE, "interfaceGeneration", "linode", True),
        (INSTANCE, "diskEncryption", "enabled", True),
    ],
)
def test_what_replaces(plugin: StandIn, kind: str, name: str, value: object, replaces: bool) -> None:
    found = diff(plugin, kind, changed(kind, **{name: value}))
    assert found.changes is True
    assert found.diffs == [name]
    assert found.replaces == ([name] if replaces else [])
    assert found.detailed_diff[name].kind.name.endswith("_REPLACE") == replaces


def test_a_property_that_was_taken_away_is_shown_so(plugin: StandIn) -> None:
    found = diff(plugin, INSTANCE, changed(INSTANCE, tags=None, label="other", watchdogEnabled=False))
    kinds = {name: one.kind.name for name, one in found.detailed_diff.items()}
    assert kinds == {"tags": "DELETE", "label": "UPDATE", "watchdogEnabled": "ADD"}


def test_ignored_changes_are_none(plugin: StandIn) -> None:
    new = changed(INSTANCE, image="linode/debian12", metadatas=[{"userData": ""}], tags=["b"])
    found = diff(plugin, INSTANCE, new, ignore=("image", "metadatas[0].userData"))
    assert (found.diffs, found.replaces) == (["tags"], [])


def test_a_preview_makes_nothing_and_knows_only_its_inputs(plugin: StandIn, tmp_path: Path) -> None:
    inputs = properties({**INPUTS[INSTANCE], "firewallId": UNKNOWN})
    made = asyncio.run(plugin.create(provider.CreateRequest(urn(INSTANCE), inputs, 0, preview=True)))
    assert (made.resource_id, made.properties) == ("", inputs)
    assert list(tmp_path.iterdir()) == []


def test_a_previewed_update_keeps_the_outputs(plugin: StandIn) -> None:
    old = properties({**INPUTS[VPC], "created": "2026", "__given": sorted(INPUTS[VPC])})
    request = provider.UpdateRequest(urn(VPC), "1", old, properties(changed(VPC, label="x")), 0, [], preview=True)
    assert plain_map(asyncio.run(plugin.update(request)).properties or {})["created"] == "2026"


def test_rules_reach_the_machine_as_written() -> None:
    written = [
        {**RULE, "ports": "22, 80-90", "ipv6s": ["::/0"]},
        {"label": "ping", "action": "DROP", "protocol": "ICMP", "ipv4s": ["0.0.0.0/0"]},
    ]
    assert rules.to_rules(written) == (
        Rule("accept", "tcp", ((22, 22), (80, 90)), ("192.0.2.1/32", "::/0")),
        Rule("drop", "icmp", (), ("0.0.0.0/0",)),
    )


def test_a_disabled_firewall_lets_everything_through() -> None:
    firewall = cloud_firewall({**INPUTS[FIREWALL], "disabled": True})
    assert (firewall.inbound, firewall.inbound_policy) == ((), "accept")


class Power:
    """One machine that has a disk, and how often it was rebooted."""

    def __init__(self, disk: int) -> None:
        self.details: Record = {"disk": disk, "hasUserData": True, "host": "a"}
        self.reboots = 0

    def get(self, number: int) -> Machine:
        return Machine(number, "app-1", "debian13", (), CloudFirewall(), True, self.details)

    def set_details(self, _number: int, details: Record) -> None:
        self.details = details

    def reboot(self, _number: int) -> None:
        self.reboots += 1

    def running(self) -> set[int]:
        return {1}


@pytest.mark.parametrize("disk", [25600, 51200])
def test_another_size_takes_a_reboot_and_room_for_the_disk_that_there_is(disk: int) -> None:
    power = Power(disk)
    cloud: Any = SimpleNamespace(realm=SimpleNamespace(power=power))
    small, large = (changed(INSTANCE, type=size) for size in ("g6-nanode-1", "g6-standard-1"))
    Instance(cloud).update(1, small, large)
    assert power.reboots == 1
    if disk == 25600:
        Instance(cloud).update(1, large, small)
        assert (power.reboots, power.details["inputs"]["type"], power.details["disk"]) == (2, "g6-nanode-1", disk)
    else:
        with pytest.raises(RealmError, match="more disk than the new service plan allows"):
            Instance(cloud).update(1, large, small)
        assert (power.reboots, power.details["inputs"]["type"]) == (1, "g6-standard-1")
