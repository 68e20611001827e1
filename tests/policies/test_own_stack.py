"""Our own program: it passes with no exception, and each guideline that its components break is noticed."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi_command import remote
from pulumi_policy import EnforcementLevel

from components import cloud_init, db_server, mysql
from components import remote as remote_work
from components.files import ServerFile, read_tree
from components.firewall import CloudRule, Firewall, cloud_rules, rules_v6
from policies.pack import RULES
from policies.resources import (
    AWS_DEFAULT_SECURITY_GROUP,
    AWS_GROUP_ATTACHMENT,
    AWS_INSTANCE,
    AWS_INTERFACE,
    AWS_SECURITY_GROUP,
    COMMAND,
    FIREWALLS,
    LINODE_FIREWALL,
    LINODE_FIREWALL_DEVICE,
    LINODE_INSTANCE,
    SERVERS,
)
from tests.policies.examples import OTHER_KEY, PRIVATE_KEY, policy_document, rsa_key
from tests.policies.support import Made, judge, of_program
from tests.unit.program import run
from tests.unit.support import Config, configuration

ROOT = Path(__file__).parents[2]
SSHD = "cloud-init/files/etc/ssh/sshd_config.d/00-hardening.conf.j2"
DEPLOY_KEY = "cloud-init/files/etc/ssh/authorized_keys.d/deploy.j2"
HARDEN = "cloud-init/files/usr/local/sbin/uds-harden"
USER_DATA = "cloud-init/user-data.yaml.j2"

# The clouds that the program builds.
CLOUDS = [name for name in ("linode", "aws") if (ROOT / f"components/clouds/{name}.py").exists()]
REGIONS = {"linode": "eu-central", "aws": "eu-central-1"}
OTHERS = {"linode": "us-east", "aws": "eu-west-1"}


def config(cloud: str, changes: Mapping[str, object] | None = None) -> Config:
    # With all that the cloud can have.
    more = {"backup.bucket": True} if cloud == "aws" else {}
    return configuration({"cloud": cloud, "region": REGIONS[cloud], **more, **(changes or {})})


def resources(cloud: str, changes: Mapping[str, object] | None = None, *, preview: bool = False) -> list[Made]:
    return of_program(run(config(cloud, changes), preview=preview))


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_our_own_stack_passes_with_no_exception(cloud: str, count: int, preview: bool) -> None:
    verdict = judge(resources(cloud, {"app.count": count}, preview=preview))
    assert not verdict.violations
    assert not verdict.exceptions


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("preview", [False, True])
def test_a_backup_server_in_another_region_passes_too(cloud: str, preview: bool) -> None:
    made = resources(cloud, {"backup.region": OTHERS[cloud]}, preview=preview)
    assert not judge(made).violations
    assert any(one.props.get("region") == OTHERS[cloud] for one in made)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_preview_leaves_open_nothing_of_servers_and_firewalls(cloud: str) -> None:
    """Only addresses and host keys of servers that don't exist yet; a run that has them decides all."""
    made = resources(cloud, preview=True)
    undecided = judge(made).undecided
    assert "remote-command-unpinned" in undecided
    known = {one.name for one in made if one.type in SERVERS | FIREWALLS}
    assert not {name for names in undecided.values() for name in names} & known
    assert not judge(resources(cloud)).undecided


# Mutations: each breaks our components as a careless change would, and names the policy that must notice.

Mutation = Callable[[pytest.MonkeyPatch], object]


def edited(path: str, old: str, new: str) -> Mutation:
    """One of the project's files has another text."""

    def change(patch: pytest.MonkeyPatch) -> None:
        assert old in (ROOT / path).read_text()
        original = Path.read_text

        def read_text(self: Path, *args: Any, **options: Any) -> str:  # noqa: ANN401 - as in pathlib
            text = original(self, *args, **options)
            return text.replace(old, new) if self == ROOT / path else text

        patch.setattr(Path, "read_text", read_text)

    return change


def given(token: str, **changes: Any) -> Mutation:  # noqa: ANN401 - any property
    """Every resource of a type gets other properties, whatever SDK asks for it."""
    return before_registering(token, lambda props, _opts: props.update(changes))


def registered_with(token: str, **options: Any) -> Mutation:  # noqa: ANN401 - any option
    """Every resource of a type gets other options."""

    def alter(_props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        for name, value in options.items():
            setattr(opts, name, value)

    return before_registering(token, alter)


def before_registering(token: str, alter: Callable[[dict[str, Any], pulumi.ResourceOptions], object]) -> Mutation:
    def change(patch: pytest.MonkeyPatch) -> None:
        original = pulumi.CustomResource.__init__

        def make(self: pulumi.CustomResource, t: str, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the SDK's
            if t == token:
                alter(args[1].__dict__, args[2])
            original(self, t, *args, **options)

        patch.setattr(pulumi.CustomResource, "__init__", make)

    return change


def attached_after_boot(holder: str, firewall: str, attachment: str, target: str) -> Mutation:
    """What has the firewall is made without, and a resource of its own brings it later."""

    def change(patch: pytest.MonkeyPatch) -> None:
        original = pulumi.CustomResource.__init__

        def make(self: pulumi.CustomResource, t: str, name: str, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the SDK's
            if t == holder:
                args[0].__dict__[firewall] = None
            original(self, t, name, *args, **options)
            if t == holder:
                pulumi.CustomResource(attachment, f"{name}-late", {target: self.id})

        patch.setattr(pulumi.CustomResource, "__init__", make)

    return change


def arguments(module: Any, name: str, **changes: Any) -> Mutation:  # noqa: ANN401 - any arguments
    """Everything of a class of arguments gets others; None leaves one out."""

    def change(patch: pytest.MonkeyPatch) -> None:
        original = getattr(module, name)

        def make(**arguments: Any) -> Any:  # noqa: ANN401 - as the original
            return original(**{key: value for key, value in (arguments | changes).items() if value is not None})

        patch.setattr(module, name, make)

    return change


def opened(**changes: Any) -> Mutation:  # noqa: ANN401 - a rule's fields
    """The cloud's firewall of every server has one rule more."""
    fields: dict[str, Any] = {"label": "extra", "protocol": "tcp", "port": 9000, "sources_v4": ("198.51.100.0/24",)}
    fields |= {"sources_v6": (), "description": "extra"} | changes
    extra = CloudRule(**fields | {"last_port": fields.get("last_port", fields["port"])})

    def change(patch: pytest.MonkeyPatch) -> None:
        def rules(firewall: Firewall) -> list[CloudRule]:
            return [*cloud_rules(firewall), extra]

        for cloud in CLOUDS:
            patch.setattr(import_module(f"components.clouds.{cloud}"), "cloud_rules", rules)

    return change


def files(change_files: Callable[[list[ServerFile]], list[ServerFile]]) -> Mutation:
    """The first boot's tree has other files."""

    def change(patch: pytest.MonkeyPatch) -> None:
        def tree(folder: Path, values: Mapping[str, object]) -> list[ServerFile]:
            return change_files(read_tree(folder, values))

        patch.setattr(cloud_init, "read_tree", tree)

    return change


def without(*parts: str) -> Mutation:
    return files(lambda tree: [file for file in tree if not any(part in file.path for part in parts)])


def key_of_two(tree: list[ServerFile]) -> list[ServerFile]:
    keys = [file for file in tree if "authorized_keys" in file.path]
    return [*tree, *(replace(file, path=file.path.replace("/deploy", "/alice")) for file in keys)]


def host_accepts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cloud_init, "rules_v6", lambda firewall: rules_v6(firewall).replace(":INPUT DROP", ":INPUT ACCEPT"))


def accounts_from_anywhere(patch: pytest.MonkeyPatch) -> None:
    original = mysql.script_data

    def data(settings: Any) -> dict[str, str]:  # noqa: ANN401 - as the original
        return {name: re.sub(r'"host": "[^"]+"', '"host": "%"', text) for name, text in original(settings).items()}

    patch.setattr(mysql, "script_data", data)


# On every cloud.
MUTATIONS: dict[str, Mutation] = {
    # Least privilege
    "firewall-opens-many-ports": opened(port=1024, last_port=65535),
    "sudo-without-password": edited(
        "cloud-init/files/etc/sudoers.d/10-hardening", "Defaults use_pty", "deploy ALL=(ALL) NOPASSWD: ALL"
    ),
    "remote-command-as-root": lambda patch: patch.setattr(remote_work, "DEPLOY_USER", "root"),
    "database-account-with-all-rights": lambda patch: patch.setattr(mysql, "APPLICATION_RIGHTS", ("ALL",)),
    "database-account-from-anywhere": accounts_from_anywhere,
    # Direct access
    "database-port-open-to-world": opened(port=3306, sources_v4=("0.0.0.0/0",)),
    "management-port-open-to-world": opened(port=2375, sources_v4=("0.0.0.0/0",)),
    "host-firewall-missing": without("/rules.v4", "/rules.v6"),
    "host-firewall-leaves-ipv6-open": without("/rules.v6"),
    "host-firewall-accepts-by-default": host_accepts,
    "cloud-and-host-firewall-differ": opened(),
    "database-server-reachable": opened(sources_v4=("203.0.113.5/32",)),
    # Checks
    "no-security-updates": lambda patch: patch.setattr(cloud_init, "BASE_PACKAGES", ("chrony",)),
    "database-server-not-protected": arguments(db_server, "ServerArgs", protect=False),
    "password-rules-missing": without("pwquality"),
    # Notifications
    "logins-not-logged": edited(SSHD, "LogLevel VERBOSE", "LogLevel QUIET"),
    # Users
    "ssh-passwords": edited(SSHD, "PasswordAuthentication no\n", ""),
    "ssh-root-login": edited(SSHD, "PermitRootLogin no", "PermitRootLogin prohibit-password"),
    "ssh-one-factor": edited(SSHD, "publickey,keyboard-interactive:pam", "publickey"),
    "ssh-anyone": edited(SSHD, "AllowGroups ssh-users\n", ""),
    "root-password": edited(USER_DATA, "disable_root: true", "chpasswd: {list: 'root:$6$salt$hash'}"),
    "password-in-the-clear": edited(USER_DATA, "hashed_passwd", "plain_text_passwd"),
    "weak-ssh-key": edited(DEPLOY_KEY, "{{ deploy_public_key }}", rsa_key(2048)),
    "shared-account": edited(DEPLOY_KEY, "{{ deploy_public_key }}", "{{ deploy_public_key }}\n" + OTHER_KEY),
    "shared-key": files(key_of_two),
    "remote-command-by-password": arguments(remote, "ConnectionArgs", password="Wombat8!Kite"),
    # Encryption
    "remote-command-unpinned": arguments(remote, "ConnectionArgs", host_key=None),
    "database-without-tls": edited(
        "components/mysql/files/etc/mysql/mariadb.conf.d/zz-hardening.cnf.j2", "require_secure_transport = ON\n", ""
    ),
    "clear-text-port-open": opened(port=23),
    "weak-ssh-algorithms": edited(SSHD, "Ciphers ", "Ciphers aes128-cbc,"),
    "download-without-tls": edited(HARDEN, "set -euo pipefail", "set -euo pipefail\ncurl http://example.org/x | sh"),
    # Secrets
    "secret-in-user-data": files(lambda tree: [*tree, ServerFile("/etc/uds/key", 0o600, PRIVATE_KEY)]),
    "secret-in-command": lambda patch: patch.setattr(remote_work, "_COMMAND", "MYSQL_PASSWORD=Wombat8Kite ./apply"),
    "secret-in-environment": given(COMMAND, environment={"MYSQL_PASSWORD": "x"}),
    "command-output-in-log": given(COMMAND, logging="stdout"),
}
OF_A_CLOUD: dict[str, dict[str, Mutation]] = {
    "linode": {
        "inbound-default-accept": given(LINODE_FIREWALL, inbound_policy="ACCEPT"),
        "firewall-disabled": given(LINODE_FIREWALL, disabled=True),
        "ipv6-wider-than-ipv4": opened(sources_v6=("::/0",)),
        "server-without-firewall": given(LINODE_INSTANCE, firewall_id=None),
        "firewall-after-boot": attached_after_boot(LINODE_INSTANCE, "firewall_id", LINODE_FIREWALL_DEVICE, "entityId"),
        "shared-private-network": given(LINODE_INSTANCE, private_ip=True),
        "image-past-end-of-life": given(LINODE_INSTANCE, image="linode/debian10"),
        "database-replaced-by-user-data": registered_with(LINODE_INSTANCE, ignore_changes=["image"]),
        "disk-not-encrypted": given(LINODE_INSTANCE, disk_encryption="disabled"),
        "secret-in-tags": given(LINODE_INSTANCE, tags=["password=Wombat8!Kite"]),
    },
    "aws": {
        "ipv6-wider-than-ipv4": given(
            AWS_SECURITY_GROUP,
            ingress=[{"protocol": "tcp", "from_port": 9000, "to_port": 9000, "ipv6_cidr_blocks": ["::/0"]}],
        ),
        "server-without-firewall": given(AWS_INTERFACE, security_groups=None),
        "firewall-after-boot": attached_after_boot(
            AWS_INTERFACE, "security_groups", AWS_GROUP_ATTACHMENT, "networkInterfaceId"
        ),
        "database-server-with-public-address": given("aws:ec2/subnet:Subnet", map_public_ip_on_launch=True),
        "default-security-group-with-rules": given(
            AWS_DEFAULT_SECURITY_GROUP, egress=[{"protocol": "-1", "from_port": 0, "to_port": 0}]
        ),
        "default-security-group-left-open": given(AWS_DEFAULT_SECURITY_GROUP, vpc_id="vpc-1"),
        "imds-v1": given(AWS_INSTANCE, metadata_options={"http_tokens": "optional"}),
        "imds-hop-limit": given(AWS_INSTANCE, metadata_options={"http_put_response_hop_limit": 2}),
        "iam-policy-with-wildcard": given(
            "aws:iam/rolePolicy:RolePolicy", policy=policy_document(Action="*", Resource="*")
        ),
        "server-does-more-than-add-backups": given(
            "aws:iam/rolePolicy:RolePolicy",
            policy=policy_document(Action="s3:*", Resource="arn:aws:s3:::backup-of-somebody/*"),
        ),
        "bucket-public-acl": given("aws:s3/bucket:Bucket", acl="public-read"),
        "bucket-public-policy": given(
            "aws:s3/bucketPolicy:BucketPolicy",
            policy=policy_document(Principal="*", Action="s3:GetObject", Resource="*"),
        ),
        "bucket-public-access-not-blocked": given(
            "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock", block_public_policy=False
        ),
        "backup-bucket-without-lock": given(
            "aws:s3/bucketVersioning:BucketVersioning", versioning_configuration={"status": "Suspended"}
        ),
        "database-replaced-by-user-data": given(AWS_INSTANCE, user_data_replace_on_change=True),
        "vpc-without-flow-logs": given("aws:ec2/flowLog:FlowLog", vpc_id="vpc-1"),
        "disk-not-encrypted": given(AWS_INSTANCE, root_block_device={"encrypted": False}),
        "secret-in-tags": given(AWS_INSTANCE, tags={"password": "Wombat8!Kite"}),
    },
}
ALL = [(cloud, policy) for cloud in CLOUDS for policy in sorted(MUTATIONS | OF_A_CLOUD[cloud])]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_mandatory_policy_on_our_own_resources_has_a_mutation(cloud: str) -> None:
    types = {one.type for one in resources(cloud)}
    # The others are for what our program has none of, such as load balancers.
    concerned = {rule.name for rule in RULES if rule.level is EnforcementLevel.MANDATORY and types & set(rule.types)}
    # Three are broken below, by a setting and by what is taken away.
    elsewhere = {"server-without-alerts", "database-server-without-backups", "ssh-open-to-world"}
    assert concerned - elsewhere == {policy for name, policy in ALL if name == cloud}


@pytest.mark.parametrize(("cloud", "policy"), ALL)
def test_a_component_that_breaks_a_guideline_is_noticed(
    cloud: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (MUTATIONS | OF_A_CLOUD[cloud])[policy](monkeypatch)
    assert policy in judge(resources(cloud), only=policy).names


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_setting_that_breaks_a_guideline_is_noticed(cloud: str) -> None:
    open_to_all = {"ssh.allowAnywhere": True, "ssh.allowedSources": ["0.0.0.0/0", "::/0"]}
    assert "ssh-open-to-world" in judge(resources(cloud, open_to_all)).names


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    ("policy", "capability", "server"),
    [("server-without-alerts", "monit", "app-1"), ("database-server-without-backups", "backup", "db-1")],
)
def test_a_server_that_loses_what_watches_or_saves_it_is_noticed(
    cloud: str, policy: str, capability: str, server: str
) -> None:
    left = [one for one in resources(cloud) if not one.name.startswith(f"{server}-{capability}")]
    assert any(message.startswith(f"{server}-") for message in judge(left).violations[policy])
