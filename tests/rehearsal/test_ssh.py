"""Who gets in by SSH, from where, with what, and how far from there (guide, 3.5 to 3.8)."""

import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import paramiko
import pytest

from rehearsal.network import PUBLIC
from rehearsal.realm import Realm
from tests.rehearsal.conftest import Rehearsal, one_stack
from tests.rehearsal.people import (
    Client,
    Door,
    Person,
    admits,
    another_host_key,
    command,
    console,
    deploy,
    dismiss,
    door,
    enrol,
    for_a_while,
    from_,
    knock,
    log_in,
    new_key,
)

# Each admin has three tries in half a minute on each server, so each is for one test.
PEOPLE = ("ann", "bob", "cat", "dan", "eve")
SERVERS = ("app-1", "db-1")
DRY_RUN = "/usr/sbin/sshd -T"
NEIGHBOUR = "10.20.0.77"
ADMINISTRATIVELY_PROHIBITED = 1


OF_SSHD = "decided by sshd and its modules, with the same files on every cloud"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("people")


@pytest.fixture(scope="module")
def people(up: Rehearsal, folder: Path) -> Iterator[dict[str, Person]]:
    try:
        yield enrol(up, folder, PEOPLE)
    finally:
        dismiss(up, PEOPLE)


@pytest.fixture(scope="module")
def automation(up: Rehearsal, folder: Path) -> Person:
    return deploy(up, folder)


@pytest.fixture(scope="module")
def realm(up: Rehearsal) -> Realm:
    return up.realm()


@pytest.fixture(scope="module")
def doors(up: Rehearsal) -> dict[str, Door]:
    return {server: door(up, server) for server in SERVERS}


@pytest.fixture(scope="module")
def app(doors: dict[str, Door]) -> Door:
    return doors["app-1"]


@pytest.fixture(scope="module")
def db(doors: dict[str, Door]) -> Door:
    return doors["db-1"]


def refused(transport: paramiko.Transport, host: str, port: int) -> None:
    """The server won't connect to there: it says that this is forbidden, not that nobody answers."""
    with pytest.raises(paramiko.ChannelException) as error:
        transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=10)
    assert error.value.code == ADMINISTRATIVELY_PROHIBITED, f"{host}:{port}: {error.value}"


# Codes.


@one_stack(OF_SSHD)
def test_a_code_is_no_good_without_the_key(app: Door, people: dict[str, Person], folder: Path) -> None:
    ann = people["ann"]
    transport = knock(app)
    with pytest.raises(paramiko.BadAuthenticationType) as told:
        transport.auth_interactive("ann", lambda _title, _instructions, prompts: [ann.code() for _ in prompts])
    assert told.value.allowed_types == ["publickey"]
    transport.close()
    assert not admits(app, ann, ann.code(), key=new_key(folder, "stranger"))


@one_stack(OF_SSHD)
def test_a_key_is_no_good_without_the_code(app: Door, people: dict[str, Person]) -> None:
    ann = people["ann"]
    good = ann.code()
    assert not admits(app, ann, f"{(int(good) + 1) % 1_000_000:06}")
    assert not admits(app, ann, "")
    assert admits(app, ann, good)


@one_stack(OF_SSHD)
def test_a_code_works_once_and_guessing_is_slowed_down(app: Door, people: dict[str, Person]) -> None:
    bob = people["bob"]
    now, following = bob.code(), bob.code(1)
    assert admits(app, bob, now)
    assert not admits(app, bob, now)
    assert admits(app, bob, following)
    # The fourth try in half a minute, with a code that is good.
    assert not admits(app, bob, bob.scratch[0])


@one_stack(OF_SSHD)
def test_old_and_future_codes_are_no_good_and_are_not_followed(
    up: Rehearsal, app: Door, people: dict[str, Person]
) -> None:
    """The module can follow a clock that is wrong: then three old codes in a row, in their order, get in."""
    dan = people["dan"]
    for step in (-20, 4):
        assert not admits(app, dan, dan.code(step))
    assert admits(app, dan, dan.code())
    assert "SKEW" not in console(up, "app-1", "cat /var/lib/google-authenticator/dan")


@one_stack(OF_SSHD)
def test_a_scratch_code_works_once(app: Door, people: dict[str, Person]) -> None:
    cat = people["cat"]
    assert admits(app, cat, cat.scratch[0])
    assert not admits(app, cat, cat.scratch[0])
    assert admits(app, cat, cat.scratch[1])


@one_stack(OF_SSHD)
def test_who_has_no_secret_on_the_server_is_refused(
    up: Rehearsal, app: Door, db: Door, automation: Person, people: dict[str, Person]
) -> None:
    """With the guide's `nullok` such a person could get in with the key alone."""
    bob, secret = people["bob"], "/var/lib/google-authenticator/bob"
    through = log_in(app, automation)
    code = bob.code()
    with for_a_while(up, "db-1", f"mv {secret} /root/kept", f"mv /root/kept {secret}"):
        assert not admits(db, bob, code, through=through)
        assert not admits(db, bob, "", through=through)
    assert admits(db, bob, code, through=through)
    through.close()


def test_an_admin_reaches_the_database_server_with_key_and_code_on_each(
    up: Rehearsal, app: Door, db: Door, people: dict[str, Person], folder: Path
) -> None:
    eve = people["eve"]
    client = Client(up, folder, eve)
    code = eve.code()
    done = client.run("db-1", "hostname; id -un", answers=[code, code])
    assert (done.status, done.out) == (0, "db-1\neve\n"), done.err
    assert [re.sub(r".*\) ", "", prompt) for prompt in done.prompts] == ["Verification code: "] * 2
    # Having passed the first server is worth nothing on the second.
    code = eve.code(1)
    through = log_in(app, eve, code)
    assert not admits(db, eve, "000000", through=through)
    assert admits(db, eve, code, through=through)
    for host, port in ((db.address, 3306), (up.private_address("app-1"), 2812), ("127.0.0.1", 22)):
        refused(through, host, port)
    through.close()


# Keys, passwords, root.


@one_stack(OF_SSHD)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", ["root", "deploy", "bob", "nobody", "no-such-user"])
def test_only_keys_are_asked_for(
    doors: dict[str, Door], automation: Person, people: dict[str, Person], name: str, server: str
) -> None:
    through = log_in(doors["app-1"], automation)
    transport = knock(doors[server], through if server == "db-1" else None)
    try:
        for password in (people["bob"].password, automation.password):
            with pytest.raises(paramiko.BadAuthenticationType) as told:
                transport.auth_password(name, password, fallback=False)
            assert told.value.allowed_types == ["publickey"]
    finally:
        transport.close()
        through.close()


@one_stack(OF_SSHD)
def test_a_client_that_offers_passwords_is_not_even_asked(up: Rehearsal, automation: Person, folder: Path) -> None:
    client = Client(
        up,
        folder,
        Person("deploy", automation.key),
        "PubkeyAuthentication no",
        "PreferredAuthentications password,keyboard-interactive",
    )
    done = client.run("app-1", "true", answers=[automation.password] * 3)
    assert (done.status, done.prompts) == (255, ())
    assert "Permission denied (publickey)." in done.err


@pytest.mark.parametrize("server", SERVERS)
def test_root_is_refused_though_everything_else_were_there(
    up: Rehearsal, doors: dict[str, Door], automation: Person, server: str
) -> None:
    """The cloud gave root the automation's key. Here it is where sshd looks, and root in the group that may log in."""
    through = log_in(doors["app-1"], automation)
    target = doors[server]
    root = Person("root", automation.key)
    path = through if server == "db-1" else None
    assert not admits(target, root, through=path)
    keys = "/etc/ssh/authorized_keys.d/root"
    give = (
        f"cp /etc/ssh/authorized_keys.d/deploy {keys}; cp {keys} /root/.ssh/authorized_keys; gpasswd -a root ssh-users"
    )
    take = f"rm {keys} /root/.ssh/authorized_keys; gpasswd -d root ssh-users"
    with for_a_while(up, server, give, take):
        assert not admits(target, root, through=path)
    through.close()


@one_stack(OF_SSHD)
def test_keys_that_a_user_adds_and_users_of_no_group_do_not_count(
    up: Rehearsal, app: Door, automation: Person, folder: Path
) -> None:
    key = new_key(folder, "smuggled")
    line = Path(f"{key}.pub").read_text().strip()
    home = "/home/deploy/.ssh"
    add = f"install -d -m 0700 -o deploy {home}; echo '{line}' > {home}/authorized_keys; chown deploy {home}/*"
    with for_a_while(up, "app-1", add, f"rm -r {home}"):
        assert not admits(app, automation, key=key)
    add = f"useradd -m stray; echo '{line}' > /etc/ssh/authorized_keys.d/stray"
    with for_a_while(up, "app-1", add, "userdel -r stray 2>/dev/null; rm /etc/ssh/authorized_keys.d/stray"):
        assert knock_with(app, "stray", key) == "refused"
        console(up, "app-1", "gpasswd -a stray ssh-users")
        # Otherwise the group would not be what refuses: now the code is missing.
        assert knock_with(app, "stray", key) == "keyboard-interactive"


def knock_with(target: Door, name: str, key: Path) -> str:
    """What comes after the key."""
    transport = knock(target)
    try:
        return ",".join(transport.auth_publickey(name, paramiko.Ed25519Key(filename=str(key)))) or "in"
    except paramiko.AuthenticationException:
        return "refused"
    finally:
        transport.close()


@one_stack(OF_SSHD)
def test_a_connection_has_three_tries(app: Door, automation: Person, folder: Path) -> None:
    wrong = [paramiko.Ed25519Key(filename=str(new_key(folder, f"wrong-{number}"))) for number in range(3)]
    right = paramiko.Ed25519Key(filename=str(automation.key))
    transport = knock(app)
    for key in wrong[:2]:
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("deploy", key)
    assert transport.auth_publickey("deploy", right) == []
    transport.close()
    transport = knock(app)
    for key in wrong:
        with pytest.raises(paramiko.SSHException):
            transport.auth_publickey("deploy", key)
    with pytest.raises(paramiko.SSHException):
        transport.auth_publickey("deploy", right)
    assert not transport.is_authenticated()
    transport.close()


# Addresses.


def test_the_automation_gets_in_over_both_families(up: Rehearsal, automation: Person) -> None:
    for address in up.public_addresses("app-1"):
        assert admits(door(up, "app-1", address), automation)


@pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
def test_the_automations_key_is_no_good_from_elsewhere(
    up: Rehearsal, realm: Realm, automation: Person, folder: Path, family: int
) -> None:
    """Three layers: the cloud's firewall, the server's, and then sshd, which wants a code that nobody has."""
    machine = up.machine("app-1")
    tables = ("iptables", "ip6tables")[family]
    client = Client(up, folder, automation, "ConnectTimeout 2", "NumberOfPasswordPrompts 1")
    with realm.outsider(210 + family) as outsider:
        to = ("-o", f"HostName={up.public_addresses('app-1')[family]}", "app-1", "true")
        assert "timed out" in client.run(*to, start=from_(outsider)).err
        with realm.cloud_firewall_off(machine):
            assert "timed out" in client.run(*to, start=from_(outsider)).err
            rule = f"INPUT -p tcp --dport 22 -s {outsider.addresses[family]} -j ACCEPT"
            with for_a_while(up, "app-1", f"{tables} -I {rule}", f"{tables} -D {rule}"):
                done = client.run(*to, start=from_(outsider), answers=["123456"])
                assert done.status == 255
                assert "Permission denied (keyboard-interactive)" in done.err, done
                assert [prompt for prompt in done.prompts if "Verification code:" not in prompt] == []
                if family == 0:
                    penalised(client, to, from_(outsider))
    assert client.run(*to).status == 0


def penalised(client: Client, to: Sequence[str], start: Sequence[str]) -> None:
    """After a few failures sshd doesn't talk to that address any more."""
    for _ in range(5):
        if "Permission denied" not in (said := client.run(*to, start=start).err):
            break
    assert re.search("Connection (closed|reset)|Not allowed at this time", said), said


def test_the_automation_reaches_the_database_server_through_the_bastion_only(
    up: Rehearsal, realm: Realm, automation: Person, folder: Path
) -> None:
    client = Client(up, folder, automation, "ConnectTimeout 2", "NumberOfPasswordPrompts 1")
    assert client.run("db-1", "hostname").out == "db-1\n"
    [nic] = [nic for nic in up.machine("db-1").nics if nic.network != PUBLIC]
    with realm.neighbour(int(nic.network), f"{NEIGHBOUR}/25") as neighbour:
        to = ("-o", "ProxyJump=none", "db-1", "true")
        assert "timed out" in client.run(*to, start=from_(neighbour)).err
        rule = f"INPUT -p tcp --dport 22 -s {NEIGHBOUR} -j ACCEPT"
        with realm.cloud_firewall_off(up.machine("db-1")):
            assert "timed out" in client.run(*to, start=from_(neighbour)).err
            with for_a_while(up, "db-1", f"iptables -I {rule}", f"iptables -D {rule}"):
                done = client.run(*to, start=from_(neighbour))
                assert done.status == 255
                assert "Permission denied (keyboard-interactive)" in done.err


# How far one gets from there.


def test_the_bastion_leads_to_the_database_servers_ssh_and_nowhere_else(
    up: Rehearsal, realm: Realm, app: Door, db: Door, automation: Person
) -> None:
    own = up.private_address("app-1")
    transport = log_in(app, automation)
    transport.open_channel("direct-tcpip", (db.address, 22), ("127.0.0.1", 0)).close()
    for host, port in (
        (db.address, 3306),
        (db.address, 80),
        *((address, 22) for address in up.public_addresses("db-1")[:1]),
        (own, 22),
        (own, 2812),
        ("127.0.0.1", 22),
        ("localhost", 2812),
        ("::1", 22),
        ("169.254.169.254", 80),
        (realm.operator_v4, 22),
    ):
        refused(transport, host, port)
    inner = log_in(db, automation, through=transport)
    for host, port in (("127.0.0.1", 22), ("127.0.0.1", 3306), (db.address, 22), (own, 22)):
        refused(inner, host, port)
    for one in (transport, inner):
        with pytest.raises(paramiko.SSHException, match="request denied"):
            one.request_port_forward("127.0.0.1", 0)
        with one.open_session() as session, pytest.raises(paramiko.SSHException):
            session.request_x11()
    inner.close()
    transport.close()


@one_stack(OF_SSHD)
@pytest.mark.parametrize("server", SERVERS)
def test_no_agent_tunnel_or_socket_is_forwarded(up: Rehearsal, automation: Person, folder: Path, server: str) -> None:
    client = Client(up, folder, automation)
    with_agent = ["ssh-agent"]
    done = client.run("-A", server, 'echo "agent=$SSH_AUTH_SOCK"; ls /tmp', start=with_agent)
    assert done.out.startswith("agent=\n"), done
    assert "agent" not in done.out.removeprefix("agent=\n")

    done = client.run("-v", "-w", "any:any", server, "true")
    assert "Server has rejected tunnel device forwarding" in done.err, done.err

    done = client.run("-R", "/run/forwarded:127.0.0.1:9", "-o", "ExitOnForwardFailure=yes", server, "true")
    assert done.status == 255
    assert "remote port forwarding failed" in done.err

    # Everybody on the server may write to this one.
    ours = folder / f"socket-{server}"
    arguments = ("-v", "-N", "-L", f"{ours}:/run/systemd/journal/stdout", server)
    listening = f"Local forwarding listening on path {ours}"
    with client.running(*arguments, until=listening) as said, socket.socket(socket.AF_UNIX) as one:
        one.connect(str(ours))
        one.settimeout(10)
        assert one.recv(1) == b""
    assert any("open failed" in line for line in said), said


# What sshd offers, and that it is what the files say.


@one_stack(OF_SSHD)
@pytest.mark.parametrize("server", SERVERS)
def test_every_line_of_the_hardening_file_is_in_force(up: Rehearsal, server: str) -> None:
    path = "/etc/ssh/sshd_config.d/00-hardening.conf"
    text = console(up, server, f"cat {path}").partition("\nMatch ")[0]
    written = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert len(written) > 30
    effective: dict[str, list[str]] = {}
    for line in console(up, server, DRY_RUN).splitlines():
        key, _, value = line.partition(" ")
        effective.setdefault(key, []).append(value)
    differs = {
        key: (value, effective.get(key.lower()))
        for key, value in written
        if not same(key.lower(), value, effective.get(key.lower(), []))
    }
    assert differs == {}
    # Whatever cloud-init or a package may add later comes after it.
    assert console(up, server, f"ls {path.rpartition('/')[0]}").split() == ["00-hardening.conf"]
    late = "/etc/ssh/sshd_config.d/50-cloud-init.conf"
    lines = (
        "PasswordAuthentication yes\\nPermitRootLogin yes\\nAuthenticationMethods any\\nAuthorizedKeysFile /tmp/%u\\n"
    )
    with for_a_while(up, server, f"printf '{lines}' > {late}", f"rm {late}"):
        assert console(up, server, DRY_RUN).splitlines() == [
            f"{key} {value}" for key, values in effective.items() for value in values
        ]


def same(key: str, written: str, effective: list[str]) -> bool:
    """Whether sshd says in its own way what the file says."""
    if key == "persourcepenalties":
        # Told in full: how long for what.
        return effective != ["no"]
    return effective == [written]


@pytest.mark.parametrize("server", SERVERS)
def test_the_exception_for_the_automation_is_for_its_own_addresses_only(
    up: Rehearsal, realm: Realm, server: str
) -> None:
    both = "publickey,keyboard-interactive:pam"
    own = [realm.operator_v4, realm.operator_v6] if server == "app-1" else [up.private_address("app-1")]
    others = ["10.20.0.5", "127.0.0.1", "::1", "198.51.100.1", "2001:db8:ffff::1", "10.20.0.12", "10.20.0.140"]
    for user, address, expected in [
        *(("deploy", address, "publickey") for address in own),
        *(("deploy", address, both) for address in others),
        *(("bob", address, both) for address in own + others),
    ]:
        told = console(up, server, f"{DRY_RUN} -C user={user},addr={address},host=x,laddr=10.0.0.1,lport=22")
        assert f"authenticationmethods {expected}\n" in told, (user, address)


# The server proves itself too.


@one_stack(OF_SSHD)
def test_another_host_key_stops_every_client(up: Rehearsal, automation: Person, folder: Path) -> None:
    client = Client(up, folder, automation)
    assert client.run("app-1", "true").status == 0
    with another_host_key(up, "app-1"):
        for server in ("app-1", "db-1"):
            done = client.run(server, "true")
            assert done.status == 255
            assert "Host key verification failed" in done.err
        assert up.uds("ssh", up.name, "app-1", "--", "true", check=False).returncode == 255
    assert client.run("db-1", "true").status == 0


@one_stack(OF_SSHD)
def test_a_login_leaves_its_trace(up: Rehearsal, app: Door, automation: Person) -> None:
    transport = log_in(app, automation)
    assert command(transport, "id -un") == (0, "deploy\n")
    transport.close()
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(automation.key)], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    traced = console(up, "app-1", "journalctl --sync; journalctl --quiet -t sshd -t sshd-session --since -5min")
    assert f"Accepted publickey for deploy from {up.realm().operator_v4}" in traced
    assert fingerprint in traced
