"""Nobody gets in by SSH, and docs/recovery.md's table leads back in by the provider's console, word by word."""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.rehearsal.conftest import ROOT, Rehearsal, one_stack
from tests.rehearsal.people import Person, console, dismiss, door, enrol
from tests.rehearsal.terminal import Terminal

pytestmark = one_stack("a console is a console, and what is broken is on the server")

SERVERS = ("app-1", "db-1")
NOBODY = "192.0.2.1"


def documented(why: str) -> list[str]:
    """What the table says to type at the console."""
    for line in (ROOT / "docs" / "recovery.md").read_text().splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        if len(cells) == 5 and cells[1].strip().startswith(why):
            return [command.replace("\\|", "|") for command in re.findall(r"`(sudo .*?|echo .*?)`", cells[2])]
    raise AssertionError(f"the table has no row {why!r}")


@pytest.fixture(scope="module")
def alice(up: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    try:
        yield enrol(up, tmp_path_factory.mktemp("people"), ["alice"])["alice"]
    finally:
        dismiss(up, ["alice"])


def gets_in(up: Rehearsal, server: str = "app-1") -> bool:
    up.reconnect()
    return up.ssh(server, "true", check=False).returncode == 0


def is_reached(up: Rehearsal) -> bool:
    """Whether sshd of the first application server answers this machine."""
    with suppress(OSError), socket.create_connection((door(up, "app-1").address, 22), timeout=3) as connection:
        return connection.recv(3) == b"SSH"
    return False


def test_the_operators_have_another_address(up: Rehearsal, alice: Person) -> None:
    (let_in,) = documented("your address changed")
    # As if this machine had been elsewhere when the stack was made: first the server's own rules, while it still lets
    # this machine in, then the cloud's.
    up.configure("ssh", {"allowedSources": [f"{NOBODY}/32"]})
    for what in ("**::app-1-hardening-apply", "**::app-1-firewall"):
        up.pulumi("up", "--yes", "--skip-preview", "--target", what)
    assert not is_reached(up)
    with Terminal(up, "app-1", alice) as terminal:
        terminal.type(let_in.replace("YOUR_ADDRESS", up.realm().operator_v4))
    # The cloud's own firewall still stands in front.
    assert not is_reached(up)
    # It names this machine's address, as the operator does in `ssh.allowedSources`.
    up.make("up")
    assert gets_in(up)
    assert NOBODY not in console(up, "app-1", "iptables -S; cat /etc/ssh/sshd_config.d/*")
    assert console(up, "app-1", "iptables -S TCP | grep -c -- '--dport 22 '") == "1\n"
    up.make("up", "--expect-no-changes")


BROKEN = {
    # Only what is in force, ...
    "netfilter-persistent": "iptables -F TCP",
    # ... and what would be at the next boot too.
    "iptables": "iptables -F TCP; sed -i '/--dport 22 /d' /etc/iptables/rules.v4",
}


@pytest.mark.parametrize("command", BROKEN)
def test_the_servers_rules_are_broken(up: Rehearsal, alice: Person, command: str) -> None:
    (mend,) = [line for line in documented("the host's rules are broken") if command in line]
    console(up, "app-1", BROKEN[command])
    assert not is_reached(up)
    with Terminal(up, "app-1", alice) as terminal:
        terminal.type(mend)
    assert gets_in(up)
    up.uds("apply", up.name, "app-1", "hardening")
    assert gets_in(up)
    assert console(up, "app-1", "iptables -S INPUT").startswith("-P INPUT DROP\n")


@pytest.mark.parametrize("server", SERVERS)
def test_sshd_does_not_start(up: Rehearsal, alice: Person, server: str) -> None:
    test, log, reset, restart = documented("sshd doesn't start")
    path = "/etc/ssh/sshd_config.d/00-broken.conf"
    console(up, server, f"echo Nonsense yes > {path}; systemctl restart ssh || true")
    assert not gets_in(up, server)
    with Terminal(up, server, alice) as terminal:
        # Its words, and not its status.
        assert f"{path}: line 1: Bad configuration option" in terminal.type(f"{test}; true")
        assert path in terminal.type(f"{log} --no-pager")
        terminal.type(f"sudo rm {path}")
        terminal.type(reset)
        terminal.type(restart)
    assert gets_in(up, server)
    up.uds("apply", up.name, server, "hardening")
    assert gets_in(up, server)


@pytest.mark.nightly("new secrets of the whole stack; the console is used by the others too")
def test_the_deploy_key_is_lost_with_the_configuration(up: Rehearsal, alice: Person) -> None:
    install, change = documented("the deploy key is lost")
    for section in ("deploy", "database"):
        up.stack().remove(section)
    (up.workspace / "keys" / "deploy").unlink()
    up.uds("init", up.name, "--passphrase-file", str(up.workspace / "passphrase"))
    deploy = up.stack().section("deploy")
    assert not gets_in(up)
    for server in SERVERS:
        with Terminal(up, server, alice) as terminal:
            terminal.type(install.replace("PUBLIC_KEY", deploy["publicKey"]))
            terminal.type(change, [deploy["sudoPassword"]] * 2)
    for server in SERVERS:
        assert gets_in(up, server)
    up.make("up")
    up.uds("verify", up.name)
    up.make("up", "--expect-no-changes")
