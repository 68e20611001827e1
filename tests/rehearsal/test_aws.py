"""What only AWS has: addresses that are translated, a private subnet that goes out by a NAT gateway, empty groups."""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator

import pytest

from rehearsal import podman
from rehearsal.aws.resources import Api, EgressRule, Instance, Recorded, Route
from rehearsal.realm import RESOURCES, Bystander
from rehearsal.store import RealmError
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.people import console, for_a_while
from tests.rehearsal.support import resources, until

PORT = 8088

# Tells everyone the address from which they come.
MIRROR = f"""
import socket
for family in (socket.AF_INET, socket.AF_INET6):
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(("", {PORT}))
    listener.listen(50)
    globals()[family.name] = listener
import threading
def serve(listener):
    while True:
        connection, peer = listener.accept()
        with connection:
            connection.sendall(peer[0].encode())
threading.Thread(target=serve, args=(AF_INET6,)).start()
serve(AF_INET)
"""


@pytest.fixture(scope="module", params=["aws-local"])
def aws(rehearsals: Callable[[str], Rehearsal], request: pytest.FixtureRequest) -> Rehearsal:
    return rehearsals(request.param)


@pytest.fixture(scope="module")
def api(aws: Rehearsal) -> Api:
    return Api(aws.workspace)


@pytest.fixture(scope="module")
def mirror(aws: Rehearsal) -> Iterator[Bystander]:
    """Somebody on the internet who tells where others come from."""
    with aws.realm().outsider(230) as somebody:
        unit = f"mirror-{somebody.namespace}"
        command = ["ip", "netns", "exec", somebody.namespace, "python3", "-c", MIRROR]
        podman.run(["sh", "-c", '"$@" >/dev/null 2>&1 & echo $! > /run/$0.pid', unit, *command])
        try:
            until(lambda: str(PORT) in somebody.run(["ss", "-ltn"]).stdout)
            yield somebody
        finally:
            podman.run(["sh", "-c", f"kill $(cat /run/{unit}.pid); rm /run/{unit}.pid"])


def seen_as(aws: Rehearsal, server: str, address: str) -> str:
    """The address from which somebody sees a server come; nothing if it doesn't get there."""
    connect = f"timeout 2 bash -c 'cat < /dev/tcp/{address}/{PORT}' 2>/dev/null || true"
    return console(aws, server, connect)


def identifier(aws: Rehearsal, name: str) -> int:
    return int(str(resources(aws)[name]["id"]).rpartition("-")[2])


@contextlib.contextmanager
def without(aws: Rehearsal, kind: Recorded, name: str) -> Iterator[None]:
    """One resource deleted behind Pulumi's back, and put back as it was."""
    record = kind.get(identifier(aws, name))
    assert record is not None
    kind.delete(record["number"])
    try:
        yield
    finally:
        kind.put(record)
        kind.changed(record)


def test_the_world_knows_servers_by_addresses_that_they_dont_know_themselves(aws: Rehearsal, mirror: Bystander) -> None:
    public4, public6 = aws.public_addresses("app-1")
    assert seen_as(aws, "app-1", mirror.addresses[0]) == public4
    assert public4 not in console(aws, "app-1", "ip address")
    # IPv6 is not translated.
    assert seen_as(aws, "app-1", mirror.addresses[1]) == public6
    assert f"inet6 {public6}/64" in console(aws, "app-1", "ip address")


def test_a_private_server_goes_out_by_the_nat_gateway_and_has_no_ipv6(aws: Rehearsal, mirror: Bystander) -> None:
    nat = str(resources(aws)["aws-nat-address"]["outputs"]["publicIp"])
    assert seen_as(aws, "db-1", mirror.addresses[0]) == nat
    assert seen_as(aws, "db-1", mirror.addresses[1]) == ""
    assert aws.public_addresses("db-1") == ()


def test_nobody_comes_in_by_the_nat_gateway_even_with_open_firewalls(aws: Rehearsal) -> None:
    nat, private = str(resources(aws)["aws-nat-address"]["outputs"]["publicIp"]), aws.private_address("db-1")
    rule = "INPUT -p tcp --dport 22 -j ACCEPT"

    def connect(address: str) -> list[str]:
        return ["python3", "-c", f"import socket; socket.create_connection(('{address}', 22), 2)"]

    with (
        aws.realm().cloud_firewall_off(aws.machine("db-1")),
        aws.realm().outsider(231) as outsider,
        for_a_while(aws, "db-1", f"iptables -I {rule}", f"iptables -D {rule}"),
    ):
        outsider.run(["ip", "route", "add", private, "via", nat])
        for address in (nat, private):
            assert "timed out" in outsider.run(connect(address)).stderr
        # From inside it is open.
        console(aws, "app-1", shlex.join(connect(private)))


def test_without_its_route_the_private_subnet_is_shut_in(aws: Rehearsal, api: Api, mirror: Bystander) -> None:
    with without(aws, Route(api), "aws-private-route-v4"):
        assert seen_as(aws, "db-1", mirror.addresses[0]) == ""
        # The application's way to it is not the gateway's business.
        assert aws.ssh("db-1", "hostname").stdout == "db-1\n"
    assert seen_as(aws, "db-1", mirror.addresses[0]) != ""


def test_without_its_rules_nothing_goes_out(aws: Rehearsal, api: Api, mirror: Bystander) -> None:
    rules = EgressRule(api)
    with without(aws, rules, "app-1-out-v4"):
        assert seen_as(aws, "app-1", mirror.addresses[0]) == ""
        assert seen_as(aws, "app-1", mirror.addresses[1]) != ""
        # Answers are no new connections.
        assert aws.ssh("app-1", "hostname").stdout == "app-1\n"
        with without(aws, rules, "app-1-out-v6"):
            assert seen_as(aws, "app-1", mirror.addresses[1]) == ""
    assert seen_as(aws, "app-1", mirror.addresses[0]) != ""


def test_the_database_server_is_protected_by_the_cloud_too(aws: Rehearsal, api: Api) -> None:
    with pytest.raises(RealmError, match="OperationNotPermitted"):
        Instance(api).delete(identifier(aws, "db-1-instance"))
    assert aws.ssh("db-1", "hostname").stdout == "db-1\n"


def test_the_cloud_has_what_pulumi_thinks(aws: Rehearsal) -> None:
    aws.make("up", "--refresh", "--expect-no-changes")


def test_what_somebody_took_away_by_hand_is_seen_and_comes_back(aws: Rehearsal, api: Api, mirror: Bystander) -> None:
    rules, number = EgressRule(api), identifier(aws, "db-1-out-v4")
    rules.delete(number)
    assert seen_as(aws, "db-1", mirror.addresses[0]) == ""
    aws.make("up", "--refresh")
    assert seen_as(aws, "db-1", mirror.addresses[0]) != ""
    assert rules.get(number) is None
    aws.make("up", "--expect-no-changes")


def test_records_hold_no_user_data(aws: Rehearsal) -> None:
    """What an account tells of its instances is told to everybody who may look."""
    machine = aws.machine("db-1")
    assert "userDataBase64" not in json.dumps(machine.details)
    assert RESOURCES in {path.name for path in aws.realm().store.folder.iterdir()}
