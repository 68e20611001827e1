"""Rotations and updates by the operator's command, on a stack in memory and servers that are stand-ins."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from pyrage import passphrase as age_passphrase

from components.cloud_init import bootstrap_files, bootstrap_host_key
from components.settings import parse
from tests.unit.memory import OUTPUTS, Memory
from tests.unit.support import configuration
from uds import init, rotate, ssh
from uds import update as updates
from uds.backup.identity import Identities
from uds.stack import OperatorError

PASSPHRASE = "correct horse battery staple"
FIXED = ("cloud", "region", "ssh")


@dataclass
class Servers:
    """What was done as root, and what it is answered with: by a word of the command, a status and what it prints."""

    answers: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)
    done: list[tuple[str, str, str]] = field(default_factory=list)
    """Server, command, standard input."""
    logins: list[str] = field(default_factory=list)
    """Servers that somebody logged in to with the key of an agent."""

    def as_root(
        self, _opened: Sequence[str], server: str, _password: str, command: str, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        self.done.append((server, command, stdin))
        for (name, word), answers in self.answers.items():
            if name == server and word in command:
                status, text = answers.pop(0) if len(answers) > 1 else answers[0]
                return subprocess.CompletedProcess([], status, text, text)
        return subprocess.CompletedProcess([], 0, "", "")

    def of(self, server: str) -> list[str]:
        return [command for name, command, _ in self.done if name == server]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    servers = Servers()

    @contextmanager
    def nobody(*_: object) -> Iterator[Any]:
        yield ["ssh"]

    monkeypatch.setattr(ssh, "as_root", servers.as_root)
    monkeypatch.setattr(ssh, "opened", nobody)
    monkeypatch.setattr(ssh, "agent", nobody)

    def log_in(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        servers.logins.append(command[-2])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", log_in)
    return servers


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    # age makes a passphrase cost a second to try.
    monkeypatch.setattr(age_passphrase, "encrypt", lambda text, _passphrase: text)
    stack = Memory("test", tmp_path, tmp_path / "keys", {})
    stack.values.update({key: configuration()[key] for key in FIXED})
    list(init.initialise(stack, passphrase))
    return stack


def passphrase() -> str:
    return PASSPHRASE


def public_of(private: str) -> str:
    return init.public_line(private, "deploy@test")


# The deploy key


def test_every_server_takes_both_deploy_keys_before_the_stack_has_the_new_one(stack: Memory, servers: Servers) -> None:
    old = stack.values["deploy"]["privateKey"]
    rotate.deploy_key(stack, passphrase)
    new = stack.values["deploy"]["privateKey"]
    assert new != old
    assert stack.values["deploy"]["publicKey"] == public_of(new)
    both = f"{public_of(old)}\n{public_of(new)}\n"
    assert [(server, stdin) for server, _, stdin in servers.done] == [(name, both) for name in OUTPUTS["servers"]]
    assert servers.logins == list(OUTPUTS["servers"])
    parse(stack.config())
    # The operator's own copy is of the new one.
    copy = load_ssh_private_key((stack.keys / "deploy").read_bytes(), PASSPHRASE.encode())
    assert copy.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == " ".join(
        public_of(new).split()[:2]
    )


@pytest.mark.parametrize("server", ["app-1", "db-1"])
def test_a_server_that_does_not_take_the_new_key_leaves_the_stack_with_the_old_one(
    stack: Memory, servers: Servers, server: str
) -> None:
    before, copy = dict(stack.values["deploy"]), (stack.keys / "deploy").read_bytes()
    servers.answers[server, "authorized_keys"] = [(255, "Connection timed out")]
    with pytest.raises(OperatorError, match=rf"^{server}: Connection timed out\. Run it again\.$"):
        rotate.deploy_key(stack, passphrase)
    assert stack.values["deploy"] == before
    assert (stack.keys / "deploy").read_bytes() == copy


@pytest.mark.usefixtures("servers")
def test_a_wrong_passphrase_is_told_before_any_server_is_touched(stack: Memory, servers: Servers) -> None:
    with pytest.raises(OperatorError, match="The passphrase does not open"):
        rotate.deploy_key(stack, lambda: "another one that is long")
    assert servers.done == []


@pytest.mark.usefixtures("servers")
def test_a_rotation_that_broke_between_the_two_halves_can_be_run_again(stack: Memory) -> None:
    stack.breaks_at.append(2)
    with pytest.raises(OperatorError, match="the connection broke"):
        rotate.deploy_key(stack, passphrase)
    assert stack.values["deploy"]["publicKey"] != public_of(stack.values["deploy"]["privateKey"])
    rotate.deploy_key(stack, passphrase)
    assert stack.values["deploy"]["publicKey"] == public_of(stack.values["deploy"]["privateKey"])


# A server's host key


def test_a_server_shows_the_first_key_again_until_its_new_one_is_known(stack: Memory, servers: Servers) -> None:
    assert rotate.host_key(stack, "db-1") == "**::db-1-first-contact"
    ((server, command, script),) = servers.done
    assert (server, command) == ("db-1", "sh -eu")
    key = bootstrap_host_key(stack.values["deploy"]["bootstrapSeed"], "db-1")
    private = bootstrap_files(key)[0].content
    assert private.splitlines()[1] in script
    # The lasting one is made anew only when the other one is in place: an interrupted run leaves one that is known.
    assert script.index("bootstrap_host_key.new") < script.index("rm -f ssh_host_ed25519_key")


def test_a_server_that_there_is_not_has_no_host_key(stack: Memory, servers: Servers) -> None:
    with pytest.raises(OperatorError, match=r"There is no server db-2\. Servers: app-1, app-2, db-1\."):
        rotate.host_key(stack, "db-2")
    assert servers.done == []


# The database, and backups


def test_the_databases_passwords_are_new(stack: Memory) -> None:
    before = stack.values["database"]["password"]
    rotate.database_password(stack)
    assert stack.values["database"]["password"] != before
    assert "migrationPassword" not in stack.values["database"]
    stack.set("database.migrationUser", "migrate", secret=False)
    stack.set("database.migrationPassword", "the old one, which is long enough", secret=True)
    rotate.database_password(stack)
    assert stack.values["database"]["migrationPassword"] != "the old one, which is long enough"
    assert {"database.password", "database.migrationPassword"} <= stack.encrypted
    parse(stack.config())


def test_the_databases_certificate_is_new_and_its_authority_is_not(stack: Memory) -> None:
    before = dict(stack.values["database"])
    rotate.database_certificate(stack, passphrase)
    after = stack.values["database"]
    assert {key for key in after if after[key] != before[key]} == {"certificate", "privateKey"}
    parse(stack.config())


def test_no_certificate_is_made_for_an_address_that_there_is_not(stack: Memory) -> None:
    before = dict(stack.values["database"])
    stack.values["network"] = {"cidr": "203.0.113.0/24"}
    with pytest.raises(OperatorError, match=r"network\.cidr can't be used"):
        rotate.database_certificate(stack, passphrase)
    assert stack.values["database"] == before


def test_a_new_identity_stands_beside_the_old_one_which_opens_old_backups(stack: Memory) -> None:
    (mine,) = stack.values["backup"]["recipients"]
    other = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    stack.set("backup.recipients[1]", other, secret=False)
    recipient = rotate.backup_identity(stack, passphrase)
    assert recipient != mine
    assert stack.values["backup"]["recipients"] == [recipient, other]
    assert Identities.load(stack.keys / init.BACKUP_IDENTITY, passphrase).recipients == [recipient, mine]
    parse(stack.config())


# Updates


def test_servers_are_updated_one_after_the_other_and_the_bastion_last(stack: Memory, servers: Servers) -> None:
    servers.answers["db-1", "unattended-upgrade"] = [(0, "openssl 3.5.4-1\nlibssl3 3.5.4-1\n")]
    servers.answers["db-1", "watch reboot"] = [(1, "a reboot is needed")]
    servers.answers["db-1", "systemctl show"] = [(0, "100"), (255, ""), (0, "100"), (0, "200")]
    done = updates.update(stack, lambda _: None)
    assert done == [
        updates.Updated("db-1", ("openssl 3.5.4-1", "libssl3 3.5.4-1"), rebooted=True),
        updates.Updated("app-2", (), rebooted=False),
        updates.Updated("app-1", (), rebooted=False),
    ]
    assert [server for server, command, _ in servers.done if "unattended-upgrade" in command] == [
        "db-1",
        "app-2",
        "app-1",
    ]
    assert servers.of("db-1").count("systemctl reboot") == 1
    assert "systemctl reboot" not in servers.of("app-1")


@pytest.mark.parametrize(
    ("word", "answers", "said"),
    [
        ("unattended-upgrade", [(100, "E: The repository can't be read")], "db-1: E: The repository can't be read"),
        ("watch reboot", [(255, "ssh: connection timed out")], "db-1: ssh: connection timed out"),
        ("list-units --failed", [(0, "mariadb.service\nssh.socket")], "without mariadb.service, ssh.socket"),
    ],
)
def test_the_next_server_is_left_alone_where_one_did_not_come_back_whole(
    stack: Memory, servers: Servers, word: str, answers: list[tuple[int, str]], said: str
) -> None:
    servers.answers["db-1", "watch reboot"] = [(1, "a reboot is needed")]
    servers.answers["db-1", word] = answers
    servers.answers["db-1", "systemctl show"] = [(0, "100"), (0, "200")]
    with pytest.raises(OperatorError, match=said):
        updates.update(stack, lambda _: None)
    assert servers.of("app-2") == servers.of("app-1") == []


def test_a_server_that_does_not_come_back_is_not_waited_for_for_ever(
    stack: Memory, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "_PATIENCE", 0)
    servers.answers["db-1", "watch reboot"] = [(1, "a reboot is needed")]
    with pytest.raises(OperatorError, match="db-1 has not come back"):
        updates.update(stack, lambda _: None)
