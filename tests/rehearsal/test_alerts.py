"""Alerts of logins, changes and failures come by mail, Slack and Pushover: each of them, and each once."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest

from rehearsal.sinks import Received, Sinks
from tests.rehearsal.conftest import PASSWORD, Rehearsal, one_stack
from tests.rehearsal.people import (
    Client,
    Person,
    admits,
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
)
from tests.rehearsal.support import Script, until
from uds.certificates import Authority

pytestmark = one_stack("alerts come from the journal and go out as any connection does")

CHANNELS = ("email", "slack", "pushover")
SERVERS = ("app-1", "db-1")
# Of the public network's hosts: one whose logins raise no alert, and two others.
ALLOWED, STRANGER, THIEF = 231, 232, 233
# For the tests that log in often: a code works once, and three may be tried in half a minute.
KEY_ONLY = "/etc/ssh/sshd_config.d/00-a-test.conf"


@dataclass(frozen=True)
class Scene:
    """The stack with all its channels, and who logs in."""

    up: Rehearsal
    sinks: Sinks
    alice: Person
    folder: Path

    def alerts(self, word: str, channel: str = "email") -> list[Received]:
        return self.sinks.of(channel, word)

    def told(self, word: str, channel: str = "email") -> list[Received]:
        """The alerts with `word` in their title, from the moment that there is one."""
        until(lambda: self.alerts(word, channel))
        return self.alerts(word, channel)

    def all_told(self, server: str, word: str) -> None:
        """Wait until everything that `server` has to tell so far has come on every channel."""
        console(self.up, server, f"echo | uds-alert --severity info {word}")
        until(lambda: all(self.alerts(word, channel) for channel in CHANNELS), 180)


@pytest.fixture(scope="module")
def scene(up: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("alerts")
    realm = up.realm()
    with Sinks(realm.operator_v4) as sinks:
        quiet = [realm.network.public_addresses(ALLOWED)[0].replace("/24", "/32")]
        up.configure("alerts", {**sinks.settings(), "timezone": "Europe/Berlin", "allowedSources": quiet})
        try:
            alice = enrol(up, folder, ["alice"])["alice"]
            with ExitStack() as undo:
                for server in SERVERS:
                    line = f"echo '{sinks.hosts}' >> /etc/hosts"
                    undo.enter_context(for_a_while(up, server, line, "sed -i /api.pushover.net/d /etc/hosts"))
                yield Scene(up, sinks, alice, folder)
        finally:
            up.stack().remove("alerts")
            dismiss(up, ["alice"])


@pytest.fixture(scope="module")
def key_only(scene: Scene) -> Iterator[None]:
    text = "Match User alice\\nAuthenticationMethods publickey\\nMatch all\\n"
    do, reload = f"printf '{text}' > {KEY_ONLY}; ", "systemctl reload ssh"
    with for_a_while(scene.up, "app-1", do + reload, f"rm {KEY_ONLY}; {reload}"):
        app = door(scene.up, "app-1")
        # sshd takes a moment to read it.
        until(lambda: admits(app, scene.alice, scene.alice.code()))
        yield


def log_in_by_key(scene: Scene, times: int) -> None:
    app = door(scene.up, "app-1")
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(admits, app, scene.alice) for _ in range(times)]
    assert all(one.result() for one in done)


def test_a_login_is_told_on_every_channel(scene: Scene) -> None:
    operator = scene.up.realm().operator_v4
    assert admits(door(scene.up, "app-1"), scene.alice, scene.alice.code())
    for channel in CHANNELS:
        (alert,) = scene.told("SSH login: alice", channel)
        assert alert.title == f"[app-1] SSH login: alice from {operator} (SSH key and one-time code)"
        for line in ("User: alice", f"From: {operator}", "Server: app-1", "Method: SSH key and one-time code"):
            assert line in alert.text.splitlines()
        assert re.search(r"^Key: ED25519 SHA256:\S+$", alert.text, re.M)
        utc = re.search(r"^Time: \d{4}-\d\d-\d\d (\d\d):(\d\d:\d\d) UTC$", alert.text, re.M)
        local = re.search(r"^Local time: \S+ (\d\d):(\d\d:\d\d) CES?T \(Europe/Berlin\)$", alert.text, re.M)
        assert utc
        assert local
        assert utc[2] == local[2]
        assert (int(local[1]) - int(utc[1])) % 24 in (1, 2)


def test_one_alert_through_every_channel_on_request(scene: Scene) -> None:
    done = scene.up.uds("alert", "test", "local")
    for server in SERVERS:
        for channel, answer in zip(CHANNELS, ("250 taken", "200 ok", "200 ok"), strict=True):
            assert re.search(rf"{server}\W+{channel}\W+{answer}", done.stdout), done.stdout


def test_mail_goes_by_tls_from_the_first_byte_on_too(scene: Scene) -> None:
    program = f"""
import json
from pathlib import Path
from alerts.alert import Alert
from alerts.channels import channels
config = json.loads(Path("/etc/uds/alerts.json").read_text())
config["email"] |= {scene.sinks.settings("tls")["email"]!r}
print(next(channels(config)).send(Alert("By TLS")))
"""
    said = console(scene.up, "app-1", f"cd /usr/local/lib/uds; python3 -E -s -B - <<'END'\n{program}\nEND")
    assert said.startswith("250 taken")
    assert scene.told("By TLS", "email")


def test_people_who_become_root_and_logins_on_the_console_are_told(scene: Scene) -> None:
    app = door(scene.up, "app-1")
    transport = log_in(app, scene.alice, scene.alice.code(1))
    operator = scene.up.realm().operator_v4
    try:
        assert command(transport, "sudo -k -S -p '' id -u", f"{PASSWORD}\n") == (0, "0\n")
        # Root has no password, so that nobody becomes root by su; but somebody may give it one.
        with for_a_while(scene.up, "app-1", f"echo 'root:{PASSWORD}' | chpasswd", "usermod -p '*' root"):
            assert command(transport, "su - -c 'id -u'", f"{PASSWORD}\n", terminal=True)[0] == 0
    finally:
        transport.close()
    for how in ("sudo", "su"):
        where = f"Logged in as: alice from {operator} (SSH key and one-time code)"
        assert where in scene.told(f"Root: alice by {how}")[0].text
    scene.told("Changed: password")
    machine = scene.up.realm().network.namespace(scene.up.realm().machine("local-db-1").number)
    terminal = ["script", "-qec", f"podman exec -it {machine} login -f alice", "/dev/null"]
    with subprocess.Popen(terminal, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as there:
        scene.told("[db-1] Console login: alice")
        there.communicate(b"exit\n", timeout=60)
    # The automation's own logins and roots: nobody is told.
    scene.up.sudo("app-1", "true")
    scene.all_told("app-1", "after-the-automation")
    assert not [alert for alert in scene.sinks.received if "deploy" in alert.title]


@pytest.mark.usefixtures("key_only")
def test_twenty_logins_in_a_burst_are_twenty_alerts(scene: Scene) -> None:
    scene.all_told("app-1", "before-the-burst")
    before = Counter(alert.channel for alert in scene.sinks.received if "SSH login: alice" in alert.title)
    log_in_by_key(scene, 20)
    scene.all_told("app-1", "after-the-burst")
    after = Counter(alert.channel for alert in scene.sinks.received if "SSH login: alice" in alert.title)
    assert {channel: after[channel] - before[channel] for channel in CHANNELS} == dict.fromkeys(CHANNELS, 20)


@pytest.mark.usefixtures("key_only")
def test_an_outage_a_kill_and_a_reboot_lose_nothing_and_repeat_nothing(scene: Scene) -> None:
    up, realm = scene.up, scene.up.realm()
    scene.all_told("app-1", "before-the-outage")
    scene.sinks.received.clear()
    scene.sinks.stop()
    log_in_by_key(scene, 2)
    console(up, "app-1", "echo one | uds-alert first; systemctl kill -s KILL uds-alerts; echo two | uds-alert second")
    log_in_by_key(scene, 1)
    realm.power.reboot(realm.machine("local-app-1").number)
    ready = "systemctl is-active ssh uds-alerts"
    until(lambda: console(up, "app-1", ready, check=False).split() == ["active", "active"])
    log_in_by_key(scene, 1)
    console(
        up,
        "app-1",
        f"grep -q pushover /etc/hosts || echo '{scene.sinks.hosts}' >> /etc/hosts; echo three | uds-alert third",
    )
    scene.sinks.start()
    scene.all_told("app-1", "after-the-outage")
    for channel in CHANNELS:
        titles = [re.sub(r" from .*", "", alert.title) for alert in scene.alerts("[app-1]", channel)]
        login = "[app-1] SSH login: alice"
        assert titles.count(login) == 4
        assert [title for title in titles if title != login] == [
            f"[app-1] {word}" for word in ("first", "second", "third", "after-the-outage")
        ]


@pytest.mark.usefixtures("key_only")
def test_an_allowed_address_raises_no_alert_and_another_does(scene: Scene) -> None:
    realm = scene.up.realm()
    machine = realm.machine("local-app-1")
    client = Client(scene.up, scene.folder, scene.alice)
    with ExitStack() as stack:
        stack.enter_context(realm.cloud_firewall_off(machine))
        for index in (ALLOWED, STRANGER):
            outsider = stack.enter_context(realm.outsider(index))
            rule = f"INPUT -p tcp --dport 22 -s {outsider.addresses[0]} -j ACCEPT"
            stack.enter_context(for_a_while(scene.up, "app-1", f"iptables -I {rule}", f"iptables -D {rule}"))
            assert client.run("app-1", "true", start=from_(outsider)).status == 0
        scene.all_told("app-1", "after-the-outsiders")
    allowed, stranger = (realm.network.public_addresses(index)[0].partition("/")[0] for index in (ALLOWED, STRANGER))
    for channel in CHANNELS:
        assert not scene.alerts(f"alice from {allowed} ", channel)
        assert len(scene.alerts(f"alice from {stranger} ", channel)) == 1


def test_the_automations_key_from_elsewhere_is_told_although_it_is_refused(scene: Scene) -> None:
    realm = scene.up.realm()
    client = Client(scene.up, scene.folder, deploy(scene.up, scene.folder), "NumberOfPasswordPrompts 1")
    with realm.cloud_firewall_off(realm.machine("local-app-1")), realm.outsider(THIEF) as thief:
        rule = f"INPUT -p tcp --dport 22 -s {thief.addresses[0]} -j ACCEPT"
        with for_a_while(scene.up, "app-1", f"iptables -I {rule}", f"iptables -D {rule}"):
            assert client.run("app-1", "true", start=from_(thief), answers=["123456"]).status == 255
        scene.told(f"SSH login refused after a valid key: deploy from {thief.addresses[0]}")


def test_names_and_texts_do_no_harm(scene: Scene) -> None:
    up = scene.up
    forged = "Accepted publickey for root from 192.0.2.66 port 22 ssh2"
    before = console(up, "app-1", "systemctl show -p NRestarts uds-alerts")
    # As anybody on the server may log, and as anybody on the internet may call themselves.
    console(up, "app-1", f"runuser -u alice -- logger -t sshd-session '{forged}'; logger -t other '{forged}'")
    opened = "pam_unix(sudo:session): session opened for user root(uid=0) by bob(uid=0)"
    console(up, "app-1", f"runuser -u alice -- logger -t sudo '{opened}'")
    for name in (f"x\n{forged}", "%n%n%s%x", "$(reboot)`reboot`", "{0.__class__}", "<!channel>"):
        with closing(knock(door(up, "app-1"))) as stranger, pytest.raises(paramiko.AuthenticationException):
            stranger.auth_none(name)
    evil = r"printf 'a\nServer: other\n%%n%%s <!channel> \342\200\256 \033[31m' | uds-alert "
    console(up, "app-1", evil + r"""'evil %n <b>' "$(printf 'x\nBcc: thief@example.org')" """)
    scene.all_told("app-1", "after-the-forgeries")
    for channel in CHANNELS:
        assert not [one for one in scene.sinks.received if "192.0.2.66" in one.title + one.text]
        assert not scene.alerts("Root: bob", channel)
        (alert,) = scene.alerts("evil", channel)
        title = r"[app-1] evil %n <b> x\nBcc: thief@example.org"
        escaped = title.replace("<", "&lt;").replace(">", "&gt;")
        assert alert.title == (escaped if channel == "slack" else title)
        assert "Server: app-1" in alert.text
        assert r"\u202e \x1b[31m" in alert.text
        assert ("<!channel>" in alert.text) == (channel != "slack")
    assert console(up, "app-1", "systemctl show -p NRestarts uds-alerts") == before


def test_changes_of_accounts_keys_rights_and_rules_are_told(scene: Scene) -> None:
    up = scene.up

    def provoked() -> object:
        console(up, "db-1", "touch /etc/sudoers.d/probe; sleep 1; rm /etc/sudoers.d/probe")
        return scene.alerts("[db-1] Changed: right")

    # As long as the automation was there a moment ago, it is taken for its own.
    until(provoked)
    key = "/etc/ssh/authorized_keys.d/mallory"
    changes = {
        "group: mallory was added (nobody)": ("useradd -m mallory", "userdel -r mallory 2>/dev/null"),
        "key: of mallory (SSH) was added": (f"echo key > {key}", f"rm {key}"),
        "right: /etc/sudoers.d/mallory was added": ("touch /etc/sudoers.d/mallory", "rm /etc/sudoers.d/mallory"),
        "firewall: IPv4 filter -A TCP -p tcp -m tcp --dport 8080 -j ACCEPT was added": (
            "iptables -A TCP -p tcp --dport 8080 -j ACCEPT",
            "iptables -D TCP -p tcp --dport 8080 -j ACCEPT",
        ),
        "firewall: IPv6 filter :FORWARD ACCEPT was added": (
            "ip6tables -P FORWARD ACCEPT",
            "ip6tables -P FORWARD DROP",
        ),
    }
    with ExitStack() as undo:
        for do, back in changes.values():
            undo.enter_context(for_a_while(up, "db-1", do, back))
        until(
            lambda: set(changes) <= {line for one in scene.alerts("[db-1] Changed") for line in one.text.splitlines()}
        )
    assert all("Logged in: " in alert.text for alert in scene.alerts("[db-1] Changed"))


def test_files_that_nobody_accounts_for_are_told(scene: Scene) -> None:
    up, compare = scene.up, "sleep 1; systemctl start uds-integrity"
    package = f"touch /var/lib/dpkg/status; {compare}"
    # What was done until now, and with a package, is accounted for.
    console(up, "db-1", f"{package}; cp /bin/true /usr/local/bin/packaged; {package}")
    with for_a_while(up, "db-1", "mv /usr/local/bin/packaged /usr/local/bin/planted", "rm /usr/local/bin/planted"):
        console(up, "db-1", compare)
        (alert,) = scene.told("Files changed")
        assert {line.rpartition(": ")[2] for line in alert.text.splitlines() if "/usr/local/bin/" in line} == {
            "/usr/local/bin/packaged",
            "/usr/local/bin/planted",
        }
    console(up, "db-1", package)
    scene.all_told("db-1", "after-the-files")
    assert len(scene.alerts("Files changed")) == 1


def test_a_channel_that_cannot_prove_itself_gets_nothing(scene: Scene) -> None:
    scene.sinks.stop()
    scene.sinks.received.clear()
    scene.sinks.start(Authority.new("somebody else"))
    try:
        done = scene.up.uds("alert", "test", "local", check=False)
        assert done.returncode == 1
        assert len(re.findall("CERTIFICATE_VERIFY_FAILED", done.stdout)) == 6
        assert not scene.sinks.received
    finally:
        scene.sinks.stop()
        scene.sinks.start()
    scene.all_told("app-1", "trusted-again")


# monit


# In a container, what is mounted later doesn't appear in a unit's own view.
AS_MONIT_SEES_IT = "nsenter --mount --target $(systemctl show -p MainPID --value monit)"
FAULTS: dict[str, dict[str, tuple[str, str, str]]] = {
    "app-1": {
        "ssh": ("systemctl stop ssh", "systemctl start ssh", "sshd does not run"),
        "clock": (
            "mkdir -p /run/systemd/system/chrony.service.d; printf '[Unit]\\nConditionCapability=\\n[Service]\\n"
            "ExecStart=\\nExecStart=!/usr/sbin/chronyd -x\\n' > /run/systemd/system/chrony.service.d/test.conf; "
            "systemctl daemon-reload; systemctl start chrony; "
            "until chronyc -n tracking > /dev/null; do sleep 0.2; done",
            "systemctl stop chrony; rm -r /run/systemd/system/chrony.service.d; systemctl daemon-reload; "
            "systemctl start chrony",
            "the clock is not synchronised",
        ),
        "disk": (
            f"{AS_MONIT_SEES_IT} sh -c 'mount -t tmpfs -o size=1m fault /mnt; head -c 1000000 /dev/zero > /mnt/full'",
            f"{AS_MONIT_SEES_IT} umount /mnt",
            "/mnt: 9",
        ),
        "memory": (
            "sed 's/^MemAvailable:.*/MemAvailable: 1 kB/' /proc/meminfo > /run/meminfo; "
            f"{AS_MONIT_SEES_IT} mount --bind /run/meminfo /proc/meminfo",
            f"{AS_MONIT_SEES_IT} umount /proc/meminfo",
            "less than 5% of the memory",
        ),
        "firewall": ("iptables -P INPUT ACCEPT", "iptables -P INPUT DROP", "iptables: INPUT is open"),
        "files": ("echo >> /etc/issue", "sed -i '$d' /etc/issue", "/etc/issue: FAILED"),
        "units": (
            "systemd-run -q --unit=fault false; sleep 1",
            "systemctl reset-failed fault",
            "fault.service failed",
        ),
        "application": ("systemctl stop application", "systemctl start application", "HTTP"),
        "application-certificate": (
            "cd /usr/local/application/ssl; cp -p certificate.pem /root/; openssl req -x509 -newkey ec -pkeyopt "
            "ec_paramgen_curve:P-256 -nodes -subj /CN=x -days 1 -keyout /dev/null -out certificate.pem 2>/dev/null",
            "cd /usr/local/application/ssl; cp -p /root/certificate.pem .; rm /root/certificate.pem",
            "ends within 30 days",
        ),
        "reboot": (
            "cp /usr/bin/sleep /usr/local/bin/old; systemd-run -q --unit=old /usr/local/bin/old 999; sleep 1; "
            "rm /usr/local/bin/old",
            "systemctl stop old",
            "run with: old.service",
        ),
        "alerts": ("systemctl stop uds-changes", "systemctl start uds-changes", "uds-changes does not run"),
    },
    "db-1": {
        "firewall": ("ip6tables -F INPUT", "uds-harden", "ip6tables: the rules are gone"),
        "database": ("systemctl stop mariadb", "systemctl start mariadb", "connect"),
        "database-certificate": (
            "cd /etc/mysql/tls; cp -p server-cert.pem /root/; openssl req -x509 -newkey ec -pkeyopt "
            "ec_paramgen_curve:P-256 -nodes -subj /CN=x -days 1 -keyout /dev/null -out server-cert.pem 2>/dev/null",
            "cd /etc/mysql/tls; cp -p /root/server-cert.pem .; rm /root/server-cert.pem",
            "ends within 30 days",
        ),
    },
}


@pytest.mark.nightly("every watch falls and recovers, in rounds of monit's: many minutes")
def test_monit_reports_each_thing_that_it_watches(scene: Scene) -> None:
    watched = {
        server: set(re.findall(r"^check \S+ (\S+)", console(scene.up, server, "cat /etc/monit/conf.d/*"), re.M))
        for server in SERVERS
    }
    # What is watched everywhere is broken on one server only.
    assert watched["app-1"] == set(FAULTS["app-1"])
    assert watched["db-1"] - watched["app-1"] == set(FAULTS["db-1"]) - {"firewall"}

    def told(state: str) -> bool:
        for server in SERVERS:
            # The next round begins now, and not in half a minute.
            console(scene.up, server, "systemctl kill --kill-whom=main -s USR1 monit; sleep 1")
        titles = {alert.title for alert in scene.sinks.received if alert.channel == "email"}
        return all(
            f"[{server}] Watch: {name} is {state}" in titles for server, faults in FAULTS.items() for name in faults
        )

    with ExitStack() as undo:
        for server, faults in FAULTS.items():
            for do, back, _ in faults.values():
                undo.enter_context(for_a_while(scene.up, server, do, back))
        until(lambda: told("not well"), 300)
        for server, faults in FAULTS.items():
            for name, (_, _, words) in faults.items():
                (alert,) = scene.alerts(f"[{server}] Watch: {name} is not well")
                assert words in alert.text
    until(lambda: told("well again"), 300)


def test_a_broken_file_never_takes_the_place_of_the_good_one(scene: Scene) -> None:
    good = console(scene.up, "db-1", "cat /etc/monit/conf.d/server")
    script = Script.of(scene.up, "db-1", "monit").altered("files/etc/monit/conf.d/server", "check program", "nonsense")
    done = script.run(scene.up, check=False)
    assert done.returncode != 0
    assert "monit refuses the new files" in done.stdout + done.stderr
    assert console(scene.up, "db-1", "cat /etc/monit/conf.d/server; systemctl is-active monit") == f"{good}active\n"
    console(scene.up, "db-1", "echo set nonsense >> /etc/monit/conf.d/server")
    assert "changed: /etc/monit/conf.d/server" in scene.up.uds("apply", "local", "db-1", "monit").stdout
    assert console(scene.up, "db-1", "cat /etc/monit/conf.d/server; systemctl is-active monit") == f"{good}active\n"
