"""What a server is from its first minute on, and after a reboot (guide, 3.3 to 3.9)."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.rehearsal.conftest import Rehearsal, one_stack
from tests.rehearsal.people import METADATA, connect_to, console, for_a_while, metadata_service
from tests.rehearsal.support import until

SERVERS = ("app-1", "db-1")
# What is there to reach on a server, from anywhere: local address, and the program behind it.
LISTENING = {
    "app-1": {("0.0.0.0:22", "sshd"), ("[::]:22", "sshd"), ("*:3000", "python3"), ("*:3003", "python3")},
    "db-1": {("0.0.0.0:22", "sshd"), ("[::]:22", "sshd"), ("10.20.0.5:3306", "mariadbd")},
}

USER = "tester"
OLD = "First-Lama9!moss"
# Password, and whether it may be one (guide, 3.4). Each pair differs by what its name says.
PASSWORDS = {
    "nine characters": ("Zq7!rmvKw", False),
    "ten characters": ("Zq7!rmvKwt", True),
    "no upper case": ("zq7!rmvkwt", False),
    "one upper case": ("zq7!rmvKwt", True),
    "one lower case": ("ZQ7!RMVKWt", False),
    "two lower case": ("ZQ7!RMVKwt", True),
    "no digit": ("Zqx!rmvKwt", False),
    "no symbol": ("Zq7xrmvKwt", False),
    "the guide's example": ("password", False),
    "a word in disguise": ("Password1!", False),
    "backwards too": ("!1drowssaP", False),
    "a row of keys": ("Abcdefgh1!", False),
    "the user's name": ("Tester-9tester!", False),
    "nothing": ("", False),
    "several words": ("Gr8-Wombat!Kite", True),
    "with spaces": ("Quartz otter 7 lamps!", True),
}
# What the user may go on to from OLD.
CHANGES = {
    "one character": ("First-Lama9!mosx", False),
    "two characters": ("First-Lama9!moxy", False),
    "three characters": ("First-Lama9!mxyz", True),
    "capitals only": ("fIRST-lAMA9!mosS", False),
    "the same": (OLD, False),
}

OF_THE_FILES = "decided by the hardened files, which are the same on every cloud"

pytestmark = pytest.mark.parametrize("server", SERVERS)


@dataclass(frozen=True)
class Moment:
    """When a test looks: `mark` was logged before, and `before` is how each server was before a reboot."""

    mark: str
    before: dict[str, str]


@pytest.fixture(scope="module", params=["at first", "after a reboot"], autouse=True)
def moment(up: Rehearsal, request: pytest.FixtureRequest) -> Moment:
    mark = f"mark-{time.time_ns()}"
    for server in SERVERS:
        console(up, server, f"logger -t uds-test {mark}; journalctl --sync")
    if request.param == "at first":
        return Moment(mark, {})
    before = {server: state(up, server) for server in SERVERS}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda server: reboot(up, server), SERVERS))
    return Moment(mark, before)


def reboot(up: Rehearsal, server: str) -> None:
    realm = up.realm()
    console(up, server, "touch /run/this-boot")
    realm.power.reboot(up.machine(server).number)
    up_again = "test ! -e /run/this-boot && systemctl is-system-running"
    until(lambda: console(up, server, up_again, check=False).strip() in {"running", "degraded"})
    # Programs that have started listen a moment later.
    until(lambda: listening(up, server) >= LISTENING[server])


def listening(up: Rehearsal, server: str) -> set[tuple[str, str]]:
    found = set()
    for line in console(up, server, "ss -Htulpn").splitlines():
        program = re.search(r'users:\(\("([^"]+)"', line)
        found.add((line.split()[4], program[1] if program else "?"))
    return found


def state(up: Rehearsal, server: str) -> str:
    """All that a reboot could change of a server's defences."""
    return console(
        up,
        server,
        """
        sshd -T
        for tables in iptables ip6tables; do $tables-save | sed 's/ \\[[0-9:]*\\]//; /^#/d'; done
        sysctl -a 2>/dev/null | grep -E '^net\\.ipv[46]\\.conf\\..*(redirects|filter|martians|source_route)'
        ss -Htuln | tr -s ' ' | sort
        getent shadow; getent group
        find /etc -type f ! -path /etc/resolv.conf -newer /etc/uds/packages -exec sha256sum {} + | sort -k2
        """,
    )


@pytest.fixture
def user(up: Rehearsal, server: str) -> Iterator[str]:
    with for_a_while(
        up, server, f"useradd -m {USER}; echo '{USER}:{OLD}' | chpasswd", f"userdel -r {USER} 2>/dev/null"
    ):
        yield USER


def test_a_reboot_changes_nothing(up: Rehearsal, server: str, moment: Moment) -> None:
    now = state(up, server)
    for tables in ("iptables", "ip6tables"):
        assert console(up, server, f"{tables} -S INPUT").startswith("-P INPUT DROP\n")
    if moment.before:
        assert now == moment.before[server]
        assert up.ssh(server, "hostname").stdout == f"{server}\n"


def test_the_journal_outlives_a_reboot(up: Rehearsal, server: str, moment: Moment) -> None:
    now = f"{moment.mark}-now"
    console(up, server, f"logger -t uds-test {now}; journalctl --sync")
    stored = console(up, server, "journalctl -q -o cat -t uds-test -D /var/log/journal/$(cat /etc/machine-id)").split()
    assert {moment.mark, now} <= set(stored)
    # From the first boot on, before journald kept anything on the disk.
    assert "new user: name=deploy" in console(up, server, "journalctl -q -o cat -t useradd")


def test_nothing_failed(up: Rehearsal, server: str) -> None:
    assert console(up, server, "systemctl --failed --no-legend; systemctl is-system-running --wait") == "running\n"
    status = console(up, server, "cloud-init status --wait --format json")
    assert '"errors": []' in status
    assert '"recoverable_errors": {}' in status
    assert console(up, server, "cat /var/lib/uds/first-boot") == "ok\n"
    # The user data as this cloud-init understands it: a mistake in it would leave the server stock.
    assert console(up, server, "cloud-init schema --system").split("\n")[0] == "Valid schema user-data"


def test_nothing_listens_but_what_the_server_is_for(up: Rehearsal, server: str) -> None:
    until(lambda: listening(up, server) >= LISTENING[server])
    assert listening(up, server) == LISTENING[server]
    # Nobody reads packets past the firewall.
    assert console(up, server, "ss -Hwlpn; ss -H0lpn") == ""


@one_stack(OF_THE_FILES)
def test_passwords_are_good_or_refused(up: Rehearsal, server: str, user: str) -> None:
    """As root sets them, who could set any otherwise."""
    tries = "\n".join(password for password, _ in PASSWORDS.values())
    script = f"""
    while IFS= read -r password; do
        if printf '%s:%s\\n' {user} "$password" | chpasswd >/dev/null 2>&1; then echo yes; else echo no; fi
    done <<'END'
{tries}
END
    """
    verdicts = console(up, server, script).split()
    assert dict(zip(PASSWORDS, verdicts, strict=True)) == {
        name: "yes" if good else "no" for name, (_, good) in PASSWORDS.items()
    }
    # The other command for it.
    passwd = f"printf '%s\\n' {{0}} {{0}} {{0}} {{0}} {{0}} {{0}} | passwd {user} && echo changed || true"
    assert "changed" not in console(up, server, passwd.format("'Password1!'")).splitlines()
    assert "changed" in console(up, server, passwd.format("'Gr8-Wombat!Kite'")).splitlines()


@one_stack(OF_THE_FILES)
def test_a_new_password_differs_from_the_old_one(up: Rehearsal, server: str) -> None:
    """As users change their own: one user for each try, since PAM waits 2 s after a refusal."""
    tries = list(enumerate(password for password, _ in CHANGES.values()))
    users = [f"{USER}{number}" for number, _ in tries]
    make = "\n".join(f"useradd -m {user}; echo '{user}:{OLD}' | chpasswd" for user in users)
    change = "\n".join(
        f"(printf '%s\\n' '{OLD}' '{password}' '{password}' | runuser -u {USER}{number} -- passwd >/dev/null 2>&1"
        f" && echo {number}) &"
        for number, password in tries
    )
    with for_a_while(up, server, make, "\n".join(f"userdel -r {user}" for user in users)):
        changed = set(console(up, server, f"{change}\nwait").split())
    assert {name: str(number) in changed for number, name in enumerate(CHANGES)} == {
        name: good for name, (_, good) in CHANGES.items()
    }


def test_root_has_no_way_in_and_nobody_gets_there_unasked(up: Rehearsal, server: str) -> None:
    assert console(up, server, "getent shadow root | cut -d: -f2") == "*\n"
    assert console(up, server, "ls -A /root/.ssh /etc/ssh/authorized_keys.d/root 2>/dev/null || true") in {
        "",
        "/root/.ssh:\n",
    }
    # One root, and no account without a password.
    assert console(up, server, "getent passwd | awk -F: '$3 == 0 {print $1}'") == "root\n"
    assert console(up, server, "getent shadow | awk -F: '$2 == \"\" {print $1}'") == ""
    assert console(up, server, "grep -rhE '^[^#]*(NOPASSWD|!authenticate)' /etc/sudoers /etc/sudoers.d || true") == ""
    refused = up.ssh(server, "sudo -k -n true", check=False)
    assert refused.returncode == 1
    assert "a password is required" in refused.stderr
    rights = console(up, server, "for user in $(getent group sudo | cut -d: -f4 | tr , ' '); do sudo -lU $user; done")
    assert "(ALL : ALL) ALL" in rights
    assert "NOPASSWD" not in rights
    # Who has a password is somebody who may log in, or gets no further than the console.
    holders = console(up, server, "getent shadow | awk -F: '$2 ~ /^\\$/ {print $1}'").split()
    members = console(up, server, "getent group ssh-users | cut -d: -f4").strip().split(",")
    assert set(holders) <= set(members)


@one_stack(OF_THE_FILES)
def test_sessions_leave_nothing_to_others(up: Rehearsal, server: str) -> None:
    """New files are closed, no core has secrets in it, forgotten shells end, and timed jobs are root's."""
    umask, core, timeout = up.ssh(server, "umask; ulimit -Hc; bash -lc 'echo $TMOUT'").stdout.split()
    # Of a user whose group is their own, that has what the user has.
    assert (umask, core, timeout) == ("0007", "0", "900")
    assert up.sudo(server, "umask").stdout == "0027\n"
    assert "not allowed" in up.ssh(server, "crontab -l", check=False).stderr


@one_stack(OF_THE_FILES)
def test_nobody_sees_what_others_run(up: Rehearsal, server: str) -> None:
    seen = up.ssh(server, "ps -eo user=,pid=").stdout.split("\n")
    assert {line.split()[0] for line in seen if line} == {"deploy"}
    assert up.ssh(server, "cat /proc/1/cmdline", check=False).returncode != 0
    # Sessions are known all the same, and root's tools see everybody.
    assert "deploy" in up.ssh(server, "loginctl list-sessions --no-legend").stdout
    assert up.sudo(server, "ps -eo comm= | grep -cx systemd-journal").stdout == "1\n"


@one_stack(OF_THE_FILES)
def test_only_admins_try_passwords_of_others(up: Rehearsal, server: str) -> None:
    attempt = "echo wrong | runuser -u {0} -- su deploy -c true"
    assert "Permission denied" in console(up, server, attempt.format("nobody"), check=False)
    assert "Authentication failure" in console(up, server, attempt.format("deploy"), check=False)


@one_stack(OF_THE_FILES)
def test_what_no_server_needs_is_not_loaded(up: Rehearsal, server: str) -> None:
    """As modprobe would do it: without a kernel of its own, a container can't show more."""
    assert "/bin/false" in console(up, server, "modprobe --showconfig | grep -w usb_storage")


@one_stack(OF_THE_FILES)
def test_the_time_is_kept(up: Rehearsal, server: str) -> None:
    assert console(up, server, "systemctl is-enabled chrony") == "enabled\n"
    configured = console(up, server, "chronyd -p").splitlines()
    assert any(line.startswith(("pool ", "server ", "sourcedir /etc/chrony")) for line in configured)
    assert {"port 0", "cmdport 0", "makestep 1 3"} <= set(configured)
    others = console(
        up, server, "systemctl is-enabled systemd-timesyncd ntp ntpsec openntpd 2>/dev/null || true"
    ).split()
    assert "enabled" not in others
    # A container may not set its host's clock: there, systemd doesn't start it, which is no failure.
    shown = console(up, server, "systemctl show -P ActiveState -P ConditionResult chrony").split()
    may_set = console(up, server, "systemd-detect-virt --container || true").strip() == "none"
    assert sorted(shown) == sorted(["active", "yes"] if may_set else ["inactive", "no"])


@one_stack(OF_THE_FILES)
def test_security_updates_and_only_they_install_themselves(up: Rehearsal, server: str) -> None:
    units = "unattended-upgrades apt-daily.timer apt-daily-upgrade.timer"
    assert set(console(up, server, f"systemctl is-enabled {units}; systemctl is-active {units}").split()) == {
        "enabled",
        "active",
    }
    settings = console(up, server, "apt-config dump APT::Periodic; apt-config dump Unattended-Upgrade")
    for line in (
        'APT::Periodic::Update-Package-Lists "1";',
        'APT::Periodic::Unattended-Upgrade "1";',
        'Unattended-Upgrade::Automatic-Reboot "false";',
    ):
        assert line in settings
    # It may have nothing to say but that apt's own daily run is at work; this line comes before.
    told = console(up, server, "unattended-upgrade --dry-run -v", check=False)
    allowed = re.search(r"Allowed origins are: (.*)", told)
    assert allowed, told
    suite = console(up, server, ". /etc/os-release; echo $VERSION_CODENAME").strip()
    assert f"origin=Debian,codename={suite}-security,label=Debian-Security" in allowed[1]
    assert all(f"{suite}-security" in origin for origin in re.split(r", (?=origin=)", allowed[1]))


def test_packages_can_be_had(up: Rehearsal, server: str) -> None:
    told = ""

    def nobody_else_did() -> bool:
        nonlocal told
        told = console(up, server, "apt-get -q update", check=False)
        return "E: Could not get lock" not in told

    until(nobody_else_did)
    assert re.findall(r"^[EW]: .*", told, re.MULTILINE) == []


def test_network_settings_are_in_force_on_every_interface(up: Rehearsal, server: str) -> None:
    """Those of the kernel are the host's here, and only a real server can show them."""
    lines = console(up, server, "cat /etc/sysctl.d/60-hardening.conf").splitlines()
    wanted = [line.split(" = ") for line in lines if line.startswith("net.ipv")]
    assert len(wanted) > 20
    current = dict(
        line.split(" = ", 1) for line in console(up, server, "sysctl -a 2>/dev/null").splitlines() if " = " in line
    )
    assert "net.ipv6.conf.eth0.accept_redirects" in current
    differs: dict[str, str] = {}
    for key, value in wanted:
        pattern = re.compile(re.escape(key).replace(r"\*", "[^.]+"))
        found = {name: one for name, one in current.items() if pattern.fullmatch(name)}
        assert found, key
        differs |= {name: one for name, one in found.items() if one != value}
    assert differs == {}
    off = re.compile(
        r"net\.ipv[46]\.conf\.[^.]+\.(accept_redirects|secure_redirects|send_redirects|accept_source_route)"
    )
    assert {name: one for name, one in current.items() if off.fullmatch(name) and one != "0"} == {}


def test_the_metadata_service_is_roots(up: Rehearsal, server: str) -> None:
    with metadata_service(up, server):
        for address in METADATA:
            for account in ("deploy", "nobody", "_apt"):
                # At once: a program that asks does not hang until it gives up.
                told = console(up, server, f"! runuser -u {account} -- {connect_to(address)}")
                assert "Connection refused" in told, told


def test_user_data_is_roots(up: Rehearsal, server: str) -> None:
    needles = "hashed_passwd|BEGIN EC PRIVATE|rounds=5000|\\$6\\$"
    places = "/var/lib/cloud /run/cloud-init /var/log /etc /run/uds* /var/lib/uds /home /root /tmp"
    search = f"grep -rlsE '{needles}' {places}"
    assert "user-data.txt" in console(up, server, f"{search} || true")
    assert console(up, server, f"runuser -u deploy -- {search} || true") == ""
    for path in (
        "/var/lib/cloud/seed/nocloud/user-data",
        "/var/lib/cloud/instance/user-data.txt",
        "/var/lib/cloud/instance/user-data.txt.i",
        "/var/lib/cloud/instance/cloud-config.txt",
        "/var/lib/cloud/instance/obj.pkl",
        "/run/cloud-init/instance-data-sensitive.json",
        "/etc/ssh/sshd_config.d/00-hardening.conf",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/iptables/rules.v4",
    ):
        assert console(up, server, f"test -e {path}; runuser -u deploy -- cat {path} && exit 1 || true").endswith(
            "Permission denied\n"
        ), path
    assert console(up, server, "ls /etc/ssh/bootstrap_host_key* 2>/dev/null || true") == ""
