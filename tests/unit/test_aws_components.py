"""The whole program on AWS, as the engine sees it. What is the same on every cloud is in test_components.py."""

import base64
import gzip
import io
import json
import tarfile
from functools import cache
from typing import Any

import pulumi
import pytest

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
from tests.unit.support import Config, configuration, secret_texts

COUNTS = (1, 3)
DEBIAN = "/aws/service/debian/release/13/latest/amd64"


def config(changes: dict[str, object] | None = None) -> Config:
    return configuration({"cloud": "aws", "region": "eu-central-1", **(changes or {})})


@cache
def program(count: int = 1, *, preview: bool = False) -> Program:
    return run(config({"app.count": count}), preview=preview)


def servers(count: int) -> list[str]:
    return [*(f"app-{number}" for number in range(1, count + 1)), *PRIVATE]


SERVERS = [(count, server) for count in COUNTS for server in servers(count)]


def rules(server: str, made: Program) -> set[tuple[Any, ...]]:
    """What may come in: protocol, first and last port, source."""
    found = set()
    for name, resource in made.of(server).items():
        if name.startswith("in-"):
            inputs = resource.inputs
            assert resource.type == "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
            assert inputs["securityGroupId"] == str(resource_id(f"{server}-firewall"))
            source = inputs.get("cidrIpv4") or inputs["cidrIpv6"]
            found.add((inputs["ipProtocol"], inputs["fromPort"], inputs["toPort"], source))
    return found


def id_of(name: str) -> str:
    return str(resource_id(name))


# The network


def test_the_network_has_a_public_and_a_private_half() -> None:
    made = program().resources
    assert made["aws-vpc"].inputs["cidrBlock"] == "10.20.0.0/24"
    assert made["aws-vpc"].inputs["assignGeneratedIpv6CidrBlock"] is True
    public, private = made["aws-public-subnet"].inputs, made["aws-private-subnet"].inputs
    assert (public["cidrBlock"], public["ipv6CidrBlock"]) == ("10.20.0.128/25", "2001:db8:a00::/64")
    # Without IPv6, nothing in it can be addressed from outside, and nothing leaves past the NAT gateway.
    assert (private["cidrBlock"], private.get("ipv6CidrBlock")) == ("10.20.0.0/25", None)
    # A zone of AWS's choice, the same for both.
    assert ("availabilityZone" in public, private["availabilityZone"]) == (False, "eu-central-1b")
    assert not {"mapPublicIpOnLaunch", "assignIpv6AddressOnCreation"} & {*public, *private}


def test_only_the_public_half_leads_to_the_internet() -> None:
    made = program().resources
    routes = {
        (
            made[name].inputs["routeTableId"],
            *sorted(value for key, value in made[name].inputs.items() if key != "region"),
        )
        for name in made
        if made[name].type == "aws:ec2/route:Route"
    }
    public, private, gateway = map(id_of, ("aws-public-routes", "aws-private-routes", "aws-internet-gateway"))
    assert {(table, *sorted({*values})) for table, *values in routes} == {
        (public, *sorted({"0.0.0.0/0", gateway, public})),
        (public, *sorted({"::/0", gateway, public})),
        (private, *sorted({"0.0.0.0/0", id_of("aws-nat-gateway"), private})),
    }
    for which in ("public", "private"):
        association = made[f"aws-{which}-subnet-routes"].inputs
        assert association["routeTableId"] == id_of(f"aws-{which}-routes")
        assert association["subnetId"] == id_of(f"aws-{which}-subnet")
    assert made["aws-nat-gateway"].inputs["subnetId"] == id_of("aws-public-subnet")


def test_nobody_is_in_the_default_group_and_flows_are_logged() -> None:
    made = program().resources
    assert not {"ingress", "egress"} & set(made["aws-default-security-group"].inputs)
    flows = made["aws-flow-log"].inputs
    assert (flows["vpcId"], flows["trafficType"]) == (id_of("aws-vpc"), "ALL")
    assert flows["logDestination"] == "arn of aws-flow-log-group"
    [statement] = json.loads(made["aws-flow-log-policy"].inputs["policy"])["Statement"]
    assert statement["Resource"] == "arn of aws-flow-log-group:*"


# A backup server in another region


def test_elsewhere_there_is_a_public_subnet_and_nothing_else() -> None:
    made = run(config({"backup.region": "eu-west-1"}))
    more = set(made.resources) - set(program().resources)
    assert {name for name in more if name.startswith("aws-")} == {
        f"aws-elsewhere-{what}"
        for what in (
            *("vpc", "default-security-group", "internet-gateway"),
            *("public-subnet", "public-routes", "public-route-v4", "public-route-v6", "public-subnet-routes"),
            *("flow-log", "flow-log-group", "flow-log-policy", "flow-log-role"),
        )
    }
    there = {name for name, one in made.resources.items() if one.inputs.get("region") == "eu-west-1"}
    assert there == {
        name
        for name in made.resources
        if name.startswith(("aws-elsewhere-", "backup-1-")) and "region" in made.resources[name].inputs
    }
    instance = made.of("backup-1")["instance"].inputs
    assert instance["ami"].endswith(" in eu-west-1")
    interface = made.of("backup-1")["interface"].inputs
    assert (interface["subnetId"], interface["privateIps"]) == (id_of("aws-elsewhere-public-subnet"), ["10.20.0.134"])


def test_elsewhere_the_database_server_comes_from_the_nat_gateway() -> None:
    made = run(config({"backup.region": "eu-west-1"}))
    nat = public_ip("aws-nat")
    assert rules("backup-1", made) == {
        *(("tcp", 22, 22, source) for source in ("198.51.100.7/32", "2001:db8:1::/64")),
        ("tcp", 22, 22, f"{nat}/32"),
    }
    assert made.outputs["servers"]["db-1"]["outwardIp"] == nat
    assert made.outputs["servers"]["backup-1"]["publicIp"] == public_ip("backup-1")


def test_the_bucket_is_where_the_backups_are() -> None:
    made = run(config({"backup.bucket": True, "backup.region": "eu-west-1"})).resources
    regions = {one.inputs["region"] for name, one in made.items() if "bucket" in name and "region" in one.inputs}
    assert regions == {"eu-west-1"}


# Machines and firewalls


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_a_machine_has_its_firewall_address_and_way_out_before_it_is(count: int, server: str) -> None:
    made, resources = program(count).of(server), program(count).resources
    interface, instance = made["interface"], made["instance"]
    assert interface.inputs["securityGroups"] == [id_of(f"{server}-firewall")]
    assert instance.inputs["primaryNetworkInterface"] == {"networkInterfaceId": id_of(f"{server}-interface")}
    rules_ = [one for name, one in made.items() if name.startswith(("in-", "out-"))]
    which = "private" if server in PRIVATE else "public"
    ways = [resources[f"aws-{which}-route-v4"], resources[f"aws-{which}-subnet-routes"]]
    assert {one.urn for one in (interface, *rules_, *ways)} <= instance.dependencies
    if which == "public":
        assert made["address"].urn in instance.dependencies
        assert made["address"].inputs["networkInterface"] == id_of(f"{server}-interface")


@pytest.mark.parametrize(
    ("server", "address"),
    [("app-1", "10.20.0.139"), ("app-2", "10.20.0.140"), ("app-3", "10.20.0.141"), *PRIVATE.items()],
)
def test_a_machine_has_a_fixed_address_in_the_right_half(server: str, address: str) -> None:
    inputs = program(3).of(server)["interface"].inputs
    assert inputs["privateIps"] == [address]
    assert inputs["subnetId"] == id_of(f"aws-{'private' if server in PRIVATE else 'public'}-subnet")
    # And no other that the world could know.
    assert inputs["ipv6AddressCount"] == (0 if server in PRIVATE else 1)
    assert ("address" in program(3).of(server)) == (server not in PRIVATE)
    assert "associatePublicIpAddress" not in program(3).of(server)["instance"].inputs


@pytest.mark.parametrize("count", COUNTS)
def test_the_cloud_lets_in_what_the_role_needs_and_nothing_else(count: int) -> None:
    made = program(count)
    apps = [f"10.20.0.{138 + number}/32" for number in range(1, count + 1)]
    for server in set(servers(count)) - PRIVATE.keys():
        assert rules(server, made) == {
            ("tcp", 22, 22, "198.51.100.7/32"),
            ("tcp", 22, 22, "2001:db8:1::/64"),
            *(("tcp", port, port, source) for port in (80, 443) for source in ("0.0.0.0/0", "::/0")),
        }
    assert rules("db-1", made) == {("tcp", 22, 22, apps[0]), *(("tcp", 3306, 3306, app) for app in apps)}
    assert rules("backup-1", made) == {("tcp", 22, 22, apps[0]), ("tcp", 22, 22, f"{PRIVATE['db-1']}/32")}
    for server in servers(count):
        group = made.of(server)["firewall"].inputs
        # Inline rules and rules that are resources undo each other.
        assert not {"ingress", "egress"} & set(group)
        assert group["name"] == f"{STACK}-{server}"
        for family, key, net in (("v4", "cidrIpv4", "0.0.0.0/0"), ("v6", "cidrIpv6", "::/0")):
            out = made.of(server)[f"out-{family}"].inputs
            assert (out["ipProtocol"], out[key]) == ("-1", net)
            assert not {"fromPort", "toPort"} & set(out)


def test_no_resource_has_a_name_that_pulumi_would_cut() -> None:
    assert not [name for name in program().resources if "::" in name]


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_an_instance_is_hardened(count: int, server: str) -> None:
    instance = program(count).of(server)["instance"]
    assert instance.inputs["metadataOptions"] == {
        "httpEndpoint": "enabled",
        "httpTokens": "required",
        "httpPutResponseHopLimit": 1,
    }
    disk = instance.inputs["rootBlockDevice"]
    assert (disk["encrypted"], disk["volumeType"]) == (True, "gp3")
    assert "keyName" not in instance.inputs


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_only_what_holds_data_is_protected_and_no_server_is_replaced_by_a_new_file(count: int, server: str) -> None:
    instance = program(count).of(server)["instance"]
    assert instance.protect == (server in PRIVATE)
    assert instance.inputs["disableApiTermination"] == (server in PRIVATE)
    assert set(instance.ignored) == {"ami", "userDataBase64"}
    assert "userDataReplaceOnChange" not in instance.inputs


@pytest.mark.parametrize(("count", "server"), SERVERS)
def test_user_data_is_a_secret_and_the_servers_own(count: int, server: str) -> None:
    data = program(count).of(server)["instance"].inputs["userDataBase64"]
    assert isinstance(data, Secret)
    assert f"\nhostname: {server}\n" in gzip.decompress(base64.b64decode(data.value)).decode()


def test_region_and_sizes_are_the_settings() -> None:
    made = run(config({"region": "eu-north-1", "app.size": "t3.small", "database.size": "m7i.large"}))
    for server, size in (("app-1", "t3.small"), ("db-1", "m7i.large")):
        assert made.of(server)["instance"].inputs["instanceType"] == size
    ours = [one for one in made.resources.values() if one.type.startswith("aws:") and "aws:iam/" not in one.type]
    assert {one.inputs["region"] for one in ours} == {"eu-north-1"}


def test_the_image_is_the_newest_of_its_makers_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program().of("db-1")["instance"].inputs["ami"] == f"ami of {DEBIAN} in eu-central-1"

    def asked(*_: object) -> None:
        raise AssertionError("a preview needs the network")

    monkeypatch.setattr("tests.unit.program.Cloud.call", asked)
    made = run(config({"imageId": "ami-0123456789abcdef0"}), preview=True)
    assert made.of("db-1")["instance"].inputs["ami"] == "ami-0123456789abcdef0"


# The bucket


@cache
def with_bucket(*, server: bool = True, preview: bool = False) -> Program:
    return run(config({"backup.bucket": True, "backup.server": server}), preview=preview)


BUCKET = "backup-bucket-1a2b3c4"


def test_without_one_there_is_nothing_of_it() -> None:
    made = program().resources
    assert not [one.name for one in made.values() if one.type.startswith("aws:s3/") or "bucket" in one.name]
    assert not [one.name for one in made.values() if "iamInstanceProfile" in one.inputs]


def test_what_arrives_is_locked_for_as_long_as_it_is_kept() -> None:
    made = run(config({"backup.bucket": True, "backup.bucketDays": 90})).of("backup-bucket")
    bucket = with_bucket().resources["backup-bucket"]
    assert bucket.protect
    assert (bucket.inputs["objectLockEnabled"], bucket.inputs["forceDestroy"]) == (True, False)
    # Pulumi's name is the only one in the world.
    assert "bucket" not in bucket.inputs
    assert made["versions"].inputs["versioningConfiguration"] == {"status": "Enabled"}
    assert made["lock"].inputs["rule"] == {"defaultRetention": {"mode": "GOVERNANCE", "days": 90}}
    [rule] = made["lifecycle"].inputs["rules"]
    assert (rule["status"], rule["filter"]) == ("Enabled", {"prefix": ""})
    assert rule["expiration"] == {"days": 90}
    assert rule["abortIncompleteMultipartUpload"] == {"daysAfterInitiation": 2}
    # A version that another one was put over stays locked: only when it isn't any more, this counts.
    assert rule["noncurrentVersionExpiration"] == {"noncurrentDays": 1}
    for part in ("versions", "lock", "lifecycle", "access", "ownership", "encryption", "policy"):
        assert made[part].inputs["bucket"] == BUCKET
        assert made[part].inputs["region"] == "eu-central-1"


def test_nobody_else_reaches_it_and_nobody_in_the_clear() -> None:
    made = with_bucket().of("backup-bucket")
    block = made["access"].inputs
    names = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
    assert [block[name] for name in names] == [True] * 4
    assert made["ownership"].inputs["rule"] == {"objectOwnership": "BucketOwnerEnforced"}
    [rule] = made["encryption"].inputs["rules"]
    assert rule["applyServerSideEncryptionByDefault"] == {"sseAlgorithm": "AES256"}
    [statement] = json.loads(made["policy"].inputs["policy"])["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
    assert statement["Resource"] == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_database_server_may_add_and_do_nothing_else_and_no_other_may_anything() -> None:
    made = with_bucket().resources
    [statement] = json.loads(made["backup-bucket-writer-rights"].inputs["policy"])["Statement"]
    assert statement == {"Effect": "Allow", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    [trust] = json.loads(made["backup-bucket-writer"].inputs["assumeRolePolicy"])["Statement"]
    assert (trust["Action"], trust["Principal"]) == ("sts:AssumeRole", {"Service": "ec2.amazonaws.com"})
    # Of this role, there is this policy only.
    policies = {one.name for one in made.values() if one.inputs.get("role") == "backup-bucket-writer"}
    assert policies == {"backup-bucket-writer-rights", "backup-bucket-writer-profile"}
    profiles = {
        one.name: one.inputs.get("iamInstanceProfile") for one in made.values() if one.name.endswith("-instance")
    }
    assert profiles == {
        "app-1-instance": None,
        "db-1-instance": "backup-bucket-writer-profile-1a2b3c4",
        "backup-1-instance": None,
    }


def test_a_bucket_that_comes_later_replaces_nothing() -> None:
    before, after = program().resources, with_bucket().resources
    changed = {
        (name, key)
        for name, one in before.items()
        for key in one.inputs.keys() | after[name].inputs.keys()
        if one.inputs.get(key) != after[name].inputs.get(key) and key not in after[name].ignored
    }
    scripts = {(f"db-1-{what}-apply", key) for what in ("hardening", "backup") for key in ("stdin", "create")}
    assert changed == {("db-1-instance", "iamInstanceProfile"), *scripts}


@pytest.mark.parametrize("server", [True, False])
def test_backups_begin_when_their_places_are_there_and_the_server_knows_them(*, server: bool) -> None:
    made = with_bucket(server=server)
    command = made.resources["db-1-backup-apply"]
    parts = {one.urn for one in made.of("backup-bucket").values()} | {made.resources["backup-bucket"].urn}
    role = made.resources["backup-bucket-writer"].urn
    assert parts - {role} <= command.dependencies
    files = unpacked_files(command)
    assert json.loads(files["data/bucket.json"]) == {"name": BUCKET, "region": "eu-central-1"}
    assert json.loads(files["files/etc/uds/backup/config.json"])["address"] == ("10.20.0.6" if server else None)
    assert bool(files["files/etc/uds/backup/key"]) == server
    assert bool(files["data/known_hosts"]) == server
    assert ("backup-1-instance" in made.resources) == server
    assert made.outputs["backupBucket"] == {"name": BUCKET, "region": "eu-central-1"}
    assert "backupBucket" not in program().outputs
    packages = unpacked_files(made.resources["db-1-hardening-apply"])["files/etc/uds/packages"].split()
    assert {"age", "zstd", "python3-boto3"} <= set(packages)
    others = unpacked_files(program().resources["db-1-hardening-apply"])["files/etc/uds/packages"].split()
    assert "python3-boto3" not in others


def unpacked_files(command: Registration) -> dict[str, str]:
    """What a command brings to a server, by its names in the bundle."""
    payload = str(plain(command.inputs["stdin"])).partition("\n")[2]
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(payload))) as bundle:
        found = {member.name: bundle.extractfile(member) for member in bundle if member.isfile()}
        return {name: file.read().decode() for name, file in found.items() if file}


# Commands, secrets, preview, growth, outputs, refusals


@pytest.mark.parametrize("count", COUNTS)
def test_every_connection_goes_the_right_way(count: int) -> None:
    for command in program(count).commands:
        server = "-".join(command.name.split("-")[:2])
        connection = plain(command.inputs["connection"])
        if command.name.endswith("-reachable"):
            assert (connection["host"], connection["hostKey"]) == (public_ip("app-1"), host_key("app-1"))
            assert f"/dev/tcp/{PRIVATE[server]}/22" in command.inputs["create"]
        elif server in PRIVATE:
            assert connection["host"] == PRIVATE[server]
            assert connection["proxy"]["host"] == public_ip("app-1")
        else:
            assert connection["host"] == public_ip(server)
            assert "proxy" not in connection


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


@pytest.mark.parametrize("count", COUNTS)
def test_a_preview_of_a_new_stack_knows_all_that_policies_ask_for(count: int) -> None:
    made, real = program(count, preview=True), program(count)
    assert made.resources.keys() == real.resources.keys()
    for name, resource in made.resources.items():
        if resource.type.startswith("aws:"):
            assert unknown(resource) == {key for key in resource.inputs if depends_on_others(real.resources[name], key)}
    # The host key that backups are sent to, and which OpenSSH a server has, are known when there are machines.
    hardened = {name for name in made.resources if name.endswith("-hardening-apply")}
    unknowns = {command.name for command in made.commands if command.inputs["create"] == UNKNOWN}
    assert unknowns == {"db-1-backup-apply", *hardened}


def unknown(resource: Registration) -> set[str]:
    return {key for key, value in resource.inputs.items() if UNKNOWN in texts(plain(value))}


def depends_on_others(resource: Registration, key: str) -> bool:
    """Whether what a cloud makes up is in the value."""
    made_up = {id_of(name) for name in program(3).resources} | {"2001:db8:a00::/64", "eu-central-1b"}
    found = list(texts(plain(resource.inputs[key])))
    return any(text in made_up or "arn of" in text or text.startswith("for ") for text in found) or key == "role"


def test_more_servers_are_only_more() -> None:
    one, three = program(1), program(3)
    assert {resource.urn for resource in one.resources.values()} < {
        resource.urn for resource in three.resources.values()
    }
    changed = {
        (name, key)
        for name, before in one.resources.items()
        for key in before.inputs
        if before.inputs[key] != three.resources[name].inputs[key] and key not in before.ignored
    }
    # In the cloud, rules come that let them into the database; nothing that is there changes.
    assert changed == {(f"db-1-{what}-apply", key) for what in ("hardening", "mysql") for key in ("stdin", "create")}


@pytest.mark.parametrize("count", COUNTS)
def test_the_outputs_are_the_contract(count: int) -> None:
    found = program(count).outputs
    for number in range(1, count + 1):
        name = f"app-{number}"
        assert found["servers"][name] == {
            "role": "app",
            "publicIp": public_ip(name),
            "privateIp": f"10.20.0.{138 + number}",
            "hostKey": host_key(name),
        }
    # It has no public address, and says so by saying none.
    assert found["servers"]["db-1"] == {"role": "db", "privateIp": "10.20.0.5", "hostKey": host_key("db-1")}
    assert found["database"]["host"] == "10.20.0.5"


@pytest.mark.parametrize(
    ("family", "sources"),
    [
        ("IPv4", [f"198.51.{number}.0/24" for number in range(0, 120, 2)]),
        ("IPv6", [f"2001:db8:{number:x}::/48" for number in range(0, 120, 2)]),
    ],
)
def test_more_sources_than_a_security_group_holds_are_named_before_it_is_made(family: str, sources: list[str]) -> None:
    made = Program()
    with pytest.raises(pulumi.RunError, match=rf"ssh\.allowedSources: 62 {family} source networks .* 60 at most"):
        run(config({"ssh.allowedSources": sources}), program=made)
    assert "app-1-firewall" not in made.resources
    # With 80 and 443 for everyone, this is what fits.
    assert "app-1-firewall" in run(config({"ssh.allowedSources": sources[:58]})).resources
