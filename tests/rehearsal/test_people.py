"""People come, change and go while the servers run: `uds admin` and `make up`, and nothing else (guide, 3.5 to 3.8)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import paramiko
import pytest

from tests.rehearsal.conftest import PASSWORD, Rehearsal, one_stack
from tests.rehearsal.people import (
    Door,
    Person,
    add,
    admits,
    command,
    console,
    deploy,
    dismiss,
    door,
    ends,
    enrol,
    log_in,
    new_key,
)
from tests.rehearsal.support import boots, resources

pytestmark = one_stack(
    "people are accounts on servers and values in a configuration; how they get there is in test_ssh.py"
)

SERVERS = ("app-1", "db-1")
CODES = "/var/lib/google-authenticator"
OWN_PASSWORD = "Quartz-Otter7!lamp"


@dataclass
class Team:
    """Two people on the live servers. The tests of this file change them, one after the other."""

    up: Rehearsal
    folder: Path
    carol: Person
    dave: Person
    app: Door
    machines: dict[str, str]
    """Machines and instances as they were before anybody came."""


@pytest.fixture(scope="module")
def team(up: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    machines = identities(up)
    try:
        people = enrol(up, folder, ("carol", "dave"))
        yield Team(up, folder, people["carol"], people["dave"], door(up, "app-1"), machines)
    finally:
        dismiss(up, ("carol", "dave"))
        for server in SERVERS:
            console(up, server, "rm -rf /home/carol* /home/dave*")


@dataclass(frozen=True)
class Session:
    """carol's, which stays open all the time: she has three tries in half a minute."""

    transport: paramiko.Transport
    code: str


@pytest.fixture(scope="module")
def session(team: Team) -> Iterator[Session]:
    code = team.carol.code()
    transport = log_in(team.app, team.carol, code)
    yield Session(transport, code)
    transport.close()


def identities(up: Rehearsal) -> dict[str, str]:
    instances = {name: one["id"] for name, one in resources(up).items() if name.endswith("-instance")}
    assert len(instances) == len(SERVERS)
    return instances | boots(up.realm())


def everywhere(up: Rehearsal, script: str) -> set[str]:
    """What both servers print."""
    return {console(up, server, script) for server in SERVERS}


def test_people_are_added_in_place(team: Team) -> None:
    listed = team.up.uds("admin", "list", team.up.name).stdout
    for person in (team.carol, team.dave):
        assert person.name in listed
        groups = everywhere(team.up, f"id -nG {person.name} | tr ' ' '\\n' | sort | xargs")
        assert groups == {" ".join(sorted([person.name, "ssh-users", "sudo", "uds-admins"])) + "\n"}
        assert everywhere(team.up, f"stat -c '%a %U' /home/{person.name} {CODES}/{person.name}") == {
            f"700 {person.name}\n400 root\n"
        }
    assert admits(team.app, team.dave, team.dave.code())
    assert identities(team.up) == team.machines
    assert "unchanged" in team.up.make("up", "--expect-no-changes").stdout


def test_sudo_asks_for_the_password_and_root_has_none(team: Team, session: Session) -> None:
    carol = session.transport
    assert command(carol, "sudo -n true")[0] == 1
    status, said = command(carol, "sudo -k -S -p '' id -un", "Wrong-Horse8!stamp\n")
    assert status == 1
    assert "root" not in said.split()
    status, said = command(carol, "sudo -k -S -p '' id -un", f"{PASSWORD}\n")
    assert (status, said.split()[-1]) == (0, "root")
    # The guide's way to root, which works though root's own account is locked.
    status, said = command(carol, "sudo -k -S -p '' su - -c 'id -un'", f"{PASSWORD}\n")
    assert (status, said.split()[-1]) == (0, "root")
    for password in ("", PASSWORD):
        status, said = command(carol, "su - -c 'echo got in'", f"{password}\n", terminal=True)
        assert status == 1, said
        assert "Authentication failure" in said
    assert "COMMAND=/usr/bin/id -un" in console(team.up, "app-1", "cat /var/log/sudo.log")


def test_a_key_changes_in_place_and_what_people_made_of_their_account_stays(team: Team, session: Session) -> None:
    """The run writes dave's key; carol's used codes and her new password are hers."""
    up, carol, dave = team.up, team.carol, team.dave
    status, said = command(session.transport, "passwd", f"{PASSWORD}\n{OWN_PASSWORD}\n{OWN_PASSWORD}\n")
    assert status == 0, said
    before = console(up, "app-1", f"ls -i {CODES}/carol; sha256sum {CODES}/carol; getent shadow carol")

    new = replace(dave, key=new_key(team.folder, "dave-new"))
    up.stack().set('admins["dave"].publicKeys[0]', Path(f"{new.key}.pub").read_text().strip(), secret=False)
    up.make("up")

    assert new.key.with_suffix(".pub").read_text().split()[1] in console(
        up, "db-1", "cat /etc/ssh/authorized_keys.d/dave"
    )
    code = dave.code(1)
    assert not admits(team.app, dave, code)
    assert admits(team.app, new, code)
    team.dave = new
    assert console(up, "app-1", f"ls -i {CODES}/carol; sha256sum {CODES}/carol; getent shadow carol") == before
    assert not admits(team.app, carol, session.code)
    assert admits(team.app, carol, carol.scratch[0])
    assert command(session.transport, "sudo -k -S -p '' true", f"{PASSWORD}\n")[0] == 1
    assert command(session.transport, "sudo -k -S -p '' true", f"{OWN_PASSWORD}\n")[0] == 0
    assert identities(up) == team.machines


def test_who_is_removed_is_out_at_once_and_can_come_back(team: Team, session: Session) -> None:
    up, dave = team.up, team.dave
    outer = log_in(team.app, dave, dave.scratch[0])
    through = log_in(team.app, deploy(up, team.folder))
    inner = log_in(door(up, "db-1"), dave, dave.code(), through=through)
    for one in (outer, inner):
        assert command(one, "echo mine > ~/notes; nohup sleep 1000 >/dev/null 2>&1 & echo started") == (0, "started\n")

    up.uds("admin", "remove", up.name, "dave")
    assert outer.is_alive()
    up.make("up")

    for one in (outer, inner):
        assert ends(one, 30)
    through.close()
    assert "dave" not in up.uds("admin", "list", up.name).stdout
    with pytest.raises(paramiko.AuthenticationException):
        log_in(team.app, dave, dave.scratch[1])
    traces = (
        "set +e; getent passwd dave; getent group dave; getent group sudo ssh-users uds-admins | grep dave;"
        " pgrep -x sleep;"
        f" ls /etc/ssh/authorized_keys.d/dave {CODES}/dave /var/lib/uds/accounts/dave.* 2>/dev/null;"
        " stat -c '%a %U' /home/dave; stat -c %U /home/dave/notes; true"
    )
    assert everywhere(up, traces) == {"700 root\nroot\n"}
    assert command(session.transport, "id -un") == (0, "carol\n")
    assert everywhere(up, "systemctl --failed --no-legend") == {""}

    again = add(up, team.folder, "dave")
    assert again.secret != dave.secret
    assert up.uds("admin", "add", up.name, "dave", "--key", f"{dave.key}.pub", check=False).returncode == 1
    up.make("up")
    # With the key of the first day, which `add` took again; what is left of the first dave is not the second one's.
    outer = log_in(team.app, again, again.code())
    assert command(outer, "pwd; ls; touch new && echo writable") == (0, "/home/dave\nwritable\n")
    assert command(outer, "cat /home/dave.*/notes")[0] != 0
    outer.close()
    team.dave = again
    assert everywhere(up, "cat /home/dave.*/notes") == {"mine\n"}
    assert identities(up) == team.machines


def test_a_person_who_cannot_be_is_refused_before_anything_changes(team: Team) -> None:
    up, key = team.up, f"{team.carol.key}.pub"
    before = up.configuration()
    for name, password, reason in [
        ("erin", "Password1!", "easy to guess"),
        ("erin", "short-7A!", "ten characters"),
        ("root", PASSWORD, "root"),
        ("deploy", PASSWORD, "deploy"),
        ("Erin Smith", PASSWORD, "Erin Smith"),
        ("carol", PASSWORD, "carol is an admin already"),
    ]:
        arguments = ("admin", "add", up.name, name, "--key", key, "--password-stdin")
        done = up.uds(*arguments, stdin=f"{password}\n", check=False)
        assert done.returncode == 1, name
        assert reason in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr
    assert up.uds("admin", "remove", up.name, "erin", check=False).returncode == 1
    assert up.configuration() == before
