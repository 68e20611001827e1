"""Day-2 work on live servers: keys change and nobody is locked out; updates take one server at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rehearsal.conftest import ROOT, Rehearsal, one_stack
from tests.rehearsal.support import boots
from uds.ssh import agent, write_config

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
    up.forget_host_keys()
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
    up.forget_host_keys()
    after = {server: up.outputs()["servers"][server]["hostKey"] for server in SERVERS}
    assert len({*before.values(), *after.values()}) == 4
    for server in SERVERS:
        # The one that pinned the first contact is gone again.
        assert up.sudo(server, "ls /etc/ssh/*bootstrap* /etc/ssh/*/*bootstrap*", check=False).returncode == 2
    up.make("up", "--expect-no-changes")


@one_stack(OVER_SSH)
def test_updates_reboot_the_servers_that_ask_for_it_one_after_the_other(up: Rehearsal) -> None:
    before = boots(up.realm())
    up.sudo("db-1", "touch /run/reboot-required")
    said = up.uds("update", up.name).stdout
    after = boots(up.realm())
    assert {label for label in before if before[label] != after[label]} == {up.label("db-1")}
    assert said.index("db-1") < said.index("app-1")
    # Nothing is left to do, and what the first reboot asked for is done.
    assert up.sudo("db-1", "unattended-upgrade --dry-run --verbose").stdout.count("No packages found") == 1
    up.make("up", "--expect-no-changes")


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
    assert list(tmp_path.iterdir()) == [page]
    labels = subprocess.run(
        ["podman", "ps", "--all", "--format", "{{.Labels}}"], capture_output=True, text=True, check=True
    )
    assert str(tmp_path) not in labels.stdout
