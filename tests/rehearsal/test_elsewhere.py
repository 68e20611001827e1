"""A backup server in another region: filled from afar, and there when the stack's own region is not."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.backups import complete, kept
from tests.rehearsal.conftest import Rehearsal, new_rehearsal

pytestmark = pytest.mark.nightly("three servers in two regions, one of which is made again")

OTHER = {"linode": "us-east", "aws": "eu-west-1"}

KNOCK = "timeout 4 bash -c 'read -r said < /dev/tcp/{}/22 && echo $said'"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, stack_name: str) -> Iterator[Rehearsal]:
    with pytest.MonkeyPatch.context() as patch:
        for rehearsal in new_rehearsal(tmp_path_factory.mktemp("rehearsals"), patch, stack_name, backups=True):
            rehearsal.configure("backup", {"region": OTHER[rehearsal.configuration()["cloud"]]})
            rehearsal.make("up")
            yield rehearsal


def backup_server(up: Rehearsal) -> dict[str, Any]:
    facts: dict[str, Any] = up.outputs()["servers"]["backup-1"]
    return facts


@contextmanager
def region_lost(up: Rehearsal) -> Iterator[None]:
    """Nothing of the stack's own region answers any more."""
    realm = up.realm()
    numbers = [up.machine(server).number for server in ("app-1", "db-1")]
    try:
        for number in numbers:
            realm.power.stop(number)
        yield
    finally:
        for number in numbers:
            realm.power.start(number)


def test_backups_arrive_and_every_check_passes(up: Rehearsal) -> None:
    assert backup_server(up)["region"] == OTHER[up.configuration()["cloud"]]
    before = complete(kept(up))
    up.uds("backup", "now", up.name)
    assert len(complete(kept(up))) == len(before) + 1
    up.uds("backup", "drill", up.name)
    up.uds("verify", up.name)
    up.make("up", "--expect-no-changes")


def test_nobody_reaches_it_but_operators_and_the_database_server(up: Rehearsal) -> None:
    address = backup_server(up)["publicIp"]
    knock = KNOCK.format(address)
    here = subprocess.run(["bash", "-c", knock], capture_output=True, text=True, check=False)
    assert here.stdout.startswith("SSH-2.0")
    with up.realm().outsider() as stranger:
        people: dict[str, Callable[[], str]] = {
            "db-1": lambda: up.ssh("db-1", knock, check=False).stdout,
            "app-1": lambda: up.ssh("app-1", knock, check=False).stdout,
            "a stranger": lambda: stranger.run(["bash", "-c", knock]).stdout,
        }
        answered = {name for name, ask in people.items() if ask().startswith("SSH-2.0")}
        assert answered == {"db-1"}
        # The cloud's firewall is only one of two.
        with up.realm().cloud_firewall_off(up.machine("backup-1")):
            assert {name for name, ask in people.items() if ask().startswith("SSH-2.0")} == {"db-1"}


def test_it_is_not_led_to_through_the_first_application_server(up: Rehearsal) -> None:
    def through(address: str) -> str:
        return up.ssh("app-1", "-W", f"{address}:22", check=False).stdout

    # It leads to the private servers, and so this is how one would get there.
    assert "SSH-2.0" in through(up.private_address("db-1"))
    assert "SSH-2.0" not in through(backup_server(up)["publicIp"])


def test_backups_are_fetched_when_the_stacks_region_is_gone(up: Rehearsal, tmp_path: Path) -> None:
    up.uds("backup", "now", up.name)
    newest = complete(kept(up))[-1]
    with region_lost(up):
        assert newest in up.uds("backup", "list", up.name).stdout
        up.uds("backup", "fetch", up.name, newest, "--to", str(tmp_path))
    assert any(file.stat().st_size for file in tmp_path.rglob(f"{newest}*"))


def test_a_new_database_server_is_known_there_by_its_own_address(up: Rehearsal) -> None:
    # Its address is free until it is asked for again, and given to somebody else.
    up.realm().power.destroy(up.machine("db-1").number)
    up.pulumi("refresh", "--yes", "--skip-preview")
    up.make("up")
    up.reconnect()
    up.uds("backup", "now", up.name)
    up.uds("verify", up.name)
    up.make("up", "--expect-no-changes")
