"""`uds verify` passes on what `make up` made, and finds each thing that somebody breaks by hand."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.backup import STAMP, STORE
from rehearsal import podman
from rehearsal.cloud_firewall import CloudFirewall
from rehearsal.linode.resources import cloud_firewall
from tests.rehearsal.conftest import Rehearsal, one_stack
from tests.rehearsal.support import resources
from uds.verify import connected
from uds.verify.check import CHECKS, Check
from uds.verify.server import Server

Harm = str | Callable[[Rehearsal], None]


@dataclass(frozen=True)
class Damage:
    """What is done to a server (shell, or a function), how it is undone, and words of the problem to be found."""

    server: str
    harm: Harm
    undo: Harm
    found: str


def _network(server: str, command: str) -> Callable[[Rehearsal], None]:
    """In the server's network, but from outside: in a container, the kernel's settings are read-only."""

    def run(up: Rehearsal) -> None:
        realm = up.realm()
        name = realm.network.namespace(up.machine(server).number)
        podman.run(["ip", "netns", "exec", name, *command.split()])

    return run


def _open(server: str, port: int) -> Callable[[Rehearsal], None]:
    """Both layers have to be open, and something has to listen, for others to notice."""

    def run(up: Rehearsal) -> None:
        up.realm().power.set_firewall(up.machine(server).number, CloudFirewall())
        serve = _serve(f"python3 -m http.server {port}")
        up.sudo(server, f"iptables -I TCP -p tcp --dport {port} -j ACCEPT; {serve}")

    return run


def _close(server: str, port: int) -> Callable[[Rehearsal], None]:
    def run(up: Rehearsal) -> None:
        up.sudo(server, f"systemctl stop damage; iptables -D TCP -p tcp --dport {port} -j ACCEPT")
        # As the stack's firewall is, which nobody changed.
        inputs = resources(up)[f"{server}-firewall"]["inputs"]
        up.realm().power.set_firewall(up.machine(server).number, cloud_firewall(inputs))

    return run


def _serve(command: str) -> str:
    return f"systemd-run -q --unit=damage {command}; sleep 1"


_OTHER_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -days 1 "
    "-keyout /root/x.key -out /root/x.pem 2>/dev/null; "
)


def _sshd(setting: str) -> tuple[str, str]:
    """A file that wins over the hardened one; and its removal."""
    path = "/etc/ssh/sshd_config.d/00-damage.conf"
    return f"printf '{setting}\nMatch all\n' > {path}", f"rm {path}"


def _sql(statement: str) -> str:
    return f'mariadb -e "{statement}"'


_APP = "'application'@'10.20.0.11'"
_DROP_IN = "/run/systemd/system/application.service.d"
DAMAGES = {
    "files-as-delivered": Damage("app-1", "echo >> /etc/issue", "sed -i '$d' /etc/issue", "/etc/issue: its content"),
    "updates-install-themselves": Damage(
        "db-1",
        "echo 'APT::Periodic::Unattended-Upgrade \"0\";' > /etc/apt/apt.conf.d/99damage",
        "rm /etc/apt/apt.conf.d/99damage",
        "Unattended-Upgrade is not 1",
    ),
    "updates-are-installed": Damage(
        "db-1", "touch -d -3days /run/reboot-required", "rm /run/reboot-required", "a reboot for updates is due"
    ),
    "time-is-kept": Damage(
        "db-1", "systemctl disable -q chrony", "systemctl enable -q chrony", "chrony is not enabled"
    ),
    "nothing-failed": Damage(
        "app-1",
        "systemd-run -q --unit=damage false; sleep 1",
        "systemctl reset-failed damage",
        "damage.service failed",
    ),
    "journal-is-kept": Damage(
        "app-1", "mv /var/log/journal /var/log/j", "mv /var/log/j /var/log/journal", "does not exist"
    ),
    "processes-are-hidden": Damage(
        "app-1",
        "mount -o remount,hidepid=off /proc",
        "mount -o remount,hidepid=invisible /proc",
        "/proc shows the processes",
    ),
    "alerts-are-raised": Damage(
        "db-1", "systemctl stop uds-changes", "systemctl start uds-changes", "uds-changes.service does not run"
    ),
    "all-is-watched": Damage("db-1", "monit unmonitor disk", "monit monitor disk", "monit says of disk"),
    "kernel-settings": Damage(
        "app-1",
        _network("app-1", "sysctl -qw net.ipv4.conf.eth0.accept_redirects=1"),
        _network("app-1", "sysctl -qw net.ipv4.conf.eth0.accept_redirects=0"),
        "net.ipv4.conf.eth0.accept_redirects is 1, not 0",
    ),
    "weak-passwords-are-refused": Damage(
        "db-1",
        "echo 'dcredit = 0' > /etc/security/pwquality.conf.d/99-damage.conf",
        "rm /etc/security/pwquality.conf.d/99-damage.conf",
        "passwords: taken Zqx!rmvKwt",
    ),
    "ssh-takes-keys-only": Damage(
        "db-1", *_sshd("PasswordAuthentication yes"), "passwordauthentication is yes for somebody"
    ),
    "nobody-else-may-log-in": Damage(
        "app-1", "useradd -m -s /bin/bash mallory", "userdel -r mallory 2>/dev/null", "account mallory has the shell"
    ),
    "sudo-asks-for-a-password": Damage(
        "app-1",
        "echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/99-damage",
        "rm /etc/sudoers.d/99-damage",
        "deploy may use sudo without a password",
    ),
    "nothing-is-forwarded": Damage("db-1", *_sshd("AllowTcpForwarding yes"), "allowtcpforwarding is yes, not no"),
    "root-is-locked": Damage(
        "db-1", 'usermod -p "$(openssl passwd -6 x)" root', "usermod -p '*' root", "root has a password"
    ),
    "people-have-a-second-factor": Damage(
        "app-1",
        "sed -i 's/^auth.*google.*/& nullok/' /etc/pam.d/sshd",
        "sed -i 's/ nullok$//' /etc/pam.d/sshd",
        "PAM does not insist on a code",
    ),
    "firewall-is-live": Damage(
        "app-1",
        "ip6tables -A TCP -p tcp --dport 8080 -j ACCEPT",
        "ip6tables -D TCP -p tcp --dport 8080 -j ACCEPT",
        "--dport 8080 -j ACCEPT is there, and shouldn't be",
    ),
    "nothing-else-listens": Damage(
        "app-1",
        _serve("python3 -m http.server 8080"),
        "systemctl stop damage",
        "tcp 0.0.0.0:8080",
    ),
    "has-its-private-address": Damage(
        "app-1",
        _network("app-1", "ip address delete 10.20.0.11/24 dev eth1"),
        _network("app-1", "ip address add 10.20.0.11/24 dev eth1"),
        "10.20.0.11 is none of its addresses",
    ),
    # Seen from app-1, which is the one that tries.
    "reaches-only-what-it-may": Damage(
        "db-1", _open("db-1", 3000), _close("db-1", 3000), "answers from here: db-1 3000 is there"
    ),
    "only-these-ports-answer": Damage("app-1", _open("app-1", 8080), _close("app-1", 8080), "answers on port 8080"),
    "ssh-offers-only-keys": Damage(
        "db-1",
        _sshd("AuthenticationMethods publickey keyboard-interactive\nKbdInteractiveAuthentication yes")[0]
        + "; systemctl reload ssh; sleep 1",
        _sshd("")[1] + "; systemctl reload ssh; sleep 1",
        "Permission denied (publickey,keyboard-interactive)",
    ),
    "https-is-the-stacks": Damage(
        "app-1",
        _OTHER_CERTIFICATE
        + "systemctl stop application; "
        + _serve("openssl s_server -accept 3003 -cert /root/x.pem -key /root/x.key -www"),
        "systemctl stop damage; rm /root/x.*; systemctl start application; sleep 2",
        "another certificate than the stack's",
    ),
    "http-leads-to-https": Damage(
        "app-1",
        "systemctl stop application; " + _serve("python3 -m http.server 3000"),
        "systemctl stop damage; systemctl start application; sleep 2",
        "answers 200",
    ),
    "database-is-private": Damage(
        "db-1", _sql("SET GLOBAL local_infile = 1"), _sql("SET GLOBAL local_infile = 0"), "local_infile is ON"
    ),
    "data-is-private": Damage("db-1", "chmod 755 /var/lib/mysql", "chmod 700 /var/lib/mysql", "with 755"),
    "database-accounts": Damage(
        "db-1",
        # From inside, and with a name that sounds right.
        _sql("CREATE USER 'backup'@'localhost' IDENTIFIED BY 'Gr8-Wombat!Kite'"),
        _sql("DROP USER 'backup'@'localhost'"),
        "backup@localhost is there",
    ),
    "database-rights": Damage(
        "db-1",
        _sql(f"GRANT DROP ON production.* TO {_APP}"),
        _sql(f"REVOKE DROP ON production.* FROM {_APP}"),
        "database production DROP is there",
    ),
    "nothing-is-left": Damage("db-1", _sql("CREATE DATABASE test"), _sql("DROP DATABASE test"), "database test exists"),
    "application-account-is-locked": Damage(
        "app-1", "usermod -s /bin/bash application", "usermod -s /bin/false application", "the shell /bin/bash"
    ),
    "application-is-in-its-sandbox": Damage(
        "app-1",
        f"mkdir -p {_DROP_IN}; printf '[Service]\nNoNewPrivileges=no\nProtectSystem=no\n' > {_DROP_IN}/damage.conf; "
        "systemctl daemon-reload",
        f"rm -r {_DROP_IN}; systemctl daemon-reload",
        "ProtectSystem is no, not strict",
    ),
    "configuration-is-private": Damage(
        "app-1",
        "chmod 644 /usr/local/application/config/config-production.json",
        "chmod 400 /usr/local/application/config/config-production.json",
        "config-production.json belongs to application with 644",
    ),
    "database-proves-itself": Damage(
        "app-1",
        _OTHER_CERTIFICATE
        + "cd /usr/local/application/config; mv database-ca.pem /root/ca; cp /root/x.pem database-ca.pem",
        "mv -f /root/ca /usr/local/application/config/database-ca.pem; rm /root/x.*",
        "no verified TLS",
    ),
}

DAMAGES |= {
    "newest-backup": Damage(
        "backup-1", f"touch -d -3days {STAMP}", f"touch {STAMP}", "the newest backup is 72 hours old"
    ),
    "backups-are-made": Damage(
        "db-1", "systemctl stop uds-backup.timer", "systemctl start uds-backup.timer", "uds-backup.timer is off"
    ),
    "backups-are-kept": Damage(
        "backup-1",
        f"mv {STORE}/*.sql.zst.age /root",
        f"mv /root/*.sql.zst.age {STORE}",
        "production.sql.zst.age is missing",
    ),
    "backups-are-only-added": Damage(
        "backup-1", *_sshd("Match User backup-push\nPermitTTY yes"), "permittty is yes for backup-push"
    ),
}

# Whose eyes find it, where they aren't the damaged server's own.
FOUND_BY = {"reaches-only-what-it-may": "app-1"}


@pytest.fixture(scope="module")
def up(up_with_backups: Rehearsal) -> Rehearsal:
    """All roles are looked at."""
    return up_with_backups


@pytest.fixture(scope="module")
def servers(up: Rehearsal) -> Iterator[dict[str, Server]]:
    with connected(up.stack()) as opened:
        yield {server.name: server for server in opened}
    # sshd's files were put back, and it was told of that: nothing is left to do for the tests that follow.
    for name in ("app-1", "db-1", "backup-1"):
        up.sudo(name, "uds-harden")


def do(up: Rehearsal, server: str, what: Harm) -> None:
    if isinstance(what, str):
        up.sudo(server, what)
    else:
        what(up)


def test_every_check_has_its_damage() -> None:
    assert {check.name for check in CHECKS} == set(DAMAGES)


@one_stack("what a check reads is on the server, or answers from outside as on any cloud")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_finds_what_it_is_for(up: Rehearsal, servers: dict[str, Server], check: Check) -> None:
    damage = DAMAGES[check.name]
    looking = servers[FOUND_BY.get(check.name, damage.server)]
    assert list(check.find(looking)) == []
    do(up, damage.server, damage.harm)
    try:
        problems = list(check.find(looking))
    finally:
        do(up, damage.server, damage.undo)
    assert any(damage.found in problem for problem in problems), problems
    assert list(check.find(looking)) == []


def test_all_is_well_after_make_up(up: Rehearsal, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    report = json.loads(up.uds("verify", up.name, "--json", "--html", str(page)).stdout)
    assert report["ok"]
    assert {one["server"] for one in report["checks"]} == set(up.outputs()["servers"])
    assert {"source": "the world", "ports": "tcp 443, tcp 80"} in report["reach"]["app-1"]
    assert {"source": "app-1", "ports": "tcp 22, tcp 3306"} in report["reach"]["db-1"]
    html = page.read_text()
    assert "passed." in html
    # Nothing from elsewhere is loaded.
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html


@one_stack("a report is text")
def test_a_problem_is_told_with_its_remedy(up: Rehearsal) -> None:
    up.sudo("db-1", "chmod 755 /var/lib/mysql")
    try:
        done = up.uds("verify", up.name, check=False)
        report = json.loads(up.uds("verify", up.name, "--json", check=False).stdout)
    finally:
        up.sudo("db-1", "chmod 700 /var/lib/mysql")
    assert done.returncode == 1
    assert "1 of " in done.stdout
    (failed,) = [one for one in report["checks"] if not one["ok"]]
    assert (failed["name"], failed["server"]) == ("data-is-private", "db-1")
    assert failed["remedy"] == "uds apply local db-1 mysql"
