"""The operator's command, on a stack in memory and with stand-ins for pulumi and ssh."""

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyotp
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from passlib.hash import sha512_crypt
from pyrage import DecryptError, x25519
from pyrage import passphrase as age_passphrase
from typer.testing import CliRunner

from components.settings import PROJECT, parse
from tests.unit.memory import OUTPUTS, Memory
from tests.unit.support import configuration, ed25519_pair, put, text_at
from uds import __main__ as command
from uds import admin, init, ssh
from uds.stack import ROOT, OperatorError, Stack

PASSPHRASE = "correct horse battery staple"
PASSWORD = "Zebra-Quilt7+lantern"


@pytest.fixture(autouse=True)
def cheap_encryption() -> Iterator[pytest.MonkeyPatch]:
    """age makes a passphrase cost a second to try, and much more on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(age_passphrase, "encrypt", lambda text, _passphrase: text)
        yield patch


@pytest.fixture
def stack(tmp_path: Path) -> Memory:
    return Memory("test", tmp_path, tmp_path / "keys", {})


def passphrase() -> str:
    return PASSPHRASE


def never() -> str:
    raise AssertionError("nobody is asked")


# init


def test_init_and_an_admin_make_settings_that_the_program_takes(stack: Memory) -> None:
    stack.values.update({key: configuration()[key] for key in ("cloud", "region", "ssh")})
    list(init.initialise(stack, passphrase))
    _, key = ed25519_pair()
    admin.add(stack, "alice", [f"{key} alice"], PASSWORD)
    settings = parse(stack.config())
    deploy = settings.deploy
    assert deploy.public_key.endswith(" deploy@test")
    assert sha512_crypt.verify(deploy.sudo_password.get_secret_value(), deploy.sudo_password_hash.get_secret_value())
    assert settings.admins["alice"].public_keys == (f"{key} alice",)


def test_pulumi_is_asked_for_the_configuration_once_until_somebody_changes_it(stack: Memory) -> None:
    stack.values["region"] = "eu-central"
    first = stack.config()
    first["user-data-security:region"] = "the reader's own"
    assert [stack.config()["user-data-security:region"], stack.section("deploy")] == ["eu-central", {}]
    assert stack.arguments == ["config", "--json", "--show-secrets"]
    stack.values["region"] = "us-east"
    assert stack.config()["user-data-security:region"] == "us-east"


def test_what_is_secret_is_encrypted_and_never_an_argument(stack: Memory) -> None:
    list(init.initialise(stack, passphrase))
    admin.add(stack, "alice", [ed25519_pair()[1]], PASSWORD)
    assert stack.encrypted == {
        *(f"deploy.{key}" for key in ("privateKey", "sudoPassword", "sudoPasswordHash", "bootstrapSeed")),
        *(f"database.{key}" for key in ("password", "privateKey")),
        "backup.privateKey",
        *(f'admins["alice"].{key}' for key in ("passwordHash", "totpSecret")),
        *(f'admins["alice"].scratchCodes[{number}]' for number in range(5)),
    }
    for path in stack.encrypted:
        assert not any(text_at(stack.values, path) in argument for argument in stack.arguments)
    assert not any(PASSWORD in text for text in (json.dumps(stack.values), *stack.arguments))


def test_init_again_changes_nothing_and_asks_nothing(stack: Memory) -> None:
    assert list(init.initialise(stack, passphrase))
    before = json.dumps(stack.values), (stack.keys / "deploy").read_bytes()
    assert list(init.initialise(stack, never)) == []
    assert (json.dumps(stack.values), (stack.keys / "deploy").read_bytes()) == before


@pytest.mark.parametrize(
    ("lost", "made", "new"),
    [
        (["deploy.sudoPassword"], "sudo password", {"sudoPassword", "sudoPasswordHash"}),
        (["deploy.sudoPasswordHash"], "sudo password", {"sudoPassword", "sudoPasswordHash"}),
        (["deploy.bootstrapSeed"], "seed", {"bootstrapSeed"}),
        (["deploy.publicKey", "deploy.privateKey"], "deploy key", {"publicKey", "privateKey"}),
    ],
)
def test_init_makes_only_what_is_missing(stack: Memory, lost: list[str], made: str, new: set[str]) -> None:
    list(init.initialise(stack, passphrase))
    before = dict(stack.values["deploy"])
    for path in lost:
        put(stack.values, path, None)
    (what,) = init.initialise(stack, never)
    assert made in what
    after = stack.values["deploy"]
    assert {key for key in before if after[key] != before[key]} == new


@pytest.mark.parametrize("half", ["deploy.publicKey", "deploy.privateKey"])
def test_half_a_deploy_key_is_not_guessed_at(stack: Memory, half: str) -> None:
    list(init.initialise(stack, passphrase))
    put(stack.values, half, None)
    with pytest.raises(OperatorError, match="one of them is missing"):
        list(init.initialise(stack, never))


def test_the_operators_copy_opens_with_the_passphrase_only_and_is_theirs_alone(stack: Memory) -> None:
    list(init.initialise(stack, passphrase))
    copy = stack.keys / "deploy"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (copy, stack.keys)] == [0o600, 0o700]
    assert {path.name for path in stack.keys.iterdir()} == {"deploy", "database-ca.key", "backup-identity.age"}
    key = load_ssh_private_key(copy.read_bytes(), PASSPHRASE.encode())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert stack.values["deploy"]["publicKey"] == f"{public} deploy@test"
    for wrong in (None, b"another passphrase"):
        with pytest.raises((ValueError, TypeError)):
            load_ssh_private_key(copy.read_bytes(), wrong)


def test_a_lost_copy_is_made_again_from_the_same_key(stack: Memory) -> None:
    list(init.initialise(stack, passphrase))
    (stack.keys / "deploy").unlink()
    (what,) = init.initialise(stack, passphrase)
    assert str(stack.keys / "deploy") in what
    copy = load_ssh_private_key((stack.keys / "deploy").read_bytes(), PASSPHRASE.encode())
    stacks = load_ssh_private_key(stack.values["deploy"]["privateKey"].encode(), None)
    assert copy.public_key() == stacks.public_key()


def test_the_identity_that_opens_backups_stays_with_the_operator(
    stack: Memory, cheap_encryption: pytest.MonkeyPatch
) -> None:
    cheap_encryption.undo()
    list(init.initialise(stack, passphrase))
    file = stack.keys / "backup-identity.age"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = age_passphrase.decrypt(file.read_bytes(), PASSPHRASE).decode()
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    identity = x25519.Identity.from_str(line)
    assert stack.values["backup"]["recipients"] == [str(identity.to_public())]
    assert "AGE-SECRET-KEY" not in json.dumps(stack.values) + "".join(stack.arguments)
    with pytest.raises(DecryptError):
        age_passphrase.decrypt(file.read_bytes(), "another passphrase")
    # Also where the configuration was lost: backups go on to whoever can open the old ones.
    put(stack.values, "backup.recipients", None)
    (what,) = init.initialise(stack, passphrase)
    assert "identity" in what
    assert stack.values["backup"]["recipients"] == [str(identity.to_public())]
    put(stack.values, "backup.recipients", None)
    with pytest.raises(OperatorError, match="passphrase does not open"):
        list(init.initialise(stack, lambda: "another passphrase"))


def test_recipients_of_ones_own_need_no_identity_here(stack: Memory) -> None:
    own = str(x25519.Identity.generate().to_public())
    put(stack.values, "backup.recipients", [own])
    list(init.initialise(stack, passphrase))
    assert stack.values["backup"]["recipients"] == [own]
    assert not (stack.keys / "backup-identity.age").exists()


def test_without_the_backup_server_no_keys_of_it_are_made(stack: Memory) -> None:
    put(stack.values, "backup", {"server": False})
    list(init.initialise(stack, passphrase))
    assert stack.values["backup"] == {"server": False}


def test_for_the_bucket_alone_there_is_an_identity_and_no_key(stack: Memory) -> None:
    put(stack.values, "backup", {"server": False, "bucket": True})
    list(init.initialise(stack, passphrase))
    assert stack.values["backup"].keys() == {"server", "bucket", "recipients"}
    assert (stack.keys / "backup-identity.age").exists()


# admin


@pytest.mark.parametrize(
    ("password", "lacks"),
    [
        ("Zq7+lante", "ten characters"),
        ("zebra-quilt7+lantern", "an upper-case letter"),
        ("ZEBRA-QUILT7+LANTERn", "two lower-case letters"),
        ("Zebra-Quilt+lantern", "a digit"),
        ("ZebraQuilt7lantern", "a symbol"),
        ("", "ten characters, an upper-case letter, two lower-case letters, a digit, a symbol"),
    ],
)
def test_a_password_needs_what_the_guide_says(password: str, lacks: str) -> None:
    with pytest.raises(OperatorError) as raised:
        admin.check_password(password, "alice")
    assert str(raised.value) == f"The password lacks {lacks}."


EASY = ["Password1!", "Qwerty123456!", "aliceX7+lantern-quilt", "ALICEx7+lantern-quilt", "Aa1!" * 4]


@pytest.mark.parametrize("password", EASY)
def test_a_password_of_all_kinds_that_is_easy_to_guess_is_refused(password: str) -> None:
    with pytest.raises(OperatorError, match="easy to guess") as raised:
        admin.check_password(password, "alice")
    assert password not in str(raised.value)


@pytest.mark.parametrize("password", [PASSWORD, "aB3+" + "kXqvR9m" * 3, "Zebra quilt 7 lantern " * 10])
def test_a_good_password_is_taken(password: str) -> None:
    admin.check_password(password, "alice")


def test_an_admin_gets_what_their_app_and_the_server_agree_on(stack: Memory) -> None:
    keys = [f"{ed25519_pair()[1]} one", f"{ed25519_pair()[1]} two\n"]
    enrolment = admin.add(stack, "alice-b", keys, PASSWORD)
    stored = stack.values["admins"]["alice-b"]
    app = pyotp.parse_uri(enrolment.uri)
    assert isinstance(app, pyotp.TOTP)
    # The module's defaults, which apps assume too: six digits of SHA-1, every 30 seconds.
    assert (app.secret, app.digits, app.interval) == (stored["totpSecret"], 6, 30)
    assert (app.name, app.issuer) == ("alice-b", "Servers test")
    # Some apps show what only a web form would decode.
    assert not {"+", "%3A"} & set(re.findall(r"\+|%3A", enrolment.uri))
    assert enrolment.secret == stored["totpSecret"]
    assert list(enrolment.scratch_codes) == stored["scratchCodes"]
    assert len(set(stored["scratchCodes"])) == 5
    assert sha512_crypt.verify(PASSWORD, stored["passwordHash"])
    assert stored["publicKeys"] == [key.strip() for key in keys]


def test_two_admins_share_no_secret(stack: Memory) -> None:
    one, two = (admin.add(stack, name, [ed25519_pair()[1]], PASSWORD) for name in ("alice", "bob"))
    assert one.secret != two.secret
    assert not set(one.scratch_codes) & set(two.scratch_codes)
    assert stack.values["admins"]["alice"]["passwordHash"] != stack.values["admins"]["bob"]["passwordHash"]


PRIVATE, PUBLIC = ed25519_pair()


@pytest.mark.parametrize(
    ("name", "keys", "password", "said"),
    [
        ("root", [PUBLIC], PASSWORD, "'root' is reserved"),
        ("Alice", [PUBLIC], PASSWORD, "not an account name"),
        ("alice", [PUBLIC, "ssh-rsa short"], PASSWORD, "not a public key"),
        ("alice", [PRIVATE], PASSWORD, "PRIVATE key"),
        ("alice", [PUBLIC], "weak", "The password lacks"),
        ("bob", [PUBLIC], PASSWORD, "bob is an admin already: remove bob first"),
    ],
)
def test_a_refused_admin_leaves_no_trace(stack: Memory, name: str, keys: list[str], password: str, said: str) -> None:
    admin.add(stack, "bob", [ed25519_pair()[1]], PASSWORD)
    before = json.dumps(stack.values)
    with pytest.raises(OperatorError, match=said) as raised:
        admin.add(stack, name, keys, password)
    assert json.dumps(stack.values) == before
    assert not any(line in str(raised.value) for line in PRIVATE.splitlines()[1:-1])


def test_admins_are_listed_and_removed_one_by_one(stack: Memory) -> None:
    assert admin.listed(stack) == {}
    keys = {name: f"{ed25519_pair()[1]} {name}" for name in ("bob", "alice")}
    for name, key in keys.items():
        admin.add(stack, name, [key], PASSWORD)
    assert list(admin.listed(stack).items()) == [("alice", [keys["alice"]]), ("bob", [keys["bob"]])]
    admin.remove(stack, "alice")
    assert admin.listed(stack) == {"bob": [keys["bob"]]}
    with pytest.raises(OperatorError, match=r"alice is not an admin of test\. Admins: bob"):
        admin.remove(stack, "alice")


# ssh


def test_ssh_knows_every_server_by_its_pin_and_jumps_to_the_private_ones(tmp_path: Path) -> None:
    sections: dict[str, list[str]] = {}
    for line in ssh.write_config(tmp_path, OUTPUTS).read_text().splitlines():
        if line.startswith("Host "):
            sections[line.removeprefix("Host ")] = options = []
        else:
            options.append(line.strip())
    assert sections["app-2"] == ["HostName 203.0.113.12", "HostKeyAlias app-2"]
    # Its public address is for updates only: nothing of it answers.
    assert sections["db-1"] == ["HostName 10.20.0.5", "HostKeyAlias db-1", "ProxyJump app-1"]
    assert {"User deploy", "StrictHostKeyChecking yes", "GlobalKnownHostsFile none"} <= set(sections["*"])
    assert f"UserKnownHostsFile {tmp_path / 'known_hosts'}" in sections["*"]
    pins = (tmp_path / "known_hosts").read_text().splitlines()
    assert pins == ["app-1 ssh-ed25519 AAAA1", "app-2 ssh-ed25519 AAAA2", "db-1 ssh-ed25519 AAAA3"]


def test_ssh_goes_straight_to_a_server_in_another_region(tmp_path: Path) -> None:
    facts = {"role": "backup", "privateIp": "10.20.0.6", "publicIp": "203.0.113.201", "hostKey": "ssh-ed25519 AAAA4"}
    outputs = {**OUTPUTS, "servers": {"backup-1": facts}}
    assert (
        "HostName 10.20.0.6\n  HostKeyAlias backup-1\n  ProxyJump app-1"
        in ssh.write_config(tmp_path, outputs).read_text()
    )
    facts["region"] = "us-east"
    config = ssh.write_config(tmp_path, outputs).read_text()
    assert "HostName 203.0.113.201\n  HostKeyAlias backup-1\nHost *" in config


def test_ssh_can_be_for_a_person(tmp_path: Path) -> None:
    config = ssh.write_config(tmp_path, OUTPUTS, "User alice", "IdentityAgent /run/alice").read_text()
    # OpenSSH takes the first word on something.
    assert config.index("  User alice\n") < config.index("  User deploy\n")
    assert config.index("Host *\n") < config.index("  IdentityAgent /run/alice\n")


needs_openssh = pytest.mark.skipif(not shutil.which("ssh-agent"), reason="uds ssh needs OpenSSH, and so does this")


@needs_openssh
def test_openssh_understands_the_configuration(tmp_path: Path) -> None:
    config = ssh.write_config(tmp_path, OUTPUTS)
    asked = subprocess.run(["ssh", "-G", "-F", str(config), "db-1"], capture_output=True, text=True, check=True)
    understood = asked.stdout.splitlines()
    assert {"hostname 10.20.0.5", "user deploy", "proxyjump app-1", "hostkeyalias db-1"} <= set(understood)
    assert "stricthostkeychecking true" in understood


@needs_openssh
@pytest.mark.parametrize("end", ["\n", ""], ids=["as made", "as Pulumi keeps it"])
def test_the_agent_holds_the_deploy_key_and_goes_with_it(tmp_path: Path, end: str) -> None:
    private, public = ed25519_pair()
    with ssh.agent(private.rstrip("\n") + end, tmp_path) as agent:
        environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
        held = subprocess.run(["ssh-add", "-L"], env=environment, capture_output=True, text=True, check=True)
        assert held.stdout.split()[:2] == public.split()
        assert not any(private.splitlines()[1] in path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert not agent.exists()


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """An ssh that writes down what it gets and ends with the status 7; gives what it got."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/arguments\ncat > {folder}/stdin\nexit 7\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with io.TextIOWrapper(io.BytesIO(b"from the pipe\n")) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda what: (folder / what).read_text()


@needs_openssh
@pytest.mark.parametrize(
    ("words", "sudo", "line"),
    [
        (["uptime; id"], False, "uptime; id"),
        (["ls", "a b", "$HOME"], False, "ls 'a b' '$HOME'"),
        (["cat", "/etc/shadow"], True, "sudo -k -S -p '' -- cat /etc/shadow"),
        (["id; whoami"], True, "sudo -k -S -p '' -- sh -c 'id; whoami'"),
    ],
)
def test_a_command_arrives_as_it_was_meant(
    stack: Memory, fake_ssh: Callable[[str], str], words: list[str], sudo: bool, line: str
) -> None:
    list(init.initialise(stack, passphrase))
    assert ssh.run(stack, "db-1", words, sudo=sudo) == 7
    arguments = fake_ssh("arguments").splitlines()
    assert arguments[-2:] == ["db-1", line]
    password = stack.values["deploy"]["sudoPassword"]
    assert not any(password in argument for argument in arguments)
    if sudo:
        # First for sudo, then for the command.
        assert fake_ssh("stdin") == f"{password}\nfrom the pipe\n"


@pytest.mark.parametrize(
    ("server", "words", "sudo", "said"),
    [
        ("web-1", ["id"], False, "There is no server web-1. Servers: app-1, app-2, db-1."),
        ("db-1", [], True, "--sudo needs a command"),
    ],
)
@pytest.mark.usefixtures("fake_ssh")
def test_what_ssh_cant_do_is_said(stack: Memory, server: str, words: list[str], sudo: bool, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        ssh.run(stack, server, words, sudo=sudo)


# The stack


@pytest.fixture
def real(tmp_path: Path) -> Callable[[str], Stack]:
    """A stack with a pulumi that is a given script."""

    def with_pulumi(script: str) -> Stack:
        (tmp_path / "pulumi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "pulumi").chmod(0o755)
        return Stack("test", tmp_path, tmp_path, {"PATH": f"{tmp_path}:/bin:/usr/bin"})

    return with_pulumi


def test_pulumi_gets_the_stack_as_arguments_and_a_value_on_its_input(real: Callable[[str], Stack]) -> None:
    stack = real('echo "$@" > arguments; cat > stdin')
    stack.set("deploy.sudoPassword", "s3cret", secret=True)
    assert (stack.folder / "stdin").read_text() == "s3cret"
    assert (stack.folder / "arguments").read_text().split() == (
        "config set --path deploy.sudoPassword --secret --stack test --non-interactive --color never".split()
    )


def test_pulumis_own_words_are_passed_on(real: Callable[[str], Stack]) -> None:
    with pytest.raises(OperatorError, match="pulumi config rm --path: no such key"):
        real("echo no such key >&2; exit 255").remove("nothing")


def test_a_missing_pulumi_is_said(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="Pulumi isn't installed"):
        Stack("test", tmp_path, tmp_path, {"PATH": str(tmp_path)}).outputs()


def test_a_stack_that_was_never_up_has_no_servers(real: Callable[[str], Stack]) -> None:
    with pytest.raises(OperatorError, match="has no servers yet"):
        real("echo '{}'").outputs()


def test_a_stack_is_opened_where_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDS_REHEARSALS", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    production = Stack.open("linode")
    assert (production.folder, production.keys) == (ROOT, tmp_path / "config" / PROJECT / "linode")
    for name, rehearsal in (("local", False), ("linode", True)):
        with pytest.raises(OperatorError, match=f"make up STACK={name}"):
            Stack.open(name, rehearsal=rehearsal)
        (tmp_path / name).mkdir()
        (tmp_path / name / f"Pulumi.{name}.yaml").write_text("config: {}\n")
        opened = Stack.open(name, rehearsal=rehearsal)
        assert (opened.folder, opened.keys) == (tmp_path / name, tmp_path / name / "keys")
        assert opened.environment["UDS_REHEARSAL"] == str(tmp_path / name)
    with pytest.raises(OperatorError, match=r"There is no stack prod: .* use one of aws, aws-local, linode, local"):
        Stack.open("prod")


# The command line


@pytest.fixture
def uds(stack: Memory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(Stack, "open", classmethod(lambda _cls, _name, **_: stack))
    return lambda *words, **more: CliRunner().invoke(command.app, list(words), **more)


def test_people_come_and_go_by_the_command_line(stack: Memory, uds: Callable[..., Any], tmp_path: Path) -> None:
    key = tmp_path / "id.pub"
    key.write_text(f"{PUBLIC} alice@laptop\n")
    done = uds("admin", "add", "test", "alice", "--key", str(key), "--password-stdin", input=f"{PASSWORD}\n")
    assert done.exit_code == 0
    stored = stack.values["admins"]["alice"]
    assert sha512_crypt.verify(PASSWORD, stored["passwordHash"])
    for shown in (stored["totpSecret"], *stored["scratchCodes"], "pulumi up --stack test"):
        assert shown in done.output
    assert PASSWORD not in done.output
    assert "alice@laptop" in uds("admin", "list", "test", env={"COLUMNS": "200"}).output
    assert "make up STACK=local" in uds("admin", "remove", "local", "alice").output
    assert stack.values["admins"] == {}


def test_init_takes_its_passphrase_from_a_file_or_asks_for_a_long_one(
    stack: Memory, uds: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "passphrase"
    for words, text in (((), "too short\ntoo short\n"), (("--passphrase-file", str(file)), "")):
        file.write_text("too short\n")
        refused = uds("init", "test", *words, input=text)
        assert isinstance(refused.exception, OperatorError)
        assert not (stack.keys / "deploy").exists()
    file.write_text(f"{PASSPHRASE}\nanother line\n")
    assert "encrypted copy" in uds("init", "test", "--passphrase-file", str(file)).output
    assert load_ssh_private_key((stack.keys / "deploy").read_bytes(), PASSPHRASE.encode())
    assert uds("init", "test").output == "Everything is there already.\n"


def test_an_error_is_one_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["uds", "admin", "list", "no-such"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert " ".join(said.err.split()).startswith("uds: There is no stack no-such: make Pulumi.no-such.yaml first")
