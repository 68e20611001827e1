"""Our own program: it passes with no exception, and each guideline that its components break is noticed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi_command import remote
from pulumi_policy import EnforcementLevel

import components.clouds.linode
from components import cloud_init, db_server, mysql
from components import remote as remote_work
from components.catalogue import IMAGES
from components.files import ServerFile, read_tree
from components.firewall import CloudRule, Firewall, cloud_rules, rules_v6
from policies.pack import RULES
from policies.policy import Rule
from policies.resources import COMMAND, LINODE_FIREWALL, LINODE_FIREWALL_DEVICE, LINODE_INSTANCE
from tests.policies.examples import OTHER_KEY, PRIVATE_KEY, rsa_key
from tests.policies.pending import PENDING
from tests.policies.support import Made, judge, of_program
from tests.unit.program import run
from tests.unit.support import Config, configuration

ROOT = Path(__file__).parents[2]
SSHD = "cloud-init/files/etc/ssh/sshd_config.d/00-hardening.conf.j2"
HARDEN = "cloud-init/files/usr/local/sbin/uds-harden"


def resources(config: Config | None = None, *, preview: bool = False) -> list[Made]:
    return of_program(run(config or configuration({"app.count": 2}), preview=preview))


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_our_own_stack_passes_with_no_exception(count: int, preview: bool) -> None:
    verdict = judge(resources(configuration({"app.count": count}), preview=preview))
    assert verdict.violations.keys() == PENDING.keys(), verdict.violations
    assert not verdict.exceptions


def test_a_preview_leaves_open_only_what_is_done_over_ssh() -> None:
    """The addresses and host keys of servers that don't exist yet; a run that has them decides all."""
    made = resources(preview=True)
    undecided = judge(made).undecided
    assert "remote-command-unpinned" in undecided
    commands = {one.name for one in made if one.type == COMMAND}
    assert {name for names in undecided.values() for name in names} <= commands
    assert not judge(resources()).undecided


# Mutations: each breaks our components as a careless change would, and names the policy that must notice.

Mutation = Callable[[pytest.MonkeyPatch], Config | None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(policy: str) -> Callable[[Mutation], Mutation]:
    def add(change: Mutation) -> Mutation:
        MUTATIONS[policy] = change
        return change

    return add


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


def given(token: str, *, ignore_changes: Sequence[str] | None = None, **changes: Any) -> Mutation:  # noqa: ANN401 - any property
    """Every resource of a type gets other properties, whatever SDK asks for it."""

    def change(patch: pytest.MonkeyPatch) -> None:
        original = pulumi.CustomResource.__init__

        def make(self: pulumi.CustomResource, t: str, name: str, props: Any, opts: pulumi.ResourceOptions) -> None:  # noqa: ANN401 - the SDK's
            if t == token:
                props.__dict__.update(changes)
                opts.ignore_changes = opts.ignore_changes if ignore_changes is None else list(ignore_changes)
            original(self, t, name, props, opts)

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
        original = cloud_rules

        def rules(firewall: Firewall) -> list[CloudRule]:
            return [*original(firewall), extra]

        patch.setattr(components.clouds.linode, "cloud_rules", rules)

    return change


def files(change_files: Callable[[list[ServerFile]], list[ServerFile]]) -> Mutation:
    """The first boot's tree has other files."""

    def change(patch: pytest.MonkeyPatch) -> None:
        original = read_tree

        def tree(folder: Path, values: Mapping[str, object]) -> list[ServerFile]:
            return change_files(original(folder, values))

        patch.setattr(cloud_init, "read_tree", tree)

    return change


def without(*parts: str) -> Mutation:
    return files(lambda tree: [file for file in tree if not any(part in file.path for part in parts)])


MUTATIONS |= {
    # Least privilege
    "firewall-opens-many-ports": opened(port=1024, last_port=65535),
    "sudo-without-password": edited(
        "cloud-init/files/etc/sudoers.d/10-hardening", "Defaults use_pty", "deploy ALL=(ALL) NOPASSWD: ALL"
    ),
    "remote-command-as-root": lambda patch: patch.setattr(remote_work, "DEPLOY_USER", "root"),
    "database-account-with-all-rights": lambda patch: patch.setattr(mysql, "APPLICATION_RIGHTS", ("ALL",)),
    # Direct access
    "database-port-open-to-world": opened(port=3306, sources_v4=("0.0.0.0/0",)),
    "ssh-open-to-world": lambda _patch: configuration(
        {"ssh.allowAnywhere": True, "ssh.allowedSources": ["0.0.0.0/0", "::/0"]}
    ),
    "management-port-open-to-world": opened(port=2375, sources_v4=("0.0.0.0/0",)),
    "inbound-default-accept": lambda patch: patch.setattr(components.clouds.linode, "CLOUD_INBOUND_POLICY", "ACCEPT"),
    "firewall-disabled": given(LINODE_FIREWALL, disabled=True),
    "ipv6-wider-than-ipv4": opened(sources_v6=("::/0",)),
    "server-without-firewall": given(LINODE_INSTANCE, firewall_id=None),
    "host-firewall-missing": without("/rules.v4", "/rules.v6"),
    "host-firewall-leaves-ipv6-open": without("/rules.v6"),
    "cloud-and-host-firewall-differ": opened(),
    "database-server-reachable": opened(sources_v4=("203.0.113.5/32",)),
    "shared-private-network": given(LINODE_INSTANCE, private_ip=True),
    # Checks
    "no-security-updates": lambda patch: patch.setattr(cloud_init, "BASE_PACKAGES", ("chrony",)),
    "image-past-end-of-life": lambda patch: patch.setitem(
        IMAGES, "debian13", replace(IMAGES["debian13"], linode="linode/debian10")
    ),
    "database-server-not-protected": arguments(db_server, "ServerArgs", protect=False),
    "database-replaced-by-user-data": given(LINODE_INSTANCE, ignore_changes=["image"]),
    "password-rules-missing": without("pwquality"),
    # Notifications
    "logins-not-logged": edited(SSHD, "LogLevel VERBOSE", "LogLevel QUIET"),
    # Users
    "ssh-passwords": edited(SSHD, "PasswordAuthentication no\n", ""),
    "ssh-root-login": edited(SSHD, "PermitRootLogin no", "PermitRootLogin prohibit-password"),
    "ssh-one-factor": edited(SSHD, "publickey,keyboard-interactive:pam", "publickey"),
    "ssh-anyone": edited(SSHD, "AllowGroups ssh-users\n", ""),
    "root-password": given(LINODE_INSTANCE, root_pass="Wombat8!Kite99"),
    "password-in-the-clear": edited("cloud-init/user-data.yaml.j2", "hashed_passwd", "plain_text_passwd"),
    "weak-ssh-key": given(LINODE_INSTANCE, authorized_keys=[rsa_key(2048)]),
    "shared-account": edited(
        "cloud-init/files/etc/ssh/authorized_keys.d/deploy.j2",
        "{{ deploy_public_key }}",
        "{{ deploy_public_key }}\n" + OTHER_KEY,
    ),
    "shared-key": files(
        lambda tree: [
            *tree,
            *(replace(file, path=file.path.replace("/deploy", "/alice")) for file in tree if "authorized" in file.path),
        ]
    ),
    "remote-command-by-password": arguments(remote, "ConnectionArgs", password="Wombat8!Kite"),
    # Encryption
    "database-without-tls": edited(
        "components/mysql/files/etc/mysql/mariadb.conf.d/zz-hardening.cnf.j2", "require_secure_transport = ON\n", ""
    ),
    "clear-text-port-open": opened(port=23),
    "weak-ssh-algorithms": edited(SSHD, "Ciphers ", "Ciphers aes128-cbc,"),
    "download-without-tls": edited(HARDEN, "set -euo pipefail", "set -euo pipefail\ncurl http://example.org/x | sh"),
    "disk-not-encrypted": given(LINODE_INSTANCE, disk_encryption="disabled"),
    # Secrets
    "secret-in-user-data": files(lambda tree: [*tree, ServerFile("/etc/uds/key", 0o600, PRIVATE_KEY)]),
    "secret-in-tags": given(LINODE_INSTANCE, tags=["password=Wombat8!Kite"]),
    "secret-in-command": lambda patch: patch.setattr(remote_work, "_COMMAND", "MYSQL_PASSWORD=Wombat8Kite ./apply"),
    "secret-in-environment": given(COMMAND, environment={"MYSQL_PASSWORD": "x"}),
    "command-output-in-log": given(COMMAND, logging="stdout"),
    "remote-command-unpinned": arguments(remote, "ConnectionArgs", host_key=None),
}


@mutation("database-account-from-anywhere")
def _from_anywhere(patch: pytest.MonkeyPatch) -> None:
    original = mysql.script_data

    def data(settings: Any) -> dict[str, str]:  # noqa: ANN401 - as the original
        return {name: text.replace("10.20.0.11", "%") for name, text in original(settings).items()}

    patch.setattr(mysql, "script_data", data)


@mutation("firewall-after-boot")
def _after_boot(patch: pytest.MonkeyPatch) -> None:
    original = pulumi.CustomResource.__init__

    def make(self: pulumi.CustomResource, t: str, name: str, props: Any, opts: Any = None) -> None:  # noqa: ANN401 - the SDK's
        if t == LINODE_INSTANCE:
            props.__dict__["firewall_id"] = None
        original(self, t, name, props, opts)
        if t == LINODE_INSTANCE:
            pulumi.CustomResource(LINODE_FIREWALL_DEVICE, f"{name}-device", {"entityId": self.id, "firewallId": 7})

    patch.setattr(pulumi.CustomResource, "__init__", make)


@mutation("host-firewall-accepts-by-default")
def _host_accepts(patch: pytest.MonkeyPatch) -> None:
    original = rules_v6
    patch.setattr(cloud_init, "rules_v6", lambda firewall: original(firewall).replace(":INPUT DROP", ":INPUT ACCEPT"))


def concerned() -> list[Rule]:
    """The mandatory policies on what our program makes; the others are for what it has none of, such as buckets."""
    types = {one.type for one in resources()}
    return [rule for rule in RULES if rule.level is EnforcementLevel.MANDATORY and types & set(rule.types)]


def test_every_mandatory_policy_on_our_own_resources_has_a_mutation() -> None:
    # What isn't there is taken away below.
    absent = {"server-without-alerts", "database-server-without-backups"}
    assert {rule.name for rule in concerned()} - absent == MUTATIONS.keys()


@pytest.mark.parametrize("policy", sorted(MUTATIONS))
def test_a_component_that_breaks_a_guideline_is_noticed(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MUTATIONS[policy](monkeypatch)
    assert policy in judge(resources(config), only=policy).names


@pytest.mark.parametrize(
    ("policy", "capability", "server"),
    [("server-without-alerts", "monit", "app-1"), ("database-server-without-backups", "backup", "db-1")],
)
def test_a_server_that_loses_what_watches_or_saves_it_is_noticed(policy: str, capability: str, server: str) -> None:
    left = [one for one in resources() if not one.name.startswith(f"{server}-{capability}")]
    assert any(message.startswith(f"{server}-") for message in judge(left).violations[policy])
