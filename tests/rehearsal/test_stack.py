"""The stack as a whole: nothing happens without a reason, and what changes, changes in place."""

import json
import os
import re
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from components.settings import parse
from rehearsal.network import PUBLIC
from rehearsal.realm import KINDS
from rehearsal.workspace import Workspace
from tests.rehearsal.conftest import ROOT, Rehearsal, one_stack
from tests.rehearsal.support import Project, boots, changed, contents, resources

SSH_IS_SSH = "once connected, which test_ssh.py shows on both, a server is a server"
SERVERS = {"app-1": "app", "db-1": "db", "backup-1": "backup"}


@pytest.fixture(scope="module")
def up(up_with_backups: Rehearsal) -> Rehearsal:
    """The whole of it."""
    return up_with_backups


def test_a_second_run_changes_nothing(up: Rehearsal) -> None:
    before, booted = resources(up), boots(up.realm())
    up.make("preview", "--expect-no-changes")
    up.make("up", "--expect-no-changes")
    assert changed(before, resources(up)) == set()
    assert boots(up.realm()) == booted


@one_stack("what is damaged is Linode's; that the policies see the same on AWS is in tests/policies")
def test_the_policies_find_in_the_state_what_they_find_in_a_preview(up: Rehearsal, tmp_path: Path) -> None:
    """`pulumi policy analyze`, as of a stack that was made before anyone had policies."""
    state = json.loads(up.pulumi("stack", "export", "--show-secrets"))
    file = tmp_path / "state.json"

    def analyzed() -> tuple[int, set[str]]:
        file.write_text(json.dumps(state))
        command = ["pulumi", "policy", "analyze", "--policy-pack", str(ROOT / "policies"), "--file", str(file)]
        done = subprocess.run(
            command,
            env=up.stack().environment,
            cwd=up.workspace,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, set(re.findall(r"\[(?:mandatory|advisory)\] \[severity: \w+\]\s+(\S+)", done.stdout))

    assert analyzed() == (0, set())

    named = {resource["urn"].rpartition("::")[2]: resource for resource in state["deployment"]["resources"]}
    named["db-1-instance"]["protect"] = False
    for values in ("inputs", "outputs"):
        named["db-1-firewall"][values]["inboundPolicy"] = "ACCEPT"
        named["db-1-accounts-apply"][values]["logging"] = "stdout"
        connection = named["db-1-mysql-apply"][values]["connection"]
        login = json.loads(connection["plaintext"]) | {"user": "root"}
        login.pop("hostKey")
        connection["plaintext"] = json.dumps(login)
    status, found = analyzed()
    assert status != 0
    assert found >= {
        "inbound-default-accept",
        "database-server-reachable",
        "database-server-not-protected",
        "command-output-in-log",
        # What a preview of new servers can't know.
        "remote-command-as-root",
        "remote-command-unpinned",
    }


def greeting(address: IPv4Address, port: int) -> str:
    """A command that prints what a server says first, and nothing if nobody is reached."""
    return f"timeout 2 bash -c 'cat < /dev/tcp/{address}/{port}' 2>/dev/null | tr -cd '[:print:]'"


def test_application_servers_come_and_go_beside_the_others(up: Rehearsal) -> None:
    realm, settings = up.realm(), parse(up.stack().config())
    before, booted = resources(up), boots(realm)
    address = settings.public_subnet[12]
    try:
        up.configure("app", {"count": 2})
        # Policies know that the servers that are there are told of it.
        up.make("preview")
        up.make("up")
        up.reconnect()
        after = resources(up)
        # Of what was there, only the database server has to know: its firewalls, and its accounts.
        changes = {"db-1-hardening-apply", "db-1-mysql-apply"}
        # Where a rule is no resource of its own, their firewall changes; elsewhere a rule comes.
        assert changed(before, after) & before.keys() - {"db-1-firewall"} == changes
        assert {name: boots(realm)[name] for name in booted} == booted
        facts = up.outputs()["servers"]["app-2"]
        assert (facts["role"], facts["privateIp"]) == ("app", str(address))
        assert "P NP" in up.sudo("app-2", "passwd -S root; passwd -S deploy; echo P NP").stdout
        assert "MariaDB" in up.ssh("app-2", greeting(settings.database_address, 3306)).stdout
        # It is an application server, and no way in to the private ones.
        assert up.ssh("app-2", greeting(settings.database_address, 22), check=False).stdout == ""
        assert up.ssh("app-1", greeting(settings.database_address, 22), check=False).stdout.startswith("SSH-2.0")
    finally:
        up.configure("app", {"count": 1})
        up.make("up")
        up.reconnect()
    assert changed(before, resources(up)) == set()
    assert boots(realm) == booted
    assert "app-2" not in up.outputs()["servers"]
    # Whoever gets the address next gets nothing with it.
    [nic] = [nic for nic in up.machine("app-1").nics if nic.network != PUBLIC]
    with realm.neighbour(int(nic.network), f"{address}/{settings.public_subnet.prefixlen}") as next_owner:
        for gateway in nic.gateways[:1]:
            next_owner.run(["ip", "route", "add", "default", "via", gateway])
        ask = ["sh", "-c", greeting(settings.database_address, 3306)]
        assert next_owner.run(ask).stdout == ""
        with realm.cloud_firewall_off(up.machine("db-1")):
            assert next_owner.run(ask).stdout == ""


def test_a_hardened_file_changes_in_place(up: Rehearsal, tmp_path: Path) -> None:
    realm = up.realm()
    before, booted = resources(up), boots(realm)
    project = Project.copied(tmp_path / "project")
    banner = project.folder / "cloud-init/files/etc/issue.net"
    original = banner.read_text()
    banner.write_text(original + "Changed.\n")
    files = contents(project.folder, leave_out=[".venv"])
    try:
        done = project.drive("up", up.name, environment=up.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert changed(before, resources(up)) == {f"{name}-hardening-apply" for name in SERVERS}
        assert boots(realm) == booted
        for server in SERVERS:
            assert up.ssh(server, "cat /etc/issue.net").stdout == original + "Changed.\n"
    finally:
        up.make("up")
    assert contents(project.folder, leave_out=[".venv"]) == files
    assert changed(before, resources(up)) == set()
    for server in SERVERS:
        assert up.ssh(server, "cat /etc/issue.net").stdout == original


def test_outputs_are_json_and_nothing_else(up: Rehearsal) -> None:
    done = subprocess.run(
        ["make", "-s", "outputs", f"STACK={up.name}"],
        cwd=ROOT,
        env=up.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    outputs = json.loads(done.stdout)
    assert set(outputs) == {"servers", "sshUser", "database"}
    assert {name: server["role"] for name, server in outputs["servers"].items()} == SERVERS
    for server in outputs["servers"].values():
        assert {"role", "privateIp"} <= set(server)
    assert outputs["sshUser"] == "deploy"
    assert outputs["database"] == {"host": "10.20.0.5", "port": 3306, "name": "production", "user": "application"}


@one_stack(SSH_IS_SSH)
@pytest.mark.parametrize("server", SERVERS)
def test_uds_ssh_is_like_being_there(up: Rehearsal, server: str) -> None:
    assert up.uds("ssh", up.name, server, "--", "hostname; exit 7", check=False).returncode == 7
    assert up.uds("ssh", up.name, server, "--", "hostname").stdout.strip() == server
    assert up.uds("ssh", up.name, server, "--", "printf", "<%s>", "two words", "$HOME").stdout == "<two words><$HOME>"
    assert up.uds("ssh", up.name, server, "--", "cat", stdin="line\n\nlast").stdout == "line\n\nlast"


@one_stack(SSH_IS_SSH)
@pytest.mark.parametrize("server", SERVERS)
def test_uds_ssh_as_root(up: Rehearsal, server: str) -> None:
    assert up.uds("ssh", up.name, server, "--sudo", "--", "id -u; exit 7", check=False).returncode == 7
    assert up.uds("ssh", up.name, server, "--sudo", "--", "id", "-un").stdout == "root\n"
    assert up.uds("ssh", up.name, server, "--sudo", "--", "cat", stdin="line\n\nlast").stdout == "line\n\nlast"


@one_stack(SSH_IS_SSH)
def test_uds_ssh_to_nowhere(up: Rehearsal) -> None:
    refused = up.uds("ssh", up.name, "db-9", "--", "true", check=False)
    assert refused.returncode == 1
    assert "There is no server db-9. Servers: app-1, backup-1, db-1." in refused.stderr


MISTAKES: dict[str, tuple[str, dict[str, object], str]] = {
    "no server": ("app", {"count": 0}, "user-data-security:app.count 0"),
    "a port of root's": ("database", {"port": 80}, "user-data-security:database.port 80"),
    "a public network": (
        "network",
        {"cidr": "8.8.8.0/24"},
        "user-data-security:network.cidr '8.8.8.0/24': is not private",
    ),
    "a typing mistake": ("app", {"cuont": 2}, "user-data-security:app.cuont is not a setting; allowed here: count"),
    "no package": (
        "database",
        {"packages": ["curl; reboot"]},
        "user-data-security:database.packages[0] 'curl; reboot'",
    ),
}


@one_stack("the settings are refused before any cloud is asked")
@pytest.mark.parametrize(
    "mistakes", [["no server", "a port of root's", "a public network"], ["a typing mistake", "no package"]]
)
def test_mistakes_are_told_before_anything_is_made(fresh: Rehearsal, mistakes: list[str]) -> None:
    Workspace(fresh.name).prepare()
    for key, values, _ in map(MISTAKES.__getitem__, mistakes):
        fresh.configure(key, values)
    done = fresh.make("up", check=False)
    assert done.returncode != 0
    for _, _, words in map(MISTAKES.__getitem__, mistakes):
        assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    realm = fresh.realm()
    assert realm.machines() == []
    assert [kind for kind in KINDS if realm.store.all(kind)] == []
    assert {name for name in resources(fresh) if not name.endswith("-local")} <= {"default"}


@one_stack("there is no cloud yet")
@pytest.mark.parametrize("verb", ["up", "preview", "outputs", "down"])
def test_an_unknown_stack_is_named(fresh: Rehearsal, tmp_path: Path, verb: str) -> None:
    project = Project.copied(tmp_path / "project")
    done = project.drive(verb, "lnode", environment=fresh.environment)
    assert done.returncode == 1
    # Told over several lines, where it is long.
    assert "There is no" in done.stderr
    assert "lnode" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (fresh.folder / "lnode").exists()


@one_stack("there is no cloud yet")
def test_a_rehearsal_is_removed_twice_and_without_its_stack_file(fresh: Rehearsal, tmp_path: Path) -> None:
    project = Project.copied(tmp_path / "project")
    done = [project.drive("down", "linode", environment=fresh.environment) for _ in range(2)]
    assert [(one.returncode, "The rehearsal of linode is gone." in one.stderr) for one in done] == [(0, True)] * 2
    # Whoever renames a stack before its rehearsal is gone can still remove it.
    (fresh.folder / "renamed").mkdir(parents=True)
    assert project.drive("down", "renamed", environment=fresh.environment).returncode == 0
    assert not (fresh.folder / "renamed").exists()
    assert project.drive("down", "renamed", environment=fresh.environment).returncode == 1


@pytest.mark.parametrize(("stack_file", "instance"), [("linode", "linode:index:Instance"), ("aws", "aws:ec2:Instance")])
def test_a_preview_of_production_needs_no_machine_and_stays_in_its_folder(
    tmp_path: Path, stack_file: str, instance: str
) -> None:
    project = Project.copied(tmp_path / "project")
    before = contents(project.folder, leave_out=[".venv"])
    environment = {key: value for key, value in os.environ.items() if key != "UDS_REHEARSALS"}
    done = project.drive("preview", stack_file, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert instance in done.stdout
    assert contents(project.folder, leave_out=[".venv", ".rehearsal"]) == before
    assert [path.name for path in (project.folder / ".rehearsal").iterdir()] == [stack_file]
    # No realm was made: a preview works where nobody is root.
    assert not (project.folder / ".rehearsal" / stack_file / "cloud").exists()
