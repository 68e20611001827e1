"""A server is lost with all that was on it, and docs/recovery.md brings everything back."""

import pytest

from tests.rehearsal.backups import complete, kept
from tests.rehearsal.conftest import Rehearsal, one_stack
from tests.rehearsal.support import resources

pytestmark = [
    one_stack("a server that is gone is the same to Pulumi on any cloud"),
    pytest.mark.nightly("three servers, two of which are made again"),
]

FILL = """
CREATE TABLE people (id INT PRIMARY KEY, name VARCHAR(40)) CHARACTER SET utf8mb4;
INSERT INTO people VALUES (1, 'Zoë'), (2, '🦊');
"""


def lose(up: Rehearsal, server: str) -> None:
    """As the provider would: the machine and its disk are gone, and nobody told Pulumi."""
    up.realm().power.destroy(up.machine(server).number)
    up.pulumi("refresh", "--yes", "--skip-preview")


def database(up: Rehearsal, statement: str) -> str:
    name = up.outputs()["database"]["name"]
    return up.sudo("db-1", f"mariadb {name} <<'END'\n{statement}\nEND").stdout


def test_the_database_comes_back_with_its_data_and_the_application_with_it(own_with_backups: Rehearsal) -> None:
    up = own_with_backups
    database(up, FILL)
    before = database(up, "CHECKSUM TABLE people EXTENDED;")
    up.uds("backup", "now", up.name)
    last = complete(kept(up))[-1]
    lose(up, "db-1")
    up.make("up")
    up.reconnect()
    assert database(up, "SHOW TABLES LIKE 'people';") == ""
    # The newest one is of the new server, and empty.
    up.uds("backup", "restore", up.name, last, "--replace")
    assert database(up, "CHECKSUM TABLE people EXTENDED;") == before
    up.uds("backup", "now", up.name)
    up.uds("backup", "drill", up.name)
    up.uds("verify", up.name)
    up.make("up", "--expect-no-changes")


def test_where_backups_are_no_longer_wanted_nothing_makes_them(own_with_backups: Rehearsal) -> None:
    up = own_with_backups
    traces = (
        "ls -d /etc/systemd/system/*/uds-backup* /etc/systemd/system/uds-backup* /usr/local/sbin/uds-backup*"
        " /etc/uds/backup /etc/monit/conf.d/backup"
    )
    assert up.sudo("db-1", traces).stdout.count("uds-backup.timer") == 2
    up.configure("backup", {"server": False})
    up.pulumi("state", "unprotect", resources(up)["backup-1-instance"]["urn"], "--yes")
    up.make("up")
    assert up.sudo("db-1", traces, check=False).stdout == ""
    assert (
        up.sudo("db-1", "systemctl --failed --no-legend; systemctl list-timers --all | grep uds-backup; true").stdout
        == ""
    )
    up.uds("verify", up.name)
    up.make("up", "--expect-no-changes")
    up.configure("backup", {"server": True})
    up.make("up")
    up.reconnect()
    assert len(complete(kept(up))) == 1
    up.uds("verify", up.name)


def test_a_new_backup_server_takes_backups_at_once(own_with_backups: Rehearsal) -> None:
    up = own_with_backups
    lose(up, "backup-1")
    up.make("up")
    up.reconnect()
    up.uds("backup", "now", up.name)
    up.uds("backup", "drill", up.name)
    up.make("up", "--expect-no-changes")
