"""Backups: what comes back, what happens when something breaks, and what is kept (guide, 3.11.2)."""

from collections.abc import Iterator

import pyrage
import pytest

from components.backup import STAMP, STORE
from tests.rehearsal.backups import (
    SPOOL,
    back_up,
    clear,
    complete,
    fetched,
    hearing_alerts,
    identity,
    kept,
    manifest,
    opened,
    unpacked,
    waiting,
)
from tests.rehearsal.conftest import Rehearsal, one_stack
from tests.rehearsal.people import for_a_while
from tests.rehearsal.support import until

pytestmark = one_stack(
    "a backup is made and kept by two servers that reach each other; that they do on every cloud is in test_stack.py"
)

MARK = "Zebra-7f3a-lantern"

DATA = """
CREATE DATABASE IF NOT EXISTS second CHARACTER SET latin1 COLLATE latin1_german1_ci;
CREATE TABLE IF NOT EXISTS second.notes (id INT PRIMARY KEY, text VARCHAR(50));
INSERT IGNORE INTO second.notes VALUES (1, 'Zebra-7f3a-lantern');
USE production;
CREATE OR REPLACE TABLE kinds (id INT PRIMARY KEY AUTO_INCREMENT, raw LONGBLOB, words TEXT CHARACTER SET utf8mb4);
INSERT INTO kinds (raw, words) VALUES
    (UNHEX('00FF0A0D1A5C27'), '🦓 naïve \\\\ ''quoted''\\nZebra-7f3a-lantern'), (NULL, '');
CREATE OR REPLACE VIEW seen AS SELECT id, words FROM kinds;
CREATE OR REPLACE TRIGGER shout BEFORE INSERT ON kinds FOR EACH ROW SET NEW.words = UPPER(NEW.words);
CREATE OR REPLACE PROCEDURE count_kinds() SELECT COUNT(*) FROM kinds;
CREATE OR REPLACE EVENT nightly ON SCHEDULE EVERY 1 DAY DO DELETE FROM kinds WHERE id < 0;
"""


# What does not compress, and is too much for the small disks below.
BULK = """
mariadb -e 'CREATE OR REPLACE TABLE production.bulk (raw LONGBLOB)'
for _ in 1 2 3; do
    hex=$(head -c 8000000 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')
    echo "INSERT INTO production.bulk VALUES (X'$hex');"
done | mariadb --max-allowed-packet=64M
"""


@pytest.fixture(scope="module")
def up(own_with_backups: Rehearsal) -> Iterator[Rehearsal]:
    """With data of every kind, a second database and files, all of which are saved."""
    rehearsal = own_with_backups
    rehearsal.stays_connected = True
    rehearsal.sudo("db-1", f"mariadb <<'END'\n{DATA}\nEND\nmkdir -p /srv/files; echo {MARK} > '/srv/files/a file'")
    rehearsal.configure("backup", {"databases": ["second"], "paths": ["/srv/files", "/etc/mysql/tls"]})
    rehearsal.make("up", "--skip-preview")
    with hearing_alerts(rehearsal):
        yield rehearsal


@pytest.fixture(scope="module")
def bulky(up: Rehearsal) -> Iterator[None]:
    """The database is larger for a while."""
    with for_a_while(
        up,
        "db-1",
        BULK,
        "mariadb -e 'DROP TABLE production.bulk'",
    ):
        yield


# What is in it


def test_the_first_backup_was_made_with_the_servers(up: Rehearsal) -> None:
    assert complete(kept(up))
    assert waiting(up) == []


def test_everything_comes_back(up: Rehearsal) -> None:
    done = back_up(up)
    assert done.status == 0, done.said
    assert done.alerts.startswith("--severity info Backup made\n")
    run = complete(kept(up))[-1]
    names = manifest(up, run)
    assert set(names) == {
        f"{run}_production.sql.zst.age",
        f"{run}_second.sql.zst.age",
        f"{run}.accounts.sql.zst.age",
        f"{run}.files.tar.zst.age",
    }
    # Loaded where nothing of it is, under another name.
    compare = """
        for kind in 'CHECKSUM TABLE kinds' 'SELECT * FROM seen' 'SHOW CREATE VIEW seen' 'SHOW CREATE TRIGGER shout' \\
            'SHOW CREATE PROCEDURE count_kinds' 'SHOW CREATE EVENT nightly' 'SHOW CREATE TABLE kinds' \\
            'SELECT @@collation_database'; do
            mariadb --skip-column-names -e "$kind" "$1" | sed -e "s/$1/NAME/g" -e 's/20[0-9-]* [0-9:.]*/WHEN/g'
        done
    """
    dump = clear(up, f"{run}_production.sql.zst.age").decode()
    load = (
        f"mariadb -e 'CREATE DATABASE again CHARACTER SET latin1'; mariadb again <<'END-OF-DUMP'\n{dump}\nEND-OF-DUMP"
    )
    with for_a_while(up, "db-1", load, "mariadb -e 'DROP DATABASE again'"):
        one, two = (up.sudo("db-1", f"set -- {name}\n{compare}").stdout for name in ("production", "again"))
    assert MARK in one
    assert one == two
    second = clear(up, f"{run}_second.sql.zst.age").decode()
    assert second.startswith("ALTER DATABASE CHARACTER SET latin1 COLLATE latin1_german1_ci;\n")
    assert MARK in second
    accounts = clear(up, f"{run}.accounts.sql.zst.age").decode()
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON `production`.* TO `application`@`10.20.0.11`" in accounts
    archive = clear(up, f"{run}.files.tar.zst.age")
    assert b"srv/files/a file" in archive
    assert b"etc/mysql/tls/server-key.pem" in archive


def test_only_whom_it_is_for_can_open_it_and_a_recipient_comes_and_goes(up: Rehearsal) -> None:
    first, second = identity(up), pyrage.x25519.Identity.generate()
    recipients = up.configuration()["backup"]["recipients"]
    (up.sudo("db-1", f"echo {second.to_public()} >> /etc/uds/backup/recipients"))
    try:
        assert back_up(up).status == 0
    finally:
        # Revoked: as the stack says again.
        up.uds("apply", "local", "db-1", "backup")
    both = f"{complete(kept(up))[-1]}_second.sql.zst.age"
    assert len(recipients) == 1
    assert back_up(up).status == 0
    after = f"{complete(kept(up))[-1]}_second.sql.zst.age"
    for key in (first, str(second)):
        assert MARK.encode() in unpacked(up, opened(fetched(up, both), key))
    assert MARK.encode() in unpacked(up, opened(fetched(up, after), first))
    with pytest.raises(pyrage.DecryptError):
        opened(fetched(up, after), str(second))


def test_no_recipient_no_backup(up: Rehearsal) -> None:
    before = kept(up)
    with for_a_while(
        up,
        "db-1",
        "mv /etc/uds/backup/recipients /root; echo age1nobody > /etc/uds/backup/recipients",
        "mv /root/recipients /etc/uds/backup/recipients",
    ):
        done = back_up(up)
    assert (done.status, "age failed with 1" in done.said) == (1, True)
    assert "--severity critical Backup FAILED (exit-code)" in done.alerts
    assert (kept(up), waiting(up)) == (before, [])


# What breaks


def survives(up: Rehearsal, before: dict[str, str]) -> None:
    """No earlier backup was harmed, and the next one is made."""
    assert before.items() <= kept(up).items()
    assert not [name for name in kept(up) if name.endswith(".part")]
    done = back_up(up)
    assert done.status == 0, done.said
    assert waiting(up) == []
    assert len(complete(kept(up))) > len(complete(before))


def test_the_database_is_down(up: Rehearsal) -> None:
    before = kept(up)
    done = back_up(up, "systemctl stop mariadb", "systemctl start mariadb")
    assert done.status == 1
    assert "no backup was made" in done.said
    assert "production: ERROR 2002" in done.alerts
    assert "--severity critical Backup FAILED (exit-code)" in done.alerts
    assert kept(up) == before
    survives(up, before)


def test_a_database_that_is_not_there_is_named(up: Rehearsal) -> None:
    before = kept(up)
    with for_a_while(
        up,
        "db-1",
        "mariadb -e 'RENAME TABLE second.notes TO production.notes; DROP DATABASE second'",
        "mariadb -e 'CREATE DATABASE second CHARACTER SET latin1 COLLATE latin1_german1_ci; "
        "RENAME TABLE production.notes TO second.notes'",
    ):
        done = back_up(up)
    assert (done.status, "second: there is no such database" in done.alerts) == (1, True)
    assert kept(up) == before


def test_a_dump_that_ends_too_early_is_no_backup(up: Rehearsal) -> None:
    before = kept(up)
    fake = "printf '#!/bin/sh\\nexec /usr/bin/mariadb-dump \"$@\" | head -c 900\\n' > /usr/local/bin/mariadb-dump"
    with for_a_while(up, "db-1", f"{fake}; chmod 755 /usr/local/bin/mariadb-dump", "rm /usr/local/bin/mariadb-dump"):
        done = back_up(up)
    assert done.status == 1
    assert "production: it ends too early, though every program says that all went well" in done.alerts
    assert kept(up) == before


def test_a_missing_path_is_named(up: Rehearsal) -> None:
    with for_a_while(up, "db-1", "mv /srv/files /srv/moved", "mv /srv/moved /srv/files"):
        done = back_up(up)
    assert (done.status, "files: tar failed with 2: tar: srv/files: Cannot stat" in done.alerts) == (1, True)


@pytest.mark.usefixtures("bulky")
def test_the_database_servers_disk_is_full(up: Rehearsal) -> None:
    before = kept(up)
    with for_a_while(up, "db-1", f"mount -t tmpfs -o size=10m,mode=700 tmpfs {SPOOL}", f"umount {SPOOL}"):
        done = back_up(up)
        assert waiting(up) == []
    assert done.status == 1
    assert f"the disk of {SPOOL} is full: 5% of it stay free for the database" in done.alerts
    assert "Backup FAILED" in done.alerts
    survives(up, before)


@pytest.mark.usefixtures("bulky")
def test_the_backup_servers_disk_is_full_and_it_says_so(up: Rehearsal) -> None:
    before = kept(up)
    up.sudo("backup-1", "rm -f /root/alerts")
    with for_a_while(
        up,
        "backup-1",
        f"mount -t tmpfs -o size=40m,mode=700 tmpfs {STORE}; head -c 30M /dev/zero > {STORE}/x",
        f"umount {STORE}",
    ):
        done = back_up(up)
    assert done.status == 1
    assert "the backup server does not take" in done.alerts
    assert "refused: " in up.sudo("backup-1", "cat /root/alerts").stdout
    left = waiting(up)
    assert len(complete(dict.fromkeys(left, ""))) == 1
    # What waits is encrypted, and goes with the next.
    heads = up.sudo("db-1", f"cd {SPOOL}; head -qc 21 *.age").stdout
    assert heads == "age-encryption.org/v1" * sum(name.endswith(".age") for name in left)
    survives(up, before)
    assert set(left) <= set(kept(up))


def test_the_backup_server_is_down_for_two_nights(up: Rehearsal) -> None:
    before = kept(up)
    rule = "INPUT -p tcp -s 10.20.0.5 --dport 22 -j REJECT --reject-with tcp-reset"
    with for_a_while(up, "backup-1", f"iptables -I {rule}", f"iptables -D {rule}"):
        nights = [back_up(up, f"sleep 1; rm -f {STAMP}") for _ in range(2)]
        assert up.sudo("db-1", f"ls {STAMP}", check=False).returncode
    for count, done in enumerate(nights, 1):
        assert done.status == 1
        assert "the backup server (10.20.0.6) can't be reached" in done.alerts
        assert f"{count} encrypted backups wait" in done.alerts
    assert kept(up) == before
    left = waiting(up)
    survives(up, before)
    assert set(left) <= set(kept(up))
    assert up.sudo("db-1", f"ls {STAMP}").stdout.strip() == STAMP


@pytest.mark.usefixtures("bulky")
def test_the_connection_is_cut_in_the_middle(up: Rehearsal) -> None:
    before = kept(up)
    # As soon as there is the beginning of a large file.
    cut = f"until find {STORE} -name '*_production.*.part' | grep -q .; do :; done; pkill -KILL -u backup-push"
    up.sudo("backup-1", f'systemd-run -q --collect --unit=cut bash -c "{cut}"')
    done = back_up(up)
    assert done.status == 1
    assert "can't be reached" in done.alerts
    until(lambda: not [name for name in kept(up) if name.endswith(".part")])
    assert not [name for name in kept(up).keys() - before.keys() if "_production." in name]
    survives(up, before)


@pytest.mark.usefixtures("bulky")
def test_it_is_killed_in_the_middle(up: Rehearsal) -> None:
    before = kept(up)
    kill = f"until find {SPOOL} -name '*.part' | grep -q .; do :; done; systemctl kill -s KILL uds-backup.service"
    done = back_up(up, f'systemd-run -q --collect --unit=kill bash -c "{kill}"')
    assert done.status == 1
    assert "--severity critical Backup FAILED (signal)" in done.alerts
    assert kept(up) == before
    survives(up, before)


def test_two_at_once(up: Rehearsal) -> None:
    before = kept(up)
    hold = f"systemd-run -q --unit=hold flock {SPOOL} sleep 300; until ! flock -n {SPOOL} true; do sleep 0.1; done"
    with for_a_while(up, "db-1", hold, "systemctl stop hold"):
        done = back_up(up)
    assert (done.status, "another backup is running" in done.alerts) == (1, True)
    assert kept(up) == before
    survives(up, before)


# When, and for how long


def test_it_is_made_at_00_01_and_made_up_for(up: Rehearsal) -> None:
    shown = up.sudo(
        "db-1", "systemctl show uds-backup.timer -p TimersCalendar -p Persistent -p RandomizedDelayUSec"
    ).stdout
    assert "OnCalendar=*-*-* 00:01:00 UTC" in shown
    assert "Persistent=yes" in shown
    assert "RandomizedDelayUSec=0" in shown
    before = complete(kept(up))
    # The server was off at that time.
    up.sudo(
        "db-1",
        "systemctl stop uds-backup.timer; touch -d -2days /var/lib/systemd/timers/stamp-uds-backup.timer; "
        "systemctl start uds-backup.timer",
    )
    until(lambda: len(complete(kept(up))) > len(before))
    until(lambda: "inactive" in up.sudo("db-1", "systemctl is-active uds-backup.service", check=False).stdout)


@pytest.mark.nightly("ten backups; the rule by itself is in test_backup_store.py")
def test_ten_nights_leave_what_the_rule_says(up: Rehearsal) -> None:
    up.sudo("backup-1", f"find {STORE} -type f -delete")
    made = []
    for _ in range(10):
        # A night passes for all that is there; their names say something else, which decides nothing.
        night = f'find {STORE} -type f -exec sh -c \'touch -d "@$(($(stat -c %Y "$1") - 86400))" "$1"\' sh {{}} \\;'
        up.sudo("backup-1", night)
        done = back_up(up, "sleep 1")
        assert done.status == 0, done.said
        made.append(complete(kept(up))[-1])
    assert complete(kept(up)) == made[-7:]
    # Whatever was said before still opens.
    assert MARK.encode() in clear(up, f"{made[-7]}_second.sql.zst.age")
