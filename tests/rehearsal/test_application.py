"""The application on a real server: reached through 443 only, held in its sandbox, delivered and taken back.

The tests of one rehearsal, in the order in which they stand: each leaves the application well.
"""

import json
import re
import shutil
import ssl
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from components.settings import PROJECT_FOLDER
from rehearsal.realm import Bystander
from rehearsal.visitor import Visitor
from tests.rehearsal.conftest import Rehearsal, new_rehearsal, one_stack
from tests.rehearsal.people import metadata_service
from tests.rehearsal.support import Script, until

pytestmark = one_stack("a release is files, processes and values on one server; how it is reached is in test_ports.py")

HOST = "application.test"
DEMO = PROJECT_FOLDER / "rehearsal/demo"
PROBE = Path(__file__).parent / "application_probe"
APPLY = "app-1-application-apply"
RELEASE = "app-1-application-release"
HOME = "/usr/local/application"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """A rehearsal of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        for rehearsal in new_rehearsal(tmp_path_factory.mktemp("application"), patch):
            rehearsal.make("up")
            rehearsal.stays_connected = True
            yield rehearsal


@pytest.fixture
def demo(app: Rehearsal) -> Iterator[Rehearsal]:
    """The demo runs, before the test and after it."""
    yield app
    deliver(app, "rehearsal/demo")


# What the tests ask for


def deliver(app: Rehearsal, release: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Another release."""
    app.configure("application", {"release": release, "command": ["/usr/bin/python3", "server.py"]})
    return pulumi_up(app, check=check)


def pulumi_up(app: Rehearsal, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What `make up` does of the stack. `make up` itself brings back what the committed stack file says."""
    done = subprocess.run(
        ["pulumi", "up", "--yes", "--skip-preview", "--stack", "local", "--color", "never", *arguments],
        cwd=app.workspace,
        env=app.stack().environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def copy_of_demo(folder: Path, old: str = "", new: str = "") -> Path:
    """The demo with a text in its program changed."""
    shutil.copytree(DEMO, folder)
    program = (folder / "server.py").read_text()
    assert old in program
    (folder / "server.py").write_text(program.replace(old, new) if old else program + f"\n# {folder.name}\n")
    return folder


def public_address(app: Rehearsal) -> str:
    return str(app.outputs()["servers"]["app-1"]["publicIp"])


def certificate(app: Rehearsal) -> str:
    return str(app.stack().section("application")["certificate"])


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str


def call(app: Rehearsal, path: str, *options: str, scheme: str = "https", address: str = "") -> Answer:
    """What a visitor gets, who trusts the stack's certificate and nothing else."""
    address = address or public_address(app)
    trusted = app.folder / "trusted.pem"
    trusted.write_text(certificate(app))
    port = {"https": 443, "http": 80}[scheme]
    done = subprocess.run(
        [
            *("curl", "-sS", "-i", "-m", "60", "--cacert", str(trusted), "--resolve", f"{HOST}:{port}:{address}"),
            *options,
            f"{scheme}://{HOST}{path}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, _, text = done.stdout.partition("\n\n" if "\r" not in done.stdout else "\r\n\r\n")
    status, *lines = head.splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status.split()[1]), headers, text)


def open_ports(somebody: Bystander, address: str, *ports: int) -> set[int]:
    """Which of the ports answer."""
    family = ["-6"] if ":" in address else []
    wanted = ",".join(str(port) for port in ports)
    done = somebody.run(["nmap", *family, "-Pn", "-n", "-p", wanted, "--open", "-oG", "-", address])
    return {int(port) for port in re.findall(r"(\d+)/open", done.stdout)}


def steps(app: Rehearsal) -> dict[str, str]:
    """What a preview would change: name -> operation; components and the stack itself left out."""
    preview = json.loads(app.pulumi("preview", "--json"))
    return {
        name: step["op"]
        for step in preview["steps"]
        if step["op"] != "same"
        and "-" in (name := step["urn"].rpartition("::")[2])
        and "pulumi:pulumi" not in step["urn"]
    }


def reapply(app: Rehearsal) -> str:
    """What the script prints when it is run once more."""
    return Script.of(app, "app-1", "application").run(app).stdout


def invocation(app: Rehearsal) -> str:
    """Another text after every start of the service."""
    return app.sudo("app-1", "systemctl show -p InvocationID --value application").stdout


def releases(app: Rehearsal) -> set[str]:
    return set(app.sudo("app-1", f"cd {HOME}/releases && ls -d */").stdout.split())


def current(app: Rehearsal) -> str:
    return Path(app.sudo("app-1", f"readlink {HOME}/current").stdout.strip()).name


# From outside


def test_https_answers_with_its_own_certificate_and_says_so_for_good(app: Rehearsal) -> None:
    answer = call(app, "/health")
    assert (answer.status, answer.text) == (200, "ok\n")
    assert int(re.findall(r"max-age=(\d+)", answer.headers["strict-transport-security"])[0]) >= 31536000
    v6 = app.realm().machine("local-app-1").addresses()[1]
    assert call(app, "/health", address=f"[{v6}]").status == 200
    (served,) = x509.load_pem_x509_certificates(
        ssl.get_server_certificate((public_address(app), 443), timeout=5).encode()
    )
    assert served == x509.load_pem_x509_certificate(certificate(app).encode())


def test_http_only_says_where_https_is(app: Rehearsal) -> None:
    answer = call(app, "/notes?page=2", scheme="http", address=public_address(app))
    assert (answer.status, answer.headers["location"]) == (308, f"https://{HOST}/notes?page=2")
    # Not where a visitor says it is.
    answer = call(app, "/", "-H", "Host: evil.example", "--request-target", "http://evil.example/", scheme="http")
    assert answer.headers["location"] == f"https://{HOST}/"


def test_the_ports_behind_443_and_80_answer_nobody(app: Rehearsal) -> None:
    addresses = app.realm().machine("local-app-1").addresses()
    assert len(addresses) == 2
    with app.realm().outsider() as outsider:
        for address in addresses:
            assert open_ports(outsider, address, 80, 443, 3000, 3003, 8080) == {80, 443}


# On the server


def test_account_folders_and_files_are_as_in_the_guide(app: Rehearsal) -> None:
    name = current(app)
    shown = app.sudo(
        "app-1",
        "getent passwd application | cut -d: -f6,7; passwd -S application | cut -d' ' -f2; id -Gn application; "
        f"cd {HOME}; stat -c '%U:%G %a %n' {HOME} $PWD/* $PWD/releases/{name}* $PWD/releases/{name}/* "
        "$PWD/config/* $PWD/ssl/* /var/lib/application; "
        "ls -d /nonexistent /home/application 2>/dev/null; true",
    ).stdout
    assert shown.splitlines() == [
        "/nonexistent:/bin/false",
        "L",
        "application",
        f"root:application 750 {HOME}",
        f"application:application 700 {HOME}/config",
        f"root:root 777 {HOME}/current",
        f"root:application 750 {HOME}/releases",
        f"application:application 700 {HOME}/ssl",
        f"root:application 750 {HOME}/releases/{name}",
        f"root:root 600 {HOME}/releases/{name}.sum",
        f"root:root 600 {HOME}/releases/{name}.tar",
        f"root:application 640 {HOME}/releases/{name}/README.md",
        f"root:application 640 {HOME}/releases/{name}/schema.sql",
        f"root:application 640 {HOME}/releases/{name}/server.py",
        f"application:application 400 {HOME}/config/config-production.json",
        f"application:application 400 {HOME}/config/database-ca.pem",
        f"application:application 400 {HOME}/ssl/certificate.pem",
        f"application:application 400 {HOME}/ssl/private-key.pem",
        "application:application 700 /var/lib/application",
    ]


def test_nobody_logs_in_as_the_application(app: Rehearsal) -> None:
    # As root, whom su asks for no password: the shell ends at once.
    assert app.sudo("app-1", "su application -c 'echo in'; echo $?").stdout.split() == ["1"]
    done = app.ssh("app-1", "su application -c 'echo in'", stdin="\n", check=False)
    assert done.returncode != 0
    assert "in" not in done.stdout.split()
    key = app.folder / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    # Even a key that somebody has planted opens nothing.
    planted = "/etc/ssh/authorized_keys.d/application"
    app.sudo("app-1", f"echo '{public}' > {planted}; chmod 0644 {planted}")
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    login = subprocess.run(
        ["ssh", *options, "-i", str(key), f"application@{public_address(app)}", "echo in"],
        capture_output=True,
        text=True,
        check=False,
    )
    app.sudo("app-1", f"rm {planted}")
    assert login.returncode == 255
    assert "Permission denied" in login.stderr


# What systemd still advises, and why not: it is an application, which has the network and its own system's libraries.
ADVICE = {
    "RootDirectoryOrRootImage",
    "PrivateNetwork",
    "RestrictAddressFamilies_AF_INET_INET6",
    "RestrictAddressFamilies_AF_UNIX",
    "IPAddressDeny",
    "ProcSubset",
    # The clock, to read it; it comes with ProtectClock.
    "DeviceAllow",
    # Runtimes that compile while they run would not start.
    "MemoryDenyWriteExecute",
}


def test_systemd_has_little_left_to_advise(app: Rehearsal) -> None:
    """Also the lines of the unit that nobody could see from inside: each is advice if it is missing."""
    told = json.loads(app.sudo("app-1", "systemd-analyze security --no-pager --json=short application").stdout)
    assert {one["json_field"] for one in told if one["exposure"] not in (None, "0", "0.0")} == ADVICE
    # Whether or not this host's kernel lets systemd hold it to these.
    limits = "SocketBindDeny SocketBindAllow IPAddressDeny"
    shown = app.sudo("app-1", f"for one in {limits}; do systemctl show --value -p $one application; done").stdout
    assert sorted(shown.split()) == sorted(
        ["any", "tcp3000", "tcp3003", "169.254.169.254/32"]
        + [f"{address}/128" for address in ("fd00:a9fe:a9fe::1", "fe80::a9fe:a9fe", "fd00:ec2::254")]
    )


def test_the_secrets_are_on_the_server_and_in_no_readable_place(app: Rehearsal) -> None:
    password = app.stack().section("database")["password"]
    key = app.stack().section("application")["privateKey"].splitlines()[1]
    state = app.pulumi("stack", "export")
    for text in (password, key):
        assert text not in state
        found = app.sudo("app-1", f"grep -rlF -e '{text}' /etc /usr/local /var /run /home /root /tmp 2>/dev/null; true")
        paths = {path for path in found.stdout.split() if not path.startswith("/var/log/journal/")}
        expected = "config/config-production.json" if text == password else "ssl/private-key.pem"
        assert paths == {f"{HOME}/{expected}"}


def test_the_database_remembers_what_the_application_wrote(app: Rehearsal) -> None:
    text = f"'); DROP TABLE demo_notes; -- {time.time()} \N{SNOWMAN} <script>"
    answer = call(app, "/notes", "--json", json.dumps({"text": text}))
    assert answer.status == 201, answer.text
    assert json.loads(call(app, "/notes").text)[0]["text"] == text
    assert "&lt;script&gt;" in call(app, "/").text
    assert "<script>" not in call(app, "/").text


# Its sandbox


# Where everybody may leave something.
PLACES = "/tmp /var/tmp /dev/shm"  # noqa: S108 - names of places


@pytest.fixture(scope="module")
def probed(app: Rehearsal) -> dict[str, Any]:
    """What the application can do on its server, tried by an application."""
    app.sudo(
        "app-1",
        "install -d /usr/local/lib/setuid-probe; "
        "install -m 4755 /usr/bin/id /bin/sh /usr/local/lib/setuid-probe; "
        f"for place in {PLACES}; do echo secret > $place/of-others; done; ipcmk -M 4096 -p 0666",
    )
    # Proof that the trap works: for a person it does.
    assert app.ssh("app-1", "/usr/local/lib/setuid-probe/id -u").stdout.strip() == "0"
    deliver(app, str(PROBE))
    with metadata_service(app, "app-1"):
        found: dict[str, Any] = json.loads(call(app, "/").text)
    realm = app.realm()
    machine = realm.machine("local-app-1")
    with realm.outsider() as outsider, realm.cloud_firewall_off(machine):
        found["reached"] = open_ports(outsider, machine.addresses()[0], 443, 3000, 3003, 8080)
    app.sudo(
        "app-1",
        f"for place in {PLACES}; do rm $place/of-others; done; rm -r /usr/local/lib/setuid-probe; ipcrm --all=shm",
    )
    deliver(app, "rehearsal/demo")
    return found


def test_it_writes_to_nothing_but_its_own(probed: dict[str, Any]) -> None:
    own = ("/var/lib/application", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")  # noqa: S108 - names of places
    assert [path for path in probed["writable"] if not path.startswith(own)] == []
    assert "/var/lib/application" in probed["writable"]
    # Nobody else reads what it writes there.
    assert probed["new file"] == "600"
    assert probed["core"] == [0, 0]


def test_it_reads_nothing_that_is_not_for_everyone_but_its_own(app: Rehearsal, probed: dict[str, Any]) -> None:
    own = ("/var/lib/application", HOME, "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")  # noqa: S108 - names of places
    assert [path for path in probed["readable secrets"] if not path.startswith(own)] == []
    assert f"{HOME}/config/config-production.json" in probed["readable secrets"]
    assert not any(path.endswith((".tar", ".sum")) for path in probed["readable secrets"])
    assert probed["reads"] == []
    assert probed["others' processes"] == []
    # Its own /tmp, not everybody's.
    assert probed["sees"] == []
    assert probed["looks into"] == []
    assert probed["others' shared memory"] == []
    # They are there: for root.
    assert app.sudo("app-1", "head -c1 /etc/shadow /var/log/sudo.log /root/.profile").returncode == 0


def test_it_gains_no_privilege(probed: dict[str, Any]) -> None:
    assert probed["uid"] != 0
    # Of all other users it knows no more than that they aren't itself.
    assert probed["users"] != ["0", "0", "4294967295"]
    assert probed["setuid id"] == str(probed["uid"])
    assert "root:" not in probed["setuid shell"]
    assert probed["sudo"] != "0"
    assert probed["su"] != "0"
    assert "0" not in (probed["user namespace"], probed["mount"])
    assert set(probed["capabilities"]) == {"0000000000000000"}
    assert (probed["no new privileges"], probed["seccomp"]) == ("1", "2")
    for what in (
        "setuid 0",
        "chown",
        "chmod u+s",
        "device",
        "raw socket",
        "netlink",
        "signals init",
        "changes the host name",
        "personality",
        "sysctl",
    ):
        assert probed[what] is False, what


def test_it_does_not_reach_the_metadata_service(probed: dict[str, Any]) -> None:
    assert probed["metadata"] == []


def test_no_other_port_of_it_is_reached(app: Rehearsal, probed: dict[str, Any]) -> None:
    assert probed["low port"] is False
    # The kernel refuses where control groups of version 2 are, alone or beside others. Elsewhere it can't: the port can
    # be opened there, and the firewalls are what keeps everybody out.
    if " cgroup2 " in app.sudo("app-1", "cat /proc/mounts").stdout:
        assert probed["other port"] is False
    # The server's own firewall alone.
    assert probed["reached"] == {443}


# Changes


def test_nothing_to_do_is_nothing_done(app: Rehearsal) -> None:
    before = invocation(app)
    assert steps(app) == {}
    pulumi_up(app, "--expect-no-changes")
    assert reapply(app) == ""
    assert invocation(app) == before


def test_a_new_release_takes_over_in_a_moment(demo: Rehearsal, tmp_path: Path) -> None:
    old = current(demo)
    folder = copy_of_demo(tmp_path / "second", '"ok\\n"', '"second\\n"')
    demo.configure("application", {"release": str(folder)})
    assert steps(demo) == {APPLY: "update", RELEASE: "update"}
    with Visitor(public_address(demo), certificate(demo), "/health") as visitor:
        pulumi_up(demo)
    assert call(demo, "/health").text == "second\n"
    assert visitor.answers > 20
    # Loose, for a busy machine; `make bench` measures.
    assert visitor.away < 5
    assert {f"{old}/", f"{current(demo)}/"} <= releases(demo)
    assert demo.ssh("app-1", "ls uds-release-*", check=False).stdout == ""
    assert steps(demo) == {}


def test_the_same_content_is_the_same_release_however_it_is_packed(demo: Rehearsal, tmp_path: Path) -> None:
    before = invocation(demo)
    archive = tmp_path / "demo.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(DEMO, arcname=".", filter=lambda entry: None if "__pycache__" in entry.name else entry)
    demo.configure("application", {"release": str(archive)})
    assert steps(demo) == {}
    pulumi_up(demo, "--expect-no-changes")
    assert invocation(demo) == before


# A text of the demo, what breaks it, and what is said then.
BROKEN = (
    ("import pymysql\n", "import no_such_module\n", "No module named 'no_such_module'"),
    (
        'configuration["ports"], configuration["tls"]',
        'configuration["ports"], configuration["nothing"]',
        "KeyError",
    ),
    ("    main()\n", "    pass\n", "it ended by itself"),
    # It starts and answers, but is never well.
    pytest.param(
        '(HTTPStatus.OK, "text/plain; ',
        '(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; ',
        "/health answers with status 503",
        marks=pytest.mark.nightly("given up after a minute"),
    ),
)


@pytest.mark.parametrize(("old", "new", "why"), BROKEN)
def test_a_broken_release_is_taken_back_and_says_why(
    demo: Rehearsal, tmp_path: Path, old: str, new: str, why: str
) -> None:
    good, before = current(demo), demo.configuration()["application"]["release"]
    folder = copy_of_demo(tmp_path / "broken", old, new)
    done = deliver(demo, str(folder), check=False)
    shown = done.stdout + done.stderr
    assert done.returncode != 0
    assert why in shown
    assert f"Release {good} runs as before." in shown
    assert demo.stack().section("database")["password"] not in shown
    assert call(demo, "/health").status == 200
    assert current(demo) == good
    assert demo.ssh("app-1", "ls uds-release-*", check=False).stdout == ""
    # What is undone needs nothing more than the settings of before.
    demo.configure("application", {"release": before})
    pulumi_up(demo)
    assert reapply(demo) == ""


def test_a_command_that_does_not_exist_is_taken_back_with_its_unit(demo: Rehearsal) -> None:
    demo.configure("application", {"command": ["/usr/bin/no-such-program", "server.py"]})
    done = pulumi_up(demo, check=False)
    assert done.returncode != 0
    assert "no-such-program" in done.stdout + done.stderr
    assert call(demo, "/health").status == 200
    assert "/usr/bin/python3" in demo.sudo("app-1", "systemctl cat application").stdout


def test_the_last_three_releases_are_kept(demo: Rehearsal, tmp_path: Path) -> None:
    names = []
    for number in range(3):
        deliver(demo, str(copy_of_demo(tmp_path / f"release-{number}")))
        names.append(f"{current(demo)}/")
    assert releases(demo) == set(names)
    kept = demo.sudo("app-1", f"ls {HOME}/releases | wc -l").stdout.strip()
    assert kept == "9"


def test_a_new_certificate_restarts_the_application_and_nothing_else(demo: Rehearsal) -> None:
    old, before = certificate(demo), invocation(demo)
    demo.uds("cert", "self-signed", "local", "--name", HOST, "--key-type", "rsa3072")
    assert certificate(demo) != old
    assert steps(demo) == {APPLY: "update"}
    pulumi_up(demo)
    # Verified with the new one.
    assert call(demo, "/health").status == 200
    assert invocation(demo) != before
    assert steps(demo) == {}


def test_a_changed_setting_restarts_the_application_and_nothing_else(demo: Rehearsal) -> None:
    before = invocation(demo)
    settings = demo.configuration()["application"]["settings"]
    demo.configure("application", {"settings": {**settings, "colour": "blue"}})
    assert steps(demo) == {APPLY: "update"}
    pulumi_up(demo)
    assert invocation(demo) != before
    written = json.loads(demo.sudo("app-1", f"cat {HOME}/config/config-production.json").stdout)
    assert written["settings"] == {"host": HOST, "colour": "blue"}
    demo.configure("application", {"settings": settings})


def test_a_setting_that_breaks_it_is_taken_back(demo: Rehearsal) -> None:
    settings = demo.configuration()["application"]["settings"]
    demo.configure("application", {"settings": {"hosts": HOST}})
    done = pulumi_up(demo, check=False)
    assert done.returncode != 0
    assert "KeyError: 'host'" in done.stdout + done.stderr
    assert call(demo, "/health").status == 200
    demo.configure("application", {"settings": settings})


UNIT = "/etc/systemd/system/application.service"
# What somebody does by hand, and what the script says when it puts that right; one round after the other.
DAMAGE: tuple[dict[str, str], ...] = (
    {
        f"chmod 0644 {HOME}/config/config-production.json": f"changed: {HOME}/config/config-production.json",
        f"chown root {HOME}/ssl/private-key.pem": f"changed: {HOME}/ssl/private-key.pem",
        f"cd {HOME}/ssl; rm certificate.pem; mkdir -p certificate.pem/x": f"changed: {HOME}/ssl/certificate.pem",
        f"cd {HOME}/config; rm database-ca.pem; mkfifo database-ca.pem": f"changed: {HOME}/config/database-ca.pem",
        f"chmod 0755 {HOME}/config": f"changed: {HOME}/config",
        f"chown application {HOME}": f"changed: {HOME}",
        "usermod -s /bin/bash application": "changed: the account's shell",
        "usermod -p '' application": "locked: the account",
        "usermod -a -G sudo,ssh-users application": "changed: the account's groups",
        f"echo 'import os' >> {HOME}/current/server.py": "unpacked: release",
        f"ln -sfn /tmp {HOME}/current": "current: release",
        f"sed -i s/NoNewPrivileges=yes/NoNewPrivileges=no/ {UNIT}": f"changed: {UNIT}",
        "systemctl disable application": "enabled: application.service",
    },
    {
        f"echo '{{}}' > {HOME}/config/config-production.json": f"changed: {HOME}/config/config-production.json",
        f"touch {HOME}/current/more.py": "unpacked: release",
        f"rm {UNIT}; ln -s /dev/null {UNIT}": f"changed: {UNIT}",
    },
    {
        f"chmod 0777 {HOME}/current/": "unpacked: release",
        f"mkdir {UNIT}.d; printf '[Service]\\nUser=root\\n' > {UNIT}.d/override.conf": f"removed: {UNIT}.d",
    },
    {f"rm -r {HOME}/releases/*.sum {HOME}/current/*": "unpacked: release"},
    {"systemctl stop application": "restarted: application.service"},
    {f"mv {HOME}/config /root; ln -s /root {HOME}/config": f"changed: {HOME}/config", "true": "restarted"},
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_broken_by_hand_is_mended_and_told(app: Rehearsal, damage: dict[str, str]) -> None:
    app.sudo("app-1", "set -e; " + "; ".join(f"( {action} )" for action in damage))
    printed = reapply(app)
    assert [told for told in damage.values() if told not in printed] == []
    assert reapply(app) == ""
    assert call(app, "/health").status == 200
    test_account_folders_and_files_are_as_in_the_guide(app)
    assert app.sudo("app-1", "systemctl show -p User --value application").stdout.strip() == "application"


def test_opened_permissions_alone_restart_nothing(app: Rehearsal) -> None:
    before = invocation(app)
    app.sudo("app-1", f"chmod 0644 {HOME}/config/* {HOME}/ssl/*; chmod 0755 {HOME} {HOME}/config {HOME}/ssl")
    assert len(reapply(app).splitlines()) == 7
    assert invocation(app) == before


def test_a_link_in_its_own_folder_leads_root_nowhere(app: Rehearsal) -> None:
    shadow = app.sudo("app-1", "stat -c '%U:%G %a' /etc/shadow; sha256sum < /etc/shadow").stdout
    for name in ("config-production.json", "config-production.json.new"):
        app.sudo("app-1", f"runuser -u application -- ln -sf /etc/shadow {HOME}/config/{name}")
    reapply(app)
    assert app.sudo("app-1", "stat -c '%U:%G %a' /etc/shadow; sha256sum < /etc/shadow").stdout == shadow
    app.sudo("app-1", f"rm {HOME}/config/*.new")


def test_it_comes_back_when_it_crashes_and_after_a_reboot(app: Rehearsal) -> None:
    before = invocation(app)
    app.sudo("app-1", "systemctl kill -s KILL application")
    until_well(app)
    assert invocation(app) != before
    app.reconnect()
    realm = app.realm()
    realm.power.reboot(realm.machine("local-app-1").number)
    until_well(app)
    assert reapply(app) == ""


def until_well(app: Rehearsal) -> None:
    def well() -> bool:
        with suppress(AssertionError):
            return call(app, "/health").status == 200
        return False

    until(well)


def test_without_a_release_all_is_ready_and_nothing_runs(demo: Rehearsal, tmp_path: Path) -> None:
    config = demo.configuration()["application"]
    bare = {key: value for key, value in config.items() if key not in ("release", "command")}
    # The committed stack file names the demo: this is what another one would say.
    set_application(demo, bare)
    assert steps(demo)[APPLY] == "update"
    pulumi_up(demo)
    shown = demo.sudo(
        "app-1",
        f"systemctl list-unit-files application.service --no-legend; ls {HOME} {HOME}/config {HOME}/ssl; "
        "ss -ltn | grep -E ':300[03]'; true",
    ).stdout.split()
    assert "application.service" not in shown
    assert {"config-production.json", "private-key.pem"} <= set(shown)
    assert "current" not in shown
    # A first release that fails leaves nothing behind.
    broken = copy_of_demo(tmp_path / "broken", "import pymysql\n", "import no_such_module\n")
    done = deliver(demo, str(broken), check=False)
    assert "There was none before it: the application is stopped." in done.stdout + done.stderr
    shown = demo.sudo("app-1", f"systemctl is-active application; ls {HOME}; ls {HOME}/config; true").stdout.split()
    assert shown[0] == "inactive"
    assert "current" not in shown
    assert "config-production.json" in shown


def set_application(app: Rehearsal, values: dict[str, Any]) -> None:
    """The whole section, not only some of its keys."""
    app.pulumi("config", "rm", "user-data-security:application")
    app.configure("application", values)


@pytest.mark.nightly("two more stacks, for what rarely differs")
@pytest.mark.parametrize("image", ["debian12", "ubuntu24.04"])
def test_other_systems_run_mend_and_take_back_the_same(fresh: Rehearsal, tmp_path: Path, image: str) -> None:
    # For its stack; the policies may refuse one that lacks a server which this test has no need of.
    fresh.make("preview", check=False)
    fresh.pulumi("config", "set", "image", image)
    fresh.make("up")
    assert call(fresh, "/health").status == 200
    test_the_database_remembers_what_the_application_wrote(fresh)
    test_systemd_has_little_left_to_advise(fresh)
    assert reapply(fresh) == ""
    test_what_was_broken_by_hand_is_mended_and_told(fresh, DAMAGE[0])
    test_a_new_release_takes_over_in_a_moment(fresh, tmp_path)
    test_a_broken_release_is_taken_back_and_says_why(fresh, tmp_path, *BROKEN[0])
