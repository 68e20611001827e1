"""Whatever goes wrong in the middle, the next `make up` ends well, and `make down` leaves nothing."""

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rehearsal.realm import KINDS
from rehearsal.workspace import Workspace
from tests.rehearsal.conftest import Rehearsal, one_stack
from tests.rehearsal.people import another_host_key, console, for_a_while
from tests.rehearsal.support import Project, Run, Script, boots, resources, until
from tests.rehearsal.test_realm import host_state, of_realm

ON_THE_SERVER = "what goes wrong is on the server, and mended over SSH, as on any cloud"

NO_SUCH_PACKAGE = "no-such-package-xyz"


def processes_of(rehearsal: Rehearsal) -> list[str]:
    """Programs of this host that a run of the rehearsal started, and that were to end with it."""
    mark = f"UDS_REHEARSAL={rehearsal.workspace}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The monitors of machines are there for good.
            if mark in (folder / "environ").read_bytes() and (folder / "comm").read_text() != "conmon\n":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


def pending(rehearsal: Rehearsal) -> list[str]:
    """What Pulumi began and doesn't know the end of."""
    state = json.loads(rehearsal.pulumi("stack", "export"))["deployment"]
    return [operation["resource"]["urn"] for operation in state.get("pending_operations") or []]


def assert_whole(rehearsal: Rehearsal) -> None:
    """Exactly the stack: everything that exists is in the state, everything in the state exists, nothing to do."""
    rehearsal.make("up", "--expect-no-changes")
    realm, state = rehearsal.realm(), resources(rehearsal)
    ids = {resource["id"] for resource in state.values() if resource["type"].startswith(("aws:", "linode:"))}
    known = {number for kind in (*KINDS, "machines") for number in realm.store.all(kind)}
    assert known == {int(one.rpartition("-")[2]) for one in ids}
    assert sorted(machine.label for machine in realm.machines()) == list(map(rehearsal.label, ("app-1", "db-1")))
    containers = of_realm(realm.network.number)["containers"]
    assert sorted(containers) == sorted(realm.network.namespace(machine.number) for machine in realm.machines())
    assert pending(rehearsal) == []
    rehearsal.reconnect()
    for server in ("app-1", "db-1"):
        assert rehearsal.sudo(server, "cat /var/lib/uds/first-boot").stdout == "ok\n"


def test_runs_that_are_killed_are_continued(fresh: Rehearsal) -> None:
    """One stack, killed again and again, each time a little further on its way."""
    before = host_state()
    for moment in (
        "app-1-instance creating",
        "app-1-first-contact creating",
        "db-1-reachable creating",
        "app-1-hardening-apply creating",
    ):
        run = Run.of(fresh, "up")
        run.wait_for(moment)
        run.end(signal.SIGKILL)
        # The plugins, which are not of the group, see by themselves that the engine is gone.
        until(lambda: processes_of(fresh) == [])
    run = Run.of(fresh, "up")
    run.wait_for("db-1-hardening-apply creating")
    # A person's Ctrl-C: Pulumi ends what it does and writes everything down.
    run.end(signal.SIGINT)
    assert "Traceback" not in run.text
    assert pending(fresh) == []
    fresh.make("up")
    assert_whole(fresh)
    number = fresh.realm().network.number
    fresh.make("down")
    assert of_realm(number) == {}
    assert without_others(host_state(), number) == without_others(before, number)


def test_a_stack_that_was_killed_halfway_is_removed_without_a_trace(fresh: Rehearsal) -> None:
    run = Run.of(fresh, "up")
    run.wait_for("app-1-instance creating")
    realm = fresh.realm()
    until(lambda: "containers" in of_realm(realm.network.number))
    run.end(signal.SIGKILL)
    fresh.make("down")
    assert not fresh.workspace.exists()
    # Whatever the plugin was doing when its engine died.
    until(lambda: processes_of(fresh) == [])
    assert of_realm(realm.network.number) == {}
    assert not fresh.workspace.exists()
    fresh.make("down")
    assert of_realm(realm.network.number) == {}
    assert not fresh.workspace.exists()


def without_others(state: Mapping[str, list[str]], number: int) -> dict[str, list[str]]:
    """`host_state` without the realms of other rehearsals, which may come and go meanwhile."""
    others = [f"uds{other}" for other in range(256) if other != number]
    return {
        kind: [line for line in lines if not any(f"{other}-" in line or f" {other} " in line for other in others)]
        for kind, lines in state.items()
    }


@pytest.mark.nightly("of the machines alone, test_realm.py shows it at every change")
def test_everything_comes_back_when_the_host_was_rebooted(fresh: Rehearsal) -> None:
    fresh.make("up")
    realm = fresh.realm()
    for server in ("app-1", "db-1"):
        fresh.sudo(server, "echo mine > /root/kept; sync")
    state, machines = resources(fresh), realm.machines()
    for machine in machines:
        realm.power.kill(machine.number)
    realm.network.stop()
    assert set(of_realm(realm.network.number)) == {"containers"}
    assert_whole(fresh)
    assert realm.machines() == machines
    assert {name: one.get("id") for name, one in resources(fresh).items()} == {
        name: one.get("id") for name, one in state.items()
    }
    for server in ("app-1", "db-1"):
        assert fresh.sudo(server, "cat /root/kept; iptables -S INPUT | head -1").stdout == "mine\n-P INPUT DROP\n"


@one_stack(ON_THE_SERVER)
def test_a_first_boot_that_fails_is_told_and_mended_in_place(fresh: Rehearsal) -> None:
    Workspace(fresh.name).prepare()
    fresh.configure("database", {"packages": [NO_SUCH_PACKAGE]})
    failed = fresh.make("up", check=False)
    assert failed.returncode != 0
    assert f"E: Unable to locate package {NO_SUCH_PACKAGE}" in failed.stdout
    realm = fresh.realm()
    machines = boots(realm)
    assert set(machines) == set(map(fresh.label, ("app-1", "db-1")))
    fresh.configure("database", {"packages": []})
    fresh.make("up")
    assert boots(realm) == machines
    fresh.make("up", "--expect-no-changes")


# Locks that apt itself doesn't wait for.
HOLD = """
import fcntl, signal, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
signal.pause()
"""


@one_stack(ON_THE_SERVER)
@pytest.mark.parametrize("lock", ["/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"])
def test_packages_wait_for_apts_own_daily_run(up: Rehearsal, lock: str) -> None:
    server, package = "app-1", "hello"
    with for_a_while(
        up,
        server,
        f"cp -p /etc/uds/packages /root/packages; echo {package} >> /etc/uds/packages\n"
        f"systemd-run -q --collect --unit=daily --property=Type=exec python3 -c '{HOLD}' {lock}\n"
        "systemd-run -q --collect --unit=waiting uds-harden",
        f"systemctl stop daily waiting || true; mv /root/packages /etc/uds/packages; apt-get -qq -y purge {package}",
    ):
        until(lambda: console(up, server, f"grep -F 'Could not get lock {lock}' /var/lib/uds/apt.log", check=False))
        console(up, server, "systemctl is-active waiting; systemctl stop daily")
        until(lambda: "inactive" in console(up, server, "systemctl is-active waiting", check=False))
        assert console(up, server, f"dpkg-query -W -f '${{db:Status-Status}}' {package}") == "installed"


@pytest.fixture(params=["app-1", "db-1"])
def impostor(up: Rehearsal, request: pytest.FixtureRequest) -> Iterator[str]:
    """Somebody else answers in place of this server."""
    server: str = request.param
    with another_host_key(up, server):
        yield server
    # The other server may have been changed.
    up.make("up")


@one_stack(ON_THE_SERVER)
def test_nothing_is_said_to_a_server_with_another_host_key(up: Rehearsal, impostor: str, tmp_path: Path) -> None:
    project = Project.copied(tmp_path / "project")
    with (project.folder / "cloud-init/files/etc/issue").open("a") as issue:
        issue.write("Changed.\n")
    failed = project.drive("up", up.name, environment=up.environment)
    assert failed.returncode != 0
    # Pulumi's plugin tries again whatever the failure is, and must come to an end; behind a bastion it tries once.
    mismatch = "failed attempts: ssh: handshake failed: ssh: host key mismatch"
    told = {
        "app-1": (f"error: after 20 {mismatch}", f"error: proxy: after 20 {mismatch}"),
        "db-1": (f"error: proxy: after 1 {mismatch}",),
    }
    for words in told[impostor]:
        assert words in failed.stdout
    assert "Changed." not in console(up, impostor, "cat /etc/issue")
    log = console(up, impostor, "journalctl --sync; journalctl -q -u ssh --output=cat").rpartition("Server listening")[
        2
    ]
    assert "Connection closed by" in log
    assert "Accepted" not in log
    assert up.ssh(impostor, "true", check=False).returncode == 255


@one_stack(ON_THE_SERVER)
def test_after_the_right_host_key_is_back_nothing_is_left_to_do(up: Rehearsal) -> None:
    up.make("up", "--expect-no-changes")
    for server in ("app-1", "db-1"):
        assert up.ssh(server, "hostname").stdout == f"{server}\n"


BROKEN = {
    "rules.v4": ("/etc/iptables/rules.v4", ":INPUT DROP", ":INPUT DRIP"),
    # iptables-restore --test says nothing against this one.
    "rules.v6": ("/etc/iptables/rules.v6", ":INPUT DROP", ":INPUT DROP [0:0]\n-A INPUT -j NOWHERE\n#"),
    "sshd": ("/etc/ssh/sshd_config.d/00-hardening.conf", "PermitRootLogin no", "PermitRootLogin nope"),
    "sudoers": ("/etc/sudoers.d/10-hardening", "Defaults use_pty", "Defaults use_pty\ndeploy ALL=(ALL NOPASSWD: ALL"),
}


@one_stack(ON_THE_SERVER)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_never_takes_the_place_of_a_good_one(up: Rehearsal, what: str) -> None:
    path, good, bad = BROKEN[what]
    before = live(up)
    refused = Script.of(up, "app-1", "hardening").altered(f"files{path}", good, bad).run(up, check=False)
    assert refused.returncode != 0
    assert refused.stderr + refused.stdout != ""
    assert live(up) == before


@one_stack(ON_THE_SERVER)
def test_a_good_file_does(up: Rehearsal) -> None:
    """The way that the broken ones went is the way that works."""
    script = Script.of(up, "app-1", "hardening")
    # Whatever other tests have touched is looked at again now, and not below.
    script.run(up)
    before = live(up)
    for one in (script.altered("files/etc/issue", "private", "secret"), script):
        assert one.run(up).stdout == "changed: /etc/issue\n"
    assert live(up) == before


@one_stack(ON_THE_SERVER)
def test_rules_that_somebody_broke_on_the_server_are_not_loaded(up: Rehearsal) -> None:
    before = live(up)
    done = up.sudo(
        "app-1",
        "cp -a /etc/iptables/rules.v4 /root/rules.v4\n"
        "sed -i 's/^-A INPUT -i lo .*/-A INPUT -j NOWHERE/' /etc/iptables/rules.v4\n"
        "uds-harden; echo status $?\n"
        "mv /root/rules.v4 /etc/iptables/rules.v4; uds-harden; echo status $?\n",
    )
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses[0] != "status 0"
    assert statuses[1] == "status 0"
    assert live(up) == before


def live(up: Rehearsal) -> str:
    """The hardened files of app-1 and what is in force."""
    return up.sudo(
        "app-1",
        "find /etc/iptables /etc/ssh /etc/sudoers.d /etc/issue -type f -exec sha256sum {} + | sort -k2\n"
        "iptables -S; ip6tables -S; iptables -t nat -S; sshd -T; systemctl is-active ssh\n",
    ).stdout
