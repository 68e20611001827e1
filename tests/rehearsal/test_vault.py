"""What somebody can do to the backups who is root on the database server, and so has the key that adds them."""

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator

import pytest

from components.backup import PUSH_ACCOUNT, STORE
from components.backup.store import RUNS_A_DAY
from tests.rehearsal.backups import complete, hearing_alerts, kept, manifest
from tests.rehearsal.conftest import Rehearsal, one_stack
from tests.rehearsal.people import for_a_while
from tests.rehearsal.support import until

pytestmark = one_stack("what an account may do is for sshd and the program behind it to say")

SERVER = "10.20.0.6"
AGE = b"age-encryption.org/v1\n"
# The stolen key, with none of the options that our own program gives.
SSH = (
    "-F none -i /etc/uds/backup/key -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=10 -o LogLevel=INFO "
    "-o UserKnownHostsFile=/etc/uds/backup/known_hosts -o HostKeyAlias=backup"
)
REFUSED = "refused: this account adds backups, and does nothing else"
RUN = "20261111T111111Z"


@pytest.fixture(scope="module")
def up(own_with_backups: Rehearsal) -> Iterator[Rehearsal]:
    # Not one that others share: monit tells for a minute after it that a file was replaced.
    with hearing_alerts(own_with_backups):
        yield own_with_backups


@pytest.fixture(autouse=True)
def _nothing_is_lost(up: Rehearsal) -> Iterator[None]:
    """Whatever is tried: the backups that were there are there, as they were, and what was added meanwhile goes."""
    before = kept(up)
    yield
    after = kept(up)
    assert before.items() <= after.items()
    assert not [name for name in after if name.endswith(".part")]
    added = " ".join(f"'{name}'" for name in after.keys() - before.keys())
    up.sudo("backup-1", f"cd {STORE}; rm -f -- {added}")


def steal(up: Rehearsal, command: str, server: str = "db-1") -> subprocess.CompletedProcess[str]:
    """A command of the intruder's, as root on the database server."""
    return up.sudo(server, command, check=False)


def push(up: Rehearsal, name: str, content: bytes, **said: object) -> str:
    """What the backup server answers to a file, handed over by the protocol itself."""
    header = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **said}
    text = base64.b64encode(json.dumps(header).encode() + b"\n" + content).decode()
    done = steal(up, f"base64 -d <<'END' | timeout 60 ssh {SSH} -T {PUSH_ACCOUNT}@{SERVER} 2>&1\n{text}\nEND")
    return done.stdout


def whole(name: str, content: bytes) -> bytes:
    return json.dumps({"files": [{"name": name, "size": len(content)}]}).encode()


def test_no_command_is_run(up: Rehearsal) -> None:
    commands = [
        f"ls {STORE}",
        f"cat {STORE}/*",
        f"rm -rf {STORE}",
        "sh -i",
        "/usr/local/sbin/uds-backup-receive",
        "rsync --server --sender -logDtpre.iLsfxC . /var/backups/uds/",
        "scp -f /etc/passwd",
        "internal-sftp",
        "$(id)",
    ]
    tries = (f"ssh {SSH} {PUSH_ACCOUNT}@{SERVER} '{command}' </dev/null; echo $?" for command in commands)
    done = steal(up, "\n".join(tries))
    assert done.stdout.split() == ["1"] * len(commands)
    assert done.stderr.count(REFUSED) == len(commands)


def test_there_is_no_shell_and_no_terminal(up: Rehearsal) -> None:
    done = steal(up, f"echo id | timeout 30 ssh {SSH} -tt {PUSH_ACCOUNT}@{SERVER} 2>&1")
    assert "PTY allocation request failed" in done.stdout
    assert "uid=" not in done.stdout


def test_there_is_no_file_transfer(up: Rehearsal) -> None:
    for command in (
        f"echo 'ls {STORE}' | sftp -b - {SSH} {PUSH_ACCOUNT}@{SERVER}",
        f"scp {SSH} {PUSH_ACCOUNT}@{SERVER}:/etc/passwd /root/stolen",
        f"scp -O {SSH} {PUSH_ACCOUNT}@{SERVER}:/etc/passwd /root/stolen",
        f"scp {SSH} /etc/hostname {PUSH_ACCOUNT}@{SERVER}:{STORE}/x",
    ):
        done = steal(up, f"{command} </dev/null; echo status=$?; ls /root/stolen 2>&1")
        assert "status=0" not in done.stdout
        assert "No such file" in done.stdout


def test_nothing_is_forwarded(up: Rehearsal) -> None:
    # A connection that adds nothing and stays, with everything asked for.
    ways = f"-A -X -L 7001:127.0.0.1:22 -R 7002:127.0.0.1:22 -D 7003 -o ExitOnForwardFailure=no {SSH}"
    script = f"""
        eval "$(ssh-agent)" >/dev/null
        sleep 20 | ssh {ways} -v {PUSH_ACCOUNT}@{SERVER} >/root/said 2>&1 &
        for _ in $(seq 100); do grep -q 'Entering interactive session' /root/said && break; sleep 0.1; done
        sleep 1
        for port in 7001 7003; do
            (exec 3<>/dev/tcp/127.0.0.1/$port; printf '\\5\\1\\0' >&3; timeout 3 head -c 8 <&3) 2>/dev/null | od -c
        done
        timeout 10 ssh -W 127.0.0.1:22 {SSH} {PUSH_ACCOUNT}@{SERVER} </dev/null 2>&1
        timeout 10 ssh -W 10.20.0.11:22 {SSH} {PUSH_ACCOUNT}@{SERVER} </dev/null 2>&1
        cat /root/said; ssh-agent -k >/dev/null; rm /root/said
    """
    said = steal(up, script).stdout
    assert "S   S   H" not in said
    assert said.count("administratively prohibited") >= 3
    assert "remote port forwarding failed" in said or "Warning: remote port forwarding failed" in said
    listening = up.sudo("backup-1", "ss -Hltn").stdout
    assert "7002" not in listening


def test_no_variable_gets_in_that_would_change_a_program(up: Rehearsal) -> None:
    probe = "LD_PRELOAD=/x BASH_ENV=/x ENV=/x PYTHONPATH=/x PYTHONINSPECT=1"
    options = " ".join(f"-o SetEnv={one}" for one in probe.split())
    answer = steal(up, f"echo x | ssh {options} {SSH} {PUSH_ACCOUNT}@{SERVER} 2>&1").stdout
    assert "refused: the first line must be JSON" in answer
    accepted = up.sudo(
        "backup-1", f"sshd -T -C user={PUSH_ACCOUNT},host=10.20.0.5,addr=10.20.0.5 | grep acceptenv"
    ).stdout
    assert {line.split()[1] for line in accepted.splitlines()} <= {"LANG", "LC_*", "COLORTERM", "NO_COLOR"}


def test_no_other_account_opens_to_the_key(up: Rehearsal) -> None:
    for name in ("root", "deploy", "backup", "mysql"):
        done = steal(up, f"ssh {SSH} {name}@{SERVER} id </dev/null")
        assert "Permission denied" in done.stderr


def test_the_key_is_of_no_use_elsewhere(up: Rehearsal) -> None:
    key = up.sudo("db-1", "base64 -w0 /etc/uds/backup/key; echo; cat /etc/uds/backup/known_hosts").stdout
    private, known = key.split("\n", 1)
    script = f"""
        install -d -m 0700 /root/thief
        base64 -d <<< {private} > /root/thief/key; chmod 600 /root/thief/key
        echo '{known.strip()}' > /root/thief/known_hosts
        ssh {SSH.replace("/etc/uds/backup", "/root/thief")} {PUSH_ACCOUNT}@{SERVER} </dev/null
        status=$?; rm -rf /root/thief; exit $status
    """
    # The bastion reaches SSH there, but with this key it is asked for a code that nobody has.
    done = steal(up, script, "app-1")
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_what_is_there_is_not_written_over_read_or_added_to(up: Rehearsal) -> None:
    run = complete(kept(up))[-1]
    name = next(iter(manifest(up, run)))
    assert "refused: this file is here already, with another content" in push(up, name, AGE + b"evil")
    assert "refused: this file is here already, with another content" in push(up, f"{run}.manifest.json", b"{}")
    answer = push(up, f"{run}_evil.sql.zst.age", AGE)
    assert answer.endswith("\nrefused: this backup is complete: it takes no more files\n")
    # It is told on the backup server, whose word nobody on the database server can take away.
    until(lambda: "A file of a backup was not taken" in up.sudo("backup-1", "cat /root/alerts; true").stdout)


def test_nothing_is_written_anywhere_else(up: Rehearsal) -> None:
    for name in (f"../../../root/{RUN}.manifest.json", "/etc/cron.d/x", f"{RUN}_x.sql.zst.age.part"):
        assert "refused: this is no name of a backup's file" in push(up, name, AGE)


def test_what_is_cut_or_not_encrypted_never_counts(up: Rehearsal) -> None:
    before = kept(up)
    name = f"{RUN}_x.sql.zst.age"
    assert "not encrypted" in push(up, name, b"in clear")
    assert "another checksum" in push(up, name, AGE, sha256="0" * 64)
    assert "are missing" in push(up, name, AGE, size=1000)
    assert "larger than was said" in push(up, name, AGE + b"x" * 100, size=40)
    assert "the manifest names other files" in push(up, f"{RUN}.manifest.json", whole(name, AGE))
    assert kept(up) == before


def test_a_flood_is_stopped_and_no_good_copy_goes(up: Rehearsal) -> None:
    # Ids of a wrong clock are taken: a backup is not lost for that. They put nothing else out of its place.
    for year in (1999, 2099):
        name = f"{year}1111T111111Z_x.sql.zst.age"
        assert f"stored {name}" in push(up, name, AGE)
        assert "stored" in push(up, f"{year}1111T111111Z.manifest.json", whole(name, AGE))
    assert "at most 50% of the disk is taken in 24 hours" in push(up, f"{RUN}_x.sql.zst.age", AGE, size=10**15)
    # As if they had been pushed before: it is only the number that counts.
    many = f"for n in $(seq 10 {RUNS_A_DAY + 10}); do touch {STORE}/20190101T0000${{n}}Z_x.sql.zst.age; done"
    up.sudo("backup-1", many)
    assert f"at most {RUNS_A_DAY} backups are taken in 24 hours" in push(up, f"{RUN}_x.sql.zst.age", AGE)


def test_the_way_in_stays_open_for_the_operator_meanwhile(up: Rehearsal) -> None:
    hang = f"for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 60 | ssh {SSH} -T {PUSH_ACCOUNT}@{SERVER} & done"
    with for_a_while(up, "db-1", f"systemd-run -q --unit=hang bash -c '{hang}; wait'", "systemctl stop hang"):
        assert up.ssh("backup-1", "true").returncode == 0
