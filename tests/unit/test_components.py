"""The whole program, as the engine sees it: what it asks for, and what of it is secret."""

import base64
import gzip
from functools import cache
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from components.cloud_init import bootstrap_host_key, public_line
from components.clouds.linode import Linode
from components.server import openssh_of
from tests.unit.program import (
    PRIVATE,
    STACK,
    UNKNOWN,
    Program,
    Registration,
    Secret,
    host_key,
    plain,
    public_ip,
    resource_id,
    run,
    texts,
)
from tests.unit.support import configuration, secret_texts
from uds.certificates import KeyType, general_names, private_pem, self_signed

COUNTS = (1, 3)
SCRIPTS = ("hardening-apply", "accounts-apply", "monit-apply")
OWN_SCRIPTS = {"app": ["application-apply"], "db": ["mysql-apply", "backup-apply"], "backup": ["backup-apply"]}


@cache
def program(count: int = 1, *, preview: bool = False) -> Program:
    return run(configuration({"app.count": count}), preview=preview)


def servers(count: int) -> list[str]:
    return [*(f"app-{number}" for number in range(1, count + 1)), *PRIVATE]


SERVERS = [(count, server) for count in COUNTS for server in servers(count)]
COMMANDS = [
    *((count, f"{server}-{what}") for count, server in SERVERS for what in ("first-contact", *SCRIPTS)),
    *((count, f"{server}-{what}") for count, server in SERVERS for what in OWN_SCRIPTS[server.split("-")[0]]),
    *((count, f"{server}-reachable") for count in COUNTS for server in PRIVATE),
]


def connection_of(command: Registration) -> dict[str, Any]:
    connection: dict[str, Any] = plain(command.inputs["connection"])
    return connection


def user_data_of(instance: Registration) -> str:
    (metadata,) = plain(instance.inputs["metadatas"])
    return gzip.decompress(base64.b64decode(metadata["userData"])).decode()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("preview", [False, True])
def test_the_stack_is_a_network_and_the_same_chain_for_every_server(count: int, preview: bool) -> None:
    made = program(count, preview=preview)
    expected = {f"{server}-{what}" for server in servers(count) for what in ("firewall", "instance")}
    expected |= {name for number, name in COMMANDS if number == count}
    assert set(made.resources) == expected | {"linode-vpc", "linode-subnet"}
    assert {command.name for command in made.commands} == {name for number, name in COMMANDS if number == count}


# Machines and firewalls


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_a_machine_is_behind_its_own_firewall_from_its_first_moment(count: int, server: str) -> None:
    made = program(count).of(server)
    assert made["instance"].inputs["firewallId"] == resource_id(f"{server}-firewall")
    assert made["firewall"].urn in made["instance"].dependencies
    assert (made["firewall"].inputs["inboundPolicy"], made["firewall"].inputs["outboundPolicy"]) == ("DROP", "ACCEPT")
    # Labels are unique in an account, which may hold several stacks.
    assert made["instance"].inputs["label"] == made["firewall"].inputs["label"] == f"{STACK}-{server}"


@pytest.mark.parametrize(
    ("server", "address"),
    [("app-1", "10.20.0.11"), ("app-2", "10.20.0.12"), ("app-3", "10.20.0.13"), *PRIVATE.items()],
)
def test_a_machine_has_a_fixed_address_in_the_stacks_own_network(server: str, address: str) -> None:
    inputs = program(3).of(server)["instance"].inputs
    assert inputs["interfaceGeneration"] == "legacy_config"
    assert inputs["interfaces"] == [
        {"purpose": "public", "primary": True},
        {"purpose": "vpc", "subnetId": resource_id("linode-subnet"), "ipv4": {"vpc": address}},
    ]
    assert program(3).resources["linode-subnet"].inputs["vpcId"] == resource_id("linode-vpc")
    assert program(3).resources["linode-subnet"].inputs["ipv4"] == "10.20.0.0/24"


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_only_what_holds_data_is_protected_and_no_server_is_replaced_by_a_new_file(count: int, server: str) -> None:
    instance = program(count).of(server)["instance"]
    assert instance.protect == (server in PRIVATE)
    assert set(instance.ignored) == {"authorizedKeys", "image", "metadatas"}


def test_sizes_image_and_region_are_the_settings() -> None:
    made = run(
        configuration(
            {
                "region": "de-fra-2",
                "image": "debian12",
                "app.size": "g6-standard-2",
                "database.size": "g6-standard-4",
                "backup.size": "g6-standard-6",
            }
        )
    )
    sizes = {"app-1": "g6-standard-2", "db-1": "g6-standard-4", "backup-1": "g6-standard-6"}
    for server, size in sizes.items():
        inputs = made.of(server)["instance"].inputs
        assert (inputs["region"], inputs["image"], inputs["type"]) == ("de-fra-2", "linode/debian12", size)
    assert made.resources["linode-vpc"].inputs["region"] == "de-fra-2"


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_user_data_is_a_secret_and_the_servers_own(count: int, server: str) -> None:
    instance = program(count).of(server)["instance"]
    (metadata,) = instance.inputs["metadatas"]
    assert isinstance(metadata["userData"], Secret)
    assert f"\nhostname: {server}\n" in user_data_of(instance)


def rules(server: str, count: int) -> list[tuple[Any, ...]]:
    found = []
    for rule in program(count).of(server)["firewall"].inputs["inbounds"]:
        assert rule["action"] == "ACCEPT"
        found.append((rule["protocol"], rule["ports"], rule.get("ipv4s", []), rule.get("ipv6s", [])))
    return found


@pytest.mark.parametrize("count", COUNTS)
def test_the_cloud_lets_in_what_the_role_needs_and_nothing_else(count: int) -> None:
    apps = [f"10.20.0.{10 + number}/32" for number in range(1, count + 1)]
    for server in set(servers(count)) - set(PRIVATE):
        assert rules(server, count) == [
            ("TCP", "22", ["198.51.100.7/32"], ["2001:db8:1::/64"]),
            ("TCP", "80", ["0.0.0.0/0"], ["::/0"]),
            ("TCP", "443", ["0.0.0.0/0"], ["::/0"]),
        ]
    assert rules("db-1", count) == [("TCP", "22", apps[:1], []), ("TCP", "3306", apps, [])]
    assert rules("backup-1", count) == [("TCP", "22", apps[:1], []), ("TCP", "22", ["10.20.0.5/32"], [])]


def test_overlapping_sources_become_one() -> None:
    made = run(
        configuration({"ssh.allowedSources": ["198.51.100.0/24", "198.51.100.7/32", "2001:db8::/48", "2001:db8::/64"]})
    )
    ssh = made.of("app-1")["firewall"].inputs["inbounds"][0]
    assert (ssh["ipv4s"], ssh["ipv6s"]) == (["198.51.100.0/24"], ["2001:db8::/48"])


@pytest.mark.parametrize("count", COUNTS)
def test_only_the_first_server_is_a_way_in_and_only_to_the_private_ones(count: int) -> None:
    for server in servers(count):
        data = user_data_of(program(count).of(server)["instance"])
        assert ("PermitOpen 10.20.0.5:22 10.20.0.6:22\n" in data) == (server == "app-1")
        assert ("AllowTcpForwarding no\n" in data) == (server != "app-1")
        source = "10.20.0.11/32" if server in PRIVATE else "198.51.100.7/32,2001:db8:1::/64"
        assert f"Match User deploy Address {source}\n" in data


# Commands


@pytest.mark.parametrize(("count", "name"), COMMANDS)
def test_nothing_secret_is_in_a_command_that_an_error_would_print(count: int, name: str) -> None:
    create = program(count).resources[name].inputs["create"]
    # Not even marked as a secret: it would be printed all the same.
    assert isinstance(create, str)
    assert not any(secret in create for secret in secret_texts(configuration()))


@pytest.mark.parametrize(("count", "name"), COMMANDS)
def test_a_command_leaks_nothing_by_its_options(count: int, name: str) -> None:
    command = program(count).resources[name]
    assert command.inputs["logging"] == "none"
    assert command.inputs["addPreviousOutputInEnv"] is False
    assert not {"environment", "update", "delete"} & set(command.inputs)
    if name.endswith("-apply"):
        assert isinstance(command.inputs["stdin"], Secret)
        assert {"stdout", "stderr"} <= command.secret_outputs


def test_every_script_is_applied_by_one_constant_command() -> None:
    commands = [command for command in program(3).commands if command.name.endswith("-apply")]
    assert len(commands) == 21
    assert len({command.inputs["create"].split(" # ")[0] for command in commands}) == 1


def test_the_digest_shows_that_the_work_changes_and_follows_no_secret_that_could_be_guessed() -> None:
    before, after = program().resources, run(configuration({"app.packages": ["nodejs"]})).resources
    changed = {name for name in before if before[name].inputs.get("create") != after[name].inputs.get("create")}
    assert changed == {"app-1-hardening-apply"}
    # The same work keyed with another password has another digest.
    other = run(configuration({"deploy.sudoPassword": "another-L0ng-one"})).resources
    assert all(
        other[name].inputs["create"] != before[name].inputs["create"] for name in before if name.endswith("-apply")
    )


@pytest.mark.parametrize(("count", "name"), COMMANDS)
def test_every_connection_is_pinned_and_goes_the_right_way(count: int, name: str) -> None:
    command = program(count).resources[name]
    server = "-".join(name.split("-")[:2])
    what = name.removeprefix(f"{server}-")
    connection = connection_of(command)
    deploy = configuration()["deploy"]
    through = {
        "host": public_ip("app-1"),
        "hostKey": host_key("app-1"),
        "user": "deploy",
        "privateKey": deploy["privateKey"],
    }
    if what == "reachable":
        # Asked on the bastion.
        assert through.items() <= connection.items()
        assert f"/dev/tcp/{PRIVATE[server]}/22" in command.inputs["create"]
        return
    first = public_line(bootstrap_host_key(deploy["bootstrapSeed"], server))
    assert connection["hostKey"] == (first if what == "first-contact" else host_key(server))
    assert (connection["user"], connection["privateKey"]) == ("deploy", deploy["privateKey"])
    # About five minutes for a server that is still booting, and one for others: another host key is tried again, too.
    assert connection["dialErrorLimit"] == (60 if what == "first-contact" else 20)
    if server in PRIVATE:
        assert connection["host"] == PRIVATE[server]
        assert through.items() <= connection["proxy"].items()
    else:
        assert connection["host"] == public_ip(server)
        assert "proxy" not in connection


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_a_step_waits_for_the_one_before(count: int, server: str) -> None:
    made = program(count).of(server)
    assert made["instance"].urn in made["first-contact"].dependencies
    assert made["first-contact"].urn in made["hardening-apply"].dependencies
    assert made["hardening-apply"].urn in made["accounts-apply"].dependencies
    if server in PRIVATE:
        assert made["instance"].urn in made["reachable"].dependencies
        assert made["reachable"].urn in made["first-contact"].dependencies


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_the_first_contact_is_once_in_a_machines_life(count: int, server: str) -> None:
    made = program(count).of(server)
    assert made["first-contact"].inputs["triggers"] == [str(resource_id(f"{server}-instance"))]
    assert set(made["first-contact"].ignored) == {"connection", "create"}
    assert made["first-contact"].deleted_with == made["instance"].urn


# Secrets


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("preview", [False, True])
def test_no_secret_is_anywhere_but_in_values_marked_as_secrets(count: int, preview: bool) -> None:
    made = program(count, preview=preview)
    readable = [text for resource in made.resources.values() for text in texts(resource.inputs)]
    readable += [text for component in made.components for text in texts(component.inputs)]
    readable += texts(made.outputs)
    assert "10.20.0.5" in readable
    for secret in secret_texts(configuration()):
        assert not any(secret in text for text in readable)


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_user_data_has_no_secret_but_the_passwords_hash(count: int, server: str) -> None:
    data = user_data_of(program(count).of(server)["instance"])
    own_hash = configuration()["deploy"]["sudoPasswordHash"]
    assert [secret for secret in secret_texts(configuration()) if secret in data] == [own_hash]


def test_the_people_are_the_same_on_every_server_and_only_there() -> None:
    for server in servers(3):
        made = program(3).of(server)
        accounts, hardening = (
            plain(made["accounts-apply"].inputs["stdin"]),
            plain(made["hardening-apply"].inputs["stdin"]),
        )
        totp = configuration()["admins"]["alice"]["totpSecret"].encode()
        assert totp in unpacked(accounts)
        assert totp not in unpacked(hardening)


def unpacked(stdin: str) -> bytes:
    return base64.b64decode(stdin.split("\n", 1)[1])


def test_a_server_is_hardened_for_the_openssh_that_it_has() -> None:
    """Which is not the one of `image` where that was changed after the server was made."""
    made = run(configuration({"image": "debian12"})).of("app-1")
    assert "PerSourcePenalties" not in user_data_of(made["instance"])
    # Every server of this cloud says that it has 10.0.
    assert b"PerSourcePenalties" in unpacked(plain(made["hardening-apply"].inputs["stdin"]))


def test_a_server_that_was_made_before_it_was_asked_has_the_openssh_of_the_image() -> None:
    assert openssh_of("ssh-ed25519 AAAA root@app-1\nOpenSSH_9.2p1 Debian-2, OpenSSL 3.0.1\n") == (9, 2)
    assert openssh_of("ssh-ed25519 AAAA root@app-1\n") is None


# Preview, growth, outputs, refusals


@pytest.mark.parametrize("count", COUNTS)
def test_a_preview_of_a_new_stack_knows_all_that_policies_ask_for(count: int) -> None:
    made = program(count, preview=True)
    for server in servers(count):
        resources = made.of(server)
        assert UNKNOWN not in texts(resources["firewall"].inputs)
        instance = dict(resources["instance"].inputs)
        assert instance.pop("firewallId") == UNKNOWN
        assert instance["interfaces"][1].pop("subnetId") == UNKNOWN
        assert UNKNOWN not in texts(plain(instance))
    # What would run is told; where, is known when there are machines. So are the host key that backups are sent to, and
    # the OpenSSH that a server has.
    first = {command.name: command.inputs["create"] for command in program(count).commands}
    assert {command.name: command.inputs["create"] for command in made.commands} == {
        **first,
        "db-1-backup-apply": UNKNOWN,
        **{f"{server}-hardening-apply": UNKNOWN for server in servers(count)},
    }


def test_more_servers_are_only_more() -> None:
    one, three = program(1), program(3)
    assert {resource.urn for resource in one.resources.values()} < {
        resource.urn for resource in three.resources.values()
    }
    assert {component.urn for component in one.components} < {component.urn for component in three.components}

    changed = {
        (name, key)
        for name, before in one.resources.items()
        for key in before.inputs
        if before.inputs[key] != three.resources[name].inputs[key] and key not in before.ignored
    }
    # The database lets them in: in the cloud, and by the rules that its own script brings.
    assert changed == {
        ("db-1-firewall", "inbounds"),
        ("db-1-hardening-apply", "stdin"),
        ("db-1-hardening-apply", "create"),
        # Its users are let in from there too.
        ("db-1-mysql-apply", "stdin"),
        ("db-1-mysql-apply", "create"),
    }


@pytest.mark.parametrize("count", COUNTS)
def test_the_outputs_are_the_contract(count: int) -> None:
    assert program(count).outputs == {
        "servers": {
            server: {
                "role": server.split("-")[0],
                "publicIp": public_ip(server),
                "privateIp": PRIVATE.get(server, f"10.20.0.{10 + int(server[-1])}"),
                "hostKey": host_key(server),
            }
            for server in servers(count)
        },
        "sshUser": "deploy",
        "database": {"host": "10.20.0.5", "port": 3306, "name": "production", "user": "application"},
    }


def test_without_the_backup_server_there_are_no_backups() -> None:
    made = run(configuration({"backup": {"server": False}}))
    # What an earlier run may have left on the database server is taken away.
    assert [name for name in made.resources if "backup" in name] == ["db-1-backup-apply"]
    assert set(made.outputs["servers"]) == {"app-1", "db-1"}
    assert "PermitOpen 10.20.0.5:22\n" in user_data_of(made.of("app-1")["instance"])


def test_the_first_backup_waits_for_the_database_and_for_who_takes_it() -> None:
    made = program()
    first = made.resources["db-1-backup-apply"]
    assert {made.resources[f"{name}-apply"].urn for name in ("db-1-mysql", "backup-1-backup")} <= first.dependencies
    sent = unpacked(plain(first.inputs["stdin"])).decode()
    assert f"backup {host_key('backup-1')}\n" in sent
    # Who may add backups can't open one, and nobody on the servers can.
    assert "AGE-SECRET-KEY" not in sent


# A backup server in another region


@cache
def elsewhere(*, preview: bool = False) -> Program:
    return run(configuration({"backup.region": "us-east"}), preview=preview)


@pytest.mark.parametrize("preview", [False, True])
def test_elsewhere_only_the_network_is_more_and_nothing_leads_there_through_the_bastion(preview: bool) -> None:
    made = elsewhere(preview=preview)
    more = {"linode-elsewhere-vpc", "linode-elsewhere-subnet"}
    assert set(made.resources) == set(program().resources) - {"backup-1-reachable"} | more
    regions = {name: one.inputs["region"] for name, one in made.resources.items() if "region" in one.inputs}
    there = {"linode-elsewhere-vpc", "backup-1-instance"}
    assert regions == {name: "us-east" if name in there else "eu-central" for name in regions}
    subnet = made.resources["linode-elsewhere-subnet"].urn
    assert subnet in made.of("backup-1")["instance"].property_dependencies["interfaces"]
    assert "PermitOpen 10.20.0.5:22\n" in user_data_of(made.of("app-1")["instance"])


def test_elsewhere_operators_come_directly_and_the_database_server_by_the_address_that_it_got() -> None:
    made = elsewhere()
    inbound = [
        (rule["label"], rule["protocol"], rule["ports"], rule.get("ipv4s"), rule.get("ipv6s"))
        for rule in made.of("backup-1")["firewall"].inputs["inbounds"]
    ]
    assert inbound == [
        ("tcp-22", "TCP", "22", ["198.51.100.7/32"], ["2001:db8:1::/64"]),
        ("tcp-22-guest", "TCP", "22", [f"{public_ip('db-1')}/32"], None),
    ]
    contact = connection_of(made.of("backup-1")["first-contact"])
    assert (contact["host"], contact.get("proxy")) == (public_ip("backup-1"), None)
    # The server's own firewall has the guest from its hardening on.
    assert public_ip("db-1") not in user_data_of(made.of("backup-1")["instance"])
    hardened = unpacked(plain(made.of("backup-1")["hardening-apply"].inputs["stdin"])).decode()
    assert f"-A TCP -p tcp --dport 22 -s {public_ip('db-1')}/32 -j ACCEPT" in hardened
    keeps = unpacked(plain(made.of("backup-1")["backup-apply"].inputs["stdin"])).decode()
    assert f'restrict,from="{public_ip("db-1")}",' in keeps
    makes = unpacked(plain(made.of("db-1")["backup-apply"].inputs["stdin"])).decode()
    assert f'"address": "{public_ip("backup-1")}"' in makes


def test_elsewhere_the_outputs_say_how_the_two_know_each_other() -> None:
    servers = elsewhere().outputs["servers"]
    assert servers == {
        **program().outputs["servers"],
        "backup-1": {**program().outputs["servers"]["backup-1"], "region": "us-east"},
        "db-1": {**program().outputs["servers"]["db-1"], "outwardIp": public_ip("db-1")},
    }


def refused(config: dict[str, object]) -> str:
    made = Program()
    with pytest.raises(pulumi.RunError) as raised:
        run(config, program=made)
    assert not made.resources
    return str(raised.value)


def test_settings_that_cant_be_used_are_named_before_anything_is_made() -> None:
    said = refused(configuration({"region": "mars-1", "app.count": 99}))
    assert said.startswith("The configuration of this stack can't be used:\n")
    assert "user-data-security:region 'mars-1': is not a region of linode" in said
    assert "user-data-security:app.count 99" in said


def test_a_release_that_cant_be_delivered_is_named_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    key = KeyType.P256.new_key()
    certificate = self_signed(key, general_names(["application.test"])).public_bytes(Encoding.PEM).decode()
    own = {"release": str(tmp_path / "release"), "command": ["/bin/x"]}
    tls = {"certificate": certificate, "privateKey": private_pem(key)}
    assert "application.release" in refused(configuration({"application": own | tls}))
    assert "application.release needs a certificate" in refused(configuration({"application": own}))


def test_user_data_over_the_clouds_limit_is_named_before_a_machine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linode, "user_data_limit", 100)
    made = Program()
    with pytest.raises(pulumi.RunError, match=r"app-1: user data of .* over the cloud's limit of 100"):
        run(configuration(), program=made)
    assert not [name for name in made.resources if name.endswith("-instance")]
