"""Day-2 work on live servers: keys change and nobody is locked out; updates take one server at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.catalogue import DEFAULT_SIZES
from components.settings import CloudName, parse
from rehearsal.realm import KINDS
from tests.rehearsal.conftest import ROOT, Rehearsal, one_stack
from tests.rehearsal.support import Run, boots, changed, resources
from uds.ssh import agent, write_config
from uds.stack import OperatorError

OVER_SSH = "everything happens over SSH, as on any cloud"
SERVERS = ("app-1", "db-1")


def gets_in(up: Rehearsal, private_key: str, server: str, folder: Path) -> bool:
    """Whether the automation gets into a server with this key and no other."""
    folder.mkdir()
    with agent(private_key, folder) as socket:
        config = write_config(folder, up.outputs(), f"IdentityAgent {socket}")
        done = subprocess.run(["ssh", "-F", config, server, "true"], capture_output=True, check=False)
    return done.returncode == 0


@one_stack(OVER_SSH)
def test_a_new_deploy_key_gets_in_at_once_and_the_old_one_until_the_next_run(up: Rehearsal, tmp_path: Path) -> None:
    old = up.stack().section("deploy")["privateKey"]
    said = up.uds("rotate", "deploy-key", up.name).stdout
    assert f"make up STACK={up.name}" in said
    new = up.stack().section("deploy")["privateKey"]
    assert new != old
    up.reconnect()
    for name, key in (("old", old), ("new", new)):
        assert gets_in(up, key, "db-1", tmp_path / name)
    up.make("up")
    for server in SERVERS:
        assert not gets_in(up, old, server, tmp_path / f"{server}-old")
        assert gets_in(up, new, server, tmp_path / f"{server}-new")
    up.make("up", "--expect-no-changes")


@one_stack(OVER_SSH)
def test_a_new_host_key_is_learned_without_trusting_anybody(up: Rehearsal) -> None:
    before = {server: up.outputs()["servers"][server]["hostKey"] for server in SERVERS}
    replaced = []
    # The bastion last: it leads to the other.
    for server in ("db-1", "app-1"):
        said = up.uds("rotate", "host-key", up.name, server).stdout
        replaced += ["--replace", said.partition("--replace '")[2].partition("'")[0]]
        assert up.ssh(server, "true", check=False).returncode == 255
    up.make("up", *replaced)
    up.reconnect()
    after = {server: up.outputs()["servers"][server]["hostKey"] for server in SERVERS}
    assert len({*before.values(), *after.values()}) == 4
    for server in SERVERS:
        # The one that pinned the first contact is gone again.
        assert up.sudo(server, "ls /etc/ssh/*bootstrap* /etc/ssh/*/*bootstrap*", check=False).returncode == 2
    up.make("up", "--expect-no-changes")


@one_stack(OVER_SSH)
def test_updates_reboot_the_servers_that_ask_for_it_one_after_the_other(up: Rehearsal) -> None:
    before = boots(up.realm())
    # As an update of it does, which asks for no reboot: the database goes on with the library that was there before.
    up.sudo("db-1", "apt-get -q install --reinstall -y libssl3t64 && test ! -e /run/reboot-required")
    said = up.uds("update", up.name).stdout
    after = boots(up.realm())
    assert {label for label in before if before[label] != after[label]} == {up.label("db-1")}
    assert said.index("db-1") < said.index("app-1")
    assert up.sudo("db-1", "/usr/local/lib/uds/watch reboot").stdout == ""
    # What asks for one by itself (a kernel) does so by this file.
    asked = up.sudo("db-1", "touch /run/reboot-required; /usr/local/lib/uds/watch reboot; rm /run/reboot-required")
    assert asked.stdout == "a reboot is needed for security updates\n"
    assert up.sudo("db-1", "unattended-upgrade --dry-run --verbose").stdout.count("No packages found") == 1
    up.make("up", "--expect-no-changes")


KEEP, KEPT = "CREATE TABLE kept (id INT); INSERT INTO kept VALUES (42)", "SELECT id FROM kept"
LARGER = {"local": "g6-standard-1", "aws-local": "t3.small"}


def set_sizes(up: Rehearsal, app: str, database: str) -> None:
    up.stack().set("app.size", app, secret=False)
    up.stack().set("database.size", database, secret=False)
    up.make("up")


@pytest.mark.nightly("every server reboots twice")
def test_another_size_takes_a_reboot_and_nothing_else(up: Rehearsal) -> None:
    larger, smaller = LARGER[up.name], DEFAULT_SIZES[parse(up.stack().config()).cloud]
    up.sudo("db-1", f"mariadb {up.outputs()['database']['name']} -e '{KEEP}'")
    for sizes in ((larger, larger), (smaller, smaller)):
        before, booted, outputs = resources(up), boots(up.realm()), up.outputs()
        set_sizes(up, *sizes)
        after = resources(up)
        assert changed(before, after) == {f"{server}-instance" for server in SERVERS}
        assert all(after[one].get("id") == before[one].get("id") for one in before)
        assert not set(boots(up.realm()).items()) & set(booted.items())
        assert up.outputs() == outputs
        for server in SERVERS:
            assert up.sudo(server, "systemctl is-system-running --wait").stdout == "running\n"
        assert up.sudo("db-1", f"mariadb -N {outputs['database']['name']} -e '{KEPT}'").stdout == "42\n"
        up.uds("verify", up.name)
        up.make("up", "--expect-no-changes")
    up.sudo("db-1", f"mariadb {up.outputs()['database']['name']} -e 'DROP TABLE kept'")
    for section in ("app", "database"):
        up.stack().remove(f"{section}.size")


def system(up: Rehearsal, server: str) -> str:
    return up.ssh(server, ". /etc/os-release; echo $ID$VERSION_ID").stdout.strip()


@pytest.mark.nightly("five machines")
def test_a_newer_system_comes_with_new_application_servers_one_after_the_other(fresh: Rehearsal) -> None:
    # For its stack; the policies may refuse one that lacks a server which this test has no need of.
    fresh.make("preview", check=False)
    fresh.pulumi("config", "set", "image", "debian12")
    fresh.configure("app", {"count": 2})
    fresh.make("up")
    before = boots(fresh.realm())
    fresh.pulumi("config", "set", "image", "debian13")
    fresh.make("up")
    assert boots(fresh.realm()) == before
    for number, server in enumerate(("app-2", "app-1"), 1):
        assert system(fresh, server) == "debian12"
        fresh.make("up", "--replace", f"**::{server}-instance")
        fresh.reconnect()
        assert system(fresh, server) == "debian13"
        after = boots(fresh.realm())
        assert len({label for label in before if before[label] != after[label]}) == number
    assert system(fresh, "db-1") == "debian12"
    fresh.uds("verify", fresh.name)
    fresh.make("up", "--expect-no-changes")


@pytest.mark.nightly("a stack of its own, to be destroyed")
def test_a_stack_is_destroyed_on_purpose_only_and_then_wholly(fresh: Rehearsal) -> None:
    fresh.make("up")
    realm = fresh.realm()
    before = boots(realm)
    with pytest.raises(OperatorError, match="protected"):
        fresh.pulumi("destroy", "--yes", "--skip-preview")
    assert boots(realm)[fresh.label("db-1")] == before[fresh.label("db-1")]
    # As docs/operations.md says.
    fresh.pulumi("state", "unprotect", "--all", "--yes")
    if parse(fresh.stack().config()).cloud is CloudName.AWS:
        with pytest.raises(OperatorError, match="may not be terminated"):
            fresh.pulumi("destroy", "--yes", "--skip-preview")
        no_termination_protection(fresh, "db-1")
        fresh.pulumi("refresh", "--yes", "--skip-preview")
    fresh.pulumi("destroy", "--yes", "--skip-preview")
    assert realm.machines() == []
    assert [kind for kind in KINDS if realm.store.all(kind)] == []
    assert {name for name in resources(fresh) if not name.endswith("-local")} <= {"default"}


def no_termination_protection(up: Rehearsal, server: str) -> None:
    """`aws ec2 modify-instance-attribute --no-disable-api-termination`, for which there is no API here."""
    machine = up.machine(server)
    inputs = {**machine.details["inputs"], "disableApiTermination": False}
    up.realm().power.set_details(machine.number, {**machine.details, "inputs": inputs})


@pytest.mark.nightly("three more servers")
@pytest.mark.parametrize("stack", ["linode", "aws"])
def test_a_production_stack_is_rehearsed_verified_and_removed(tmp_path: Path, stack: str) -> None:
    page = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-m", "uds", "rehearse", stack, "--html", page],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed, on app-1, backup-1, db-1." in " ".join(done.stdout.split())
    assert "<svg" in page.read_text()
    assert_gone(tmp_path, page)


@pytest.mark.nightly("three servers, for a moment")
@pytest.mark.parametrize(
    ("number", "alone"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, False)],
    ids=["Ctrl-C", "kill all", "kill", "closed terminal"],
)
def test_a_rehearsal_that_somebody_ends_is_removed_too(tmp_path: Path, number: signal.Signals, alone: bool) -> None:
    run = Run.start(["uds", "rehearse", "linode"], {**os.environ, "TMPDIR": str(tmp_path)})
    run.wait_for("db-1-reachable creating")
    run.end(number, alone=alone)
    assert run.process.returncode != 0
    assert "Traceback" not in run.text
    assert "The rehearsal of linode is gone." in run.text
    assert_gone(tmp_path)


def assert_gone(folder: Path, *left: Path) -> None:
    """Nothing of a rehearsal that was in this folder is there."""
    assert list(folder.iterdir()) == list(left)
    labels = subprocess.run(
        ["podman", "ps", "--all", "--format", "{{.Labels}}"], capture_output=True, text=True, check=True
    )
    assert str(folder) not in labels.stdout
