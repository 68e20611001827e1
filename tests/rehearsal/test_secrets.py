"""Every secret of the stack, looked for wherever it must not be, in every form that it could have there."""

import base64
import gzip
import json
import os
import re
import secrets
import shlex
import stat
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from components.cloud_init import bootstrap_host_key
from rehearsal.machines import Machine
from rehearsal.realm import Realm
from tests.rehearsal.conftest import PASSWORD, Rehearsal, one_stack
from tests.rehearsal.support import Project
from tests.unit.support import ed25519_pair

ADMIN = "carol"
PLANT = "the planted one"

# The cloud keeps user data and so does cloud-init. What may be in it (design: no secret but these two): a hash of 192
# random bits, which can't be guessed, and a host key that proves the server once and then is removed.
IN_USER_DATA = {"deploy.sudoPasswordHash", "bootstrap host key"}


def forms(text: str) -> set[str]:
    """A secret as it could be written somewhere: a line of it, as it is, in a URL, or in base64 at any position."""
    lines = [line for line in text.splitlines() if "-----" not in line and (len(line) >= 40 or line == text)]
    if "OPENSSH PRIVATE KEY" in text:
        # The first line is the same in every such key.
        lines = lines[1:]
    found = set(lines) | {quote(line, safe="") for line in lines}
    for line in lines:
        for shift in range(3):
            # Six bits are a character; those that share theirs with what stands before or behind are left out.
            whole = slice(-(-shift * 8 // 6), (shift + len(line)) * 8 // 6)
            encoded = base64.b64encode(b"\0" * shift + line.encode()).decode()[whole]
            # Encoders break their lines: of a long text, look for both ends.
            found |= {encoded[:24], encoded[-24:]}
    return found


@dataclass
class Secrets:
    """Every secret by name, and a search for all of them at once."""

    texts: Mapping[str, str]
    _names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in self.texts.items():
            self._names |= dict.fromkeys(forms(text), name)
        # Longest first, so that a hash counts as the hash. Eight digits alone are found in many a number.
        longest = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_alone, longest)).encode())

    def found_in(self, data: bytes | str) -> set[str]:
        """The names of those that are in it, or in something compressed in it."""
        raw = data.encode() if isinstance(data, str) else data
        return {self._names[match.decode()] for part in _parts(raw) for match in self._pattern.findall(part)}

    def needles(self) -> tuple[str, str]:
        """For `grep -F -f`, and for `grep -w -F -f`."""
        digits = {form for form in self._names if form.isdigit()}
        return "\n".join(sorted(self._names.keys() - digits)) + "\n", "\n".join(sorted(digits)) + "\n"


def _alone(form: str) -> str:
    return rf"(?<![0-9A-Za-z]){form}(?![0-9A-Za-z])" if form.isdigit() else re.escape(form)


def _parts(data: bytes) -> Iterator[bytes]:
    yield data
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    # Archives in base64, also with their lines in JSON, and compressed or not.
    for packed in re.findall(rb"(?:^|\\+n|[^A-Za-z0-9+/\\])((?:[A-Za-z0-9+/]{60,}(?:\n|\\+n)*)+[A-Za-z0-9+/=]*)", data):
        text = re.sub(rb"\\+n|\n", b"", packed).rstrip(b"=")
        content = base64.b64decode(text[: len(text) // 4 * 4])
        yield content
        if content.startswith(b"\x1f\x8b"):
            with suppress(zlib.error):
                yield zlib.decompressobj(31).decompress(content)


@dataclass
class Processes:
    """What can be seen of the processes of this host, the machines' among them, again and again."""

    seen: set[bytes] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Processes":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for number in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - a Path for each would be slow
                for name in ("cmdline", "environ"):
                    # Processes end while we look, and some are nobody's to look into.
                    with suppress(OSError), open(f"/proc/{number}/{name}", "rb") as file:  # noqa: PTH123 - likewise
                        self.seen.add(file.read())


@dataclass
class Evidence:
    """The stack after a run that changed everything that holds a secret, and what was seen of that run."""

    up: Rehearsal
    realm: Realm
    secrets: Secrets
    run: str
    processes: set[bytes]


@pytest.fixture(scope="module")
def evidence(up: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "key.pub").write_text(ed25519_pair()[1])
    planted, realm = secrets.token_urlsafe(24), up.realm()
    # A change of a hardened file makes the hardening run again, beside the accounts.
    project = Project.copied(folder / "project")
    with (project.folder / "cloud-init/files/etc/issue").open("a") as issue:
        issue.write("Changed.\n")
    try:
        with Processes() as processes:
            key = str(folder / "key.pub")
            up.uds("admin", "add", up.name, ADMIN, "--key", key, "--password-stdin", stdin=f"{PASSWORD}\n")
            done = project.drive("up", up.name, environment=up.environment)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "-hardening-apply updat" in done.stdout
            assert "-accounts-apply updat" in done.stdout
            up.uds("ssh", up.name, "db-1", "--sudo", "--", "true")
            for machine in realm.machines():
                plant(realm, machine, planted)
        yield Evidence(up, realm, known(up, planted), done.stdout + done.stderr, processes.seen)
    finally:
        for machine in realm.machines():
            realm.power.exec(machine.number, ["rm", "-f", "/usr/share/planted"])
        up.uds("admin", "remove", up.name, ADMIN)
        up.make("up")


def plant(realm: Realm, machine: Machine, planted: str) -> None:
    """Something for every search inside a machine to find: a process, a line of the journal and a file."""
    for command in (
        ["env", f"PLANTED=env-{planted}", "sleep", "0.5"],
        ["timeout", "5", "sh", "-c", "sleep 0.5", f"argument-{planted}"],
        ["logger", f"planted: {planted}"],
        ["sh", "-c", f"echo {base64.b64encode(f'x{planted}'.encode()).decode()} > /usr/share/planted"],
    ):
        done = realm.power.exec(machine.number, command)
        assert done.returncode == 0, done.stderr


def known(up: Rehearsal, planted: str) -> Secrets:
    stack = up.stack()
    deploy, admin = stack.section("deploy"), stack.section("admins")[ADMIN]
    texts = {f"deploy.{key}": value for key, value in deploy.items() if key != "publicKey"}
    assert set(texts) == {
        f"deploy.{key}" for key in ("privateKey", "sudoPassword", "sudoPasswordHash", "bootstrapSeed")
    }
    texts |= {"admin.passwordHash": admin["passwordHash"], "admin.totpSecret": admin["totpSecret"]}
    texts |= {f"admin.scratchCodes[{number}]": code for number, code in enumerate(admin["scratchCodes"])}
    texts |= {"admin's password": PASSWORD, "passphrase": (up.workspace / "passphrase").read_text(), PLANT: planted}
    for server in ("app-1", "db-1"):
        key = bootstrap_host_key(deploy["bootstrapSeed"], server)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
        texts[f"bootstrap host key of {server}"] = pem
    return Secrets(texts)


def without_servers(names: set[str]) -> set[str]:
    return {name.partition(" of ")[0] for name in names}


def test_the_search_finds_a_secret_in_every_form() -> None:
    private = ed25519_pair()[0]
    both = Secrets({"key": private, "word": "sk-Tr0ub4dor&3", "code": "12345678"})
    for text in ("sk-Tr0ub4dor&3", private):
        name = both.found_in(text)
        assert len(name) == 1
        for shift in range(3):
            padded = b"x" * shift + text.encode() + b"yy"
            assert both.found_in(base64.b64encode(padded)) == name
            assert both.found_in(base64.encodebytes(padded)) == name
        assert both.found_in(quote(text, safe="")) == name
        assert both.found_in(json.dumps({"value": text})) == name
        packed = gzip.compress(b"a: " + text.encode() + os.urandom(64))
        assert both.found_in(packed) == name
        for archive in (packed, b"a" * 40 + text.encode() + bytes(64)):
            assert both.found_in(json.dumps({"stdin": f"\n{base64.encodebytes(archive).decode()}"})) == name
    assert both.found_in("code 12345678.") == {"code"}
    assert both.found_in("size 9123456780 sha 0a12345678") == set()
    assert both.found_in(ed25519_pair()[0]) == set()


def test_no_secret_is_in_the_state(evidence: Evidence) -> None:
    exported = evidence.up.pulumi("stack", "export")
    assert evidence.secrets.found_in(exported) == set()
    # The same search of the same state, when Pulumi opens it.
    opened = evidence.secrets.found_in(evidence.up.pulumi("stack", "export", "--show-secrets"))
    assert opened >= {"deploy.privateKey", "deploy.sudoPassword", "admin.totpSecret", "admin.passwordHash"}


def test_no_secret_is_in_the_backends_files(evidence: Evidence) -> None:
    files = [path for path in (evidence.up.workspace / "state").rglob("*") if path.is_file()]
    # The state, those before it, and what Pulumi tells of each run.
    assert {"stacks", "history", "backups"} <= {part for path in files for part in path.parts}
    assert {str(path): found for path in files if (found := evidence.secrets.found_in(path.read_bytes()))} == {}


def test_the_workspace_has_secrets_where_they_belong(evidence: Evidence) -> None:
    workspace = evidence.up.workspace
    assert stat.S_IMODE(workspace.stat().st_mode) == 0o700
    where = {}
    for path in workspace.rglob("*"):
        if not path.is_symlink() and path.is_file() and (found := evidence.secrets.found_in(path.read_bytes())):
            where[str(path.relative_to(workspace))] = without_servers(found)
            assert not path.stat().st_mode & 0o077, f"{path} can be read by others"
    seeds = {f"cloud/seeds/{machine.number}/user-data": IN_USER_DATA for machine in evidence.realm.machines()}
    assert where == {"passphrase": {"passphrase"}, **seeds}


def test_user_data_has_nothing_but_what_it_may(evidence: Evidence) -> None:
    for machine in evidence.realm.machines():
        data = (evidence.realm.store.folder / "seeds" / str(machine.number) / "user-data").read_bytes()
        server = machine.label.removeprefix(evidence.up.label(""))
        # The other server's host key is none of its business.
        assert evidence.secrets.found_in(data) == {"deploy.sudoPasswordHash", f"bootstrap host key of {server}"}


def test_no_secret_is_in_a_command_line_or_an_environment(evidence: Evidence) -> None:
    leaks = [seen for seen in evidence.processes if evidence.secrets.found_in(seen) - {PLANT}]
    assert leaks == []
    planted = b"\n".join(seen for seen in evidence.processes if evidence.secrets.found_in(seen) == {PLANT})
    assert b"PLANTED=env-" in planted
    assert b"argument-" in planted
    # The run was really watched: its own command, on both sides.
    everything = b"\n".join(evidence.processes)
    for words in (b"bash\0./apply", b"sudo\0-k\0-S", b"pulumi\0up", b"ssh-agent\0-D"):
        assert words in everything, words


def test_no_secret_is_printed(evidence: Evidence) -> None:
    assert evidence.secrets.found_in(evidence.run) == set()


def test_podman_knows_no_secret(evidence: Evidence) -> None:
    names = [evidence.realm.network.namespace(machine.number) for machine in evidence.realm.machines()]
    assert evidence.secrets.found_in(evidence.realm.power.podman("inspect", *names).stdout) == set()


# Where a server's own secrets lie, for root alone, beside cloud-init's copies of the user data.
CLOUD_INITS = ("/run/cloud-init/", "/var/lib/cloud/")
ON_DISK = {
    "/etc/shadow": {"deploy.sudoPasswordHash", "admin.passwordHash"},
    # Its last version, of before the admin came.
    "/etc/shadow-": {"deploy.sudoPasswordHash"},
    f"/var/lib/google-authenticator/{ADMIN}": {"admin.totpSecret", *(f"admin.scratchCodes[{n}]" for n in range(5))},
    "/usr/share/planted": {PLANT},
}


@one_stack("what a server does with its user data and files is the same on every cloud")
@pytest.mark.parametrize("server", ["app-1", "db-1"])
def test_a_server_has_secrets_where_they_belong(evidence: Evidence, server: str) -> None:
    where = on_disk(evidence, evidence.up.machine(server))
    assert {path for path, (mode, _) in where.items() if mode & 0o007} == {"/usr/share/planted"}
    copies = {path: names for path, (_, names) in where.items() if path.startswith(CLOUD_INITS)}
    assert set().union(*copies.values()) == {"deploy.sudoPasswordHash", f"bootstrap host key of {server}"}
    others = {path: names for path, (_, names) in where.items() if path not in copies}
    [journal] = {path for path in others if path.startswith("/var/log/journal/")}
    assert others == {**ON_DISK, journal: {PLANT}}


@one_stack("what a server does with its user data and files is the same on every cloud")
@pytest.mark.parametrize("server", ["app-1", "db-1"])
def test_no_secret_is_in_a_servers_journal(evidence: Evidence, server: str) -> None:
    machine = evidence.up.machine(server)
    # Everything since the first boot, with all fields, in one line each.
    journal = evidence.realm.power.exec(machine.number, ["journalctl", "--all", "--output=json"]).stdout
    assert "cloud-init" in journal
    assert "sudo" in journal
    assert evidence.secrets.found_in(journal) == {PLANT}


def on_disk(evidence: Evidence, machine: Machine) -> dict[str, tuple[int, set[str]]]:
    """The files of a machine that hold a secret: their permissions, and which ones."""
    plain, digits = evidence.secrets.needles()
    script = (
        "umask 077; cd $(mktemp -d /run/needles.XXXX); trap 'rm -rf $PWD' EXIT\n"
        f"printf %s {shlex.quote(plain)} > plain; printf %s {shlex.quote(digits)} > digits\n"
        "everywhere='/ /run /tmp /dev/shm'\n"
        'find $everywhere -xdev -path "$PWD" -prune -o -type f -exec grep -laFf plain {} + > found\n'
        'find $everywhere -xdev -path "$PWD" -prune -o -type f -exec grep -lawFf digits {} + >> found\n'
        'sort -u found | while read -r path; do stat -c "%a" "$path"; echo "$path"; base64 -w 0 "$path"; echo; done\n'
    )
    done = evidence.realm.power.exec(machine.number, ["bash", "-s"], stdin=script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {
        path: (int(mode, 8), evidence.secrets.found_in(base64.b64decode(content)))
        for mode, path, content in zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    }
