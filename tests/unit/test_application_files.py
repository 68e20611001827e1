"""What an application server gets for the application: configuration, unit, release."""

import base64
import gzip
import http.server
import io
import json
import os
import shlex
import ssl
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from components.application import configuration as config_file
from components.application import delivery, script_data, unit
from components.application.health import ask
from components.application.release import ReleaseError, pack
from tests.unit.program import Program, Secret, plain, run, texts
from tests.unit.support import configuration, settings
from uds import certificates

COMMAND = ("/usr/bin/python3", "server.py")
DEMO = {"application.release": "rehearsal/demo", "application.command": list(COMMAND)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def with_certificate(changes: Mapping[str, object] | None = None) -> dict[str, object]:
    key = certificates.KeyType.P256.new_key()
    certificate = certificates.self_signed(key, certificates.general_names(["application.test"]))
    return {
        "application.certificate": certificate.public_bytes(Encoding.PEM).decode(),
        "application.privateKey": certificates.private_pem(key),
        **(changes or {}),
    }


# Configuration


def test_the_configuration_names_the_database_and_how_to_trust_it() -> None:
    written = json.loads(config_file(settings({"database.port": 3307, "network.cidr": "10.9.0.0/24"})))
    assert written["database"] == {
        "host": "10.9.0.5",
        "port": 3307,
        "name": "production",
        "user": "application",
        "password": configuration()["database"]["password"],
        "caFile": "/usr/local/application/config/database-ca.pem",
    }
    assert written["ports"] == {"http": 3000, "https": 3003}
    assert "tls" not in written


def test_settings_of_ones_own_keep_their_types_and_take_no_others_place() -> None:
    own = {"database": "mine", "debug": False, "limit": 3, "ratio": 0.5, "text": "3"}
    written = json.loads(config_file(settings(with_certificate({"application.settings": own}))))
    assert written["settings"] == own
    assert [type(value) for value in written["settings"].values()] == [str, bool, int, float, str]
    assert written["database"]["user"] == "application"
    assert written["tls"] == {
        "certificateFile": "/usr/local/application/ssl/certificate.pem",
        "keyFile": "/usr/local/application/ssl/private-key.pem",
    }


def test_without_certificate_and_release_the_script_gets_neither() -> None:
    assert set(script_data(settings(), None)) == {"config-production.json", "database-ca.pem"}


def test_a_key_that_waits_for_its_certificate_stays_at_home() -> None:
    waiting = certificates.private_pem(certificates.KeyType.P256.new_key())
    given = settings(with_certificate({"application.pendingPrivateKey": waiting}))
    data = script_data(given, None)
    assert waiting.splitlines()[1] not in "".join(data.values())
    assert data["private-key.pem"].endswith("-----END PRIVATE KEY-----\n")


# Unit


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_runs_the_command_as_the_locked_account_in_its_sandbox() -> None:
    (file,) = unit(COMMAND)
    assert (file.path, file.mode) == ("/etc/systemd/system/application.service", 0o644)
    said = directives(file.content)
    assert said["ExecStart"] == [':"/usr/bin/python3" "server.py"']
    assert said["User"] == said["Group"] == ["application"]
    assert said["WorkingDirectory"] == ["/usr/local/application/current"]
    assert (said["SocketBindDeny"], said["SocketBindAllow"]) == (["any"], ["tcp:3000", "tcp:3003"])
    assert set(said["IPAddressDeny"][0].split()) == {
        "169.254.169.254",
        "fd00:a9fe:a9fe::1",
        "fe80::a9fe:a9fe",
        "fd00:ec2::254",
    }
    assert (said["CapabilityBoundingSet"], said["NoNewPrivileges"]) == ([""], ["yes"])
    # Node and Java compile while they run.
    assert "MemoryDenyWriteExecute" not in said


@pytest.mark.parametrize(
    ("command", "written"),
    [
        (("bin/serve",), '"/usr/local/application/current/bin/serve"'),
        (("/usr/bin/node", "app.js", "--name", "a b"), '"/usr/bin/node" "app.js" "--name" "a b"'),
        (
            ("/bin/x", "100%", 'say "hi"', "back\\slash", "$HOME"),
            r'"/bin/x" "100%%" "say \"hi\"" "back\\slash" "$HOME"',
        ),
        (("/bin/x", "a\nUser=root"), r'"/bin/x" "a\nUser=root"'),
        (("/bin/x", ""), '"/bin/x" ""'),
    ],
)
def test_a_command_reaches_the_program_as_it_was_written(command: tuple[str, ...], written: str) -> None:
    # The colon keeps systemd from filling in variables.
    assert directives(unit(command)[0].content)["ExecStart"] == [f":{written}"]


# Release


def entries(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {member.name: member for member in opened}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "lib" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "server.py").write_text("print()\n")
    (folder / "lib" / "deep" / "data.bin").write_bytes(bytes(range(256)))
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "lib" / "link").symlink_to("../server.py")
    return folder


def test_the_same_content_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, COMMAND)
    os.utime(folder / "server.py", (1, 1))
    (folder / "server.py").chmod(0o600)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "server.pyc").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    assert pack(folder, COMMAND) == first
    # Packed by somebody else, in another order, with owners and times.
    archive = tmp_path / "release.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for name in ("run", "lib/link", "server.py", "empty", "lib/deep/data.bin", "lib", "lib/deep"):
            opened.add(folder / name, f"./{name}", recursive=False)
    assert pack(archive, COMMAND) == first
    (folder / "server.py").write_text("print(1)\n")
    assert pack(folder, COMMAND).digest != first.digest


def test_a_release_is_for_root_and_the_application_alone(folder: Path) -> None:
    (folder / "run").chmod(0o6777)
    packed = entries(pack(folder, COMMAND).archive)
    assert {name: (info.mode, info.type) for name, info in packed.items()} == {
        "empty": (0o750, tarfile.DIRTYPE),
        "lib": (0o750, tarfile.DIRTYPE),
        "lib/deep": (0o750, tarfile.DIRTYPE),
        "lib/deep/data.bin": (0o640, tarfile.REGTYPE),
        "lib/link": (0o777, tarfile.SYMTYPE),
        "run": (0o750, tarfile.REGTYPE),
        "server.py": (0o640, tarfile.REGTYPE),
    }
    assert {(info.uid, info.gid, info.mtime, info.uname) for info in packed.values()} == {(0, 0, 0, "")}


def tarred(*members: tuple[str, dict[str, Any], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for name, fields, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                for field, value in fields.items():
                    setattr(info, field, value)
                archive.addfile(info, io.BytesIO(content))

    return write


def cut(path: Path) -> None:
    tarred(("server.py", {}, os.urandom(5000)))(path)
    path.write_bytes(path.read_bytes()[:2000])


LINK = {"type": tarfile.SYMTYPE}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (tarred(("../escape", {}, b"")), "lies outside of it"),
        (tarred(("/etc/passwd", {}, b"")), "lies outside of it"),
        (tarred(("a/../../escape", {}, b"")), "lies outside of it"),
        (tarred(("link", {**LINK, "linkname": "/etc/passwd"}, b"")), "links that stay in the release"),
        (tarred(("a/link", {**LINK, "linkname": "../../x"}, b"")), "links that stay in the release"),
        (tarred(("device", {"type": tarfile.BLKTYPE}, b"")), "neither a file, a folder nor a link"),
        (tarred(("pipe", {"type": tarfile.FIFOTYPE}, b"")), "neither a file, a folder nor a link"),
        (tarred(), "is empty"),
        (cut, "is not a folder or a whole .tar.gz archive"),
        (lambda path: path.write_bytes(b"no archive"), "is not a folder or a whole .tar.gz archive"),
        (
            lambda path: path.write_bytes(gzip.compress(b"no archive" * 100)),
            "is not a folder or a whole .tar.gz archive",
        ),
        (lambda path: path.mkdir(), "is empty"),
    ],
)
def test_what_must_not_get_to_a_server_is_refused(tmp_path: Path, write: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "bad.tar.gz")
    with pytest.raises(ReleaseError, match=said):
        pack(tmp_path / "bad.tar.gz", COMMAND)


def test_a_hard_link_is_delivered_as_the_file_that_it_is(tmp_path: Path) -> None:
    path = tmp_path / "release.tar.gz"
    tarred(("server.py", {}, b"text"), ("again.py", {"type": tarfile.LNKTYPE, "linkname": "server.py"}, b""))(path)
    packed = entries(pack(path, COMMAND).archive)
    assert (packed["again.py"].type, packed["again.py"].size) == (tarfile.REGTYPE, 4)


def test_a_folder_with_more_than_files_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ReleaseError, match="neither a file, a folder nor a link"):
        pack(folder, COMMAND)


@pytest.mark.parametrize(
    ("program", "said"),
    [("missing", "is not in"), ("lib", "is not in"), ("server.py", "is not executable"), ("../run", "is not in")],
)
def test_a_command_that_the_release_lacks_is_refused(folder: Path, program: str, said: str) -> None:
    with pytest.raises(ReleaseError, match=said):
        pack(folder, (program,))
    for good in ("run", "./run", "lib/../run", "/usr/bin/python3"):
        assert pack(folder, (good,)).archive


# The whole program


def of_app(program: Program) -> dict[str, Any]:
    return {name: resource.inputs for name, resource in program.of("app-1").items()}


def test_a_release_goes_ahead_as_a_file_of_which_the_state_has_the_hash() -> None:
    made = run(configuration(with_certificate(DEMO)))
    upload, apply = of_app(made)["application-release"], of_app(made)["application-apply"]
    name = pack(Path("rehearsal/demo").absolute(), COMMAND).name
    assert upload["remotePath"] == f"/home/deploy/uds-release-{name}.tar"
    # A new machine has none of it.
    assert upload["triggers"] == ["ssh-ed25519 AAAAC3-app-1"]
    # Not as a secret, nor inside the script: a release may be large. Pulumi reads it when the program has ended.
    assert Path(upload["source"]["path"]).name == f"{name}.tar"
    assert Path(upload["source"]["path"]).exists()
    assert isinstance(apply["stdin"], Secret)
    bundle = base64.b64decode(plain(apply["stdin"]).partition("\n")[2])
    assert (Path("rehearsal/demo") / "server.py").read_bytes() not in bundle
    assert made.of("app-1")["application-release"].urn in made.of("app-1")["application-apply"].dependencies
    password = configuration()["database"]["password"]
    assert not any(password in text for resource in made.resources.values() for text in texts(resource.inputs))


def test_a_new_certificate_or_setting_changes_the_applications_script_alone() -> None:
    first = with_certificate({**DEMO, "app.count": 2})
    before = run(configuration(first)).resources
    for change in (with_certificate(), {"application.settings": {"a": 1}}):
        after = run(configuration({**first, **change})).resources
        changed = {name for name in before if before[name].inputs.get("create") != after[name].inputs.get("create")}
        assert changed == {"app-1-application-apply", "app-2-application-apply"}
        assert before.keys() == after.keys()


def test_a_packed_release_stays_for_a_day(cache: Path) -> None:
    first = delivery(settings(with_certificate(DEMO)))
    assert first
    (folder,) = cache.glob("*/releases")
    assert folder.stat().st_mode & 0o777 == 0o700
    for name, age in (("yesterdays.tar", 90_000), ("todays.tar", 80_000)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    assert delivery(settings(with_certificate(DEMO))) == first
    assert {path.name for path in folder.iterdir()} == {"todays.tar", first.file.name}
    assert first.file.read_bytes() == first.release.archive


def test_without_a_release_nothing_is_copied() -> None:
    assert "application-release" not in of_app(run(configuration()))


# Health


@contextmanager
def served(folder: Path, names: tuple[str, ...], status: int) -> Iterator[tuple[int, Path]]:
    key = certificates.KeyType.P256.new_key()
    certificate = certificates.self_signed(key, certificates.general_names(names)).public_bytes(Encoding.PEM)
    both, own = folder / "both.pem", folder / "certificate.pem"
    both.write_bytes(certificate + certificates.private_pem(key).encode())
    own.write_bytes(certificate)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(both)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, own
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "said"), [(200, ""), (302, ""), (404, "status 404"), (503, "status 503")])
def test_health_is_an_answer_below_400(tmp_path: Path, status: int, said: str) -> None:
    with served(tmp_path, ("application.test",), status) as (port, own):
        assert said in ask(port, str(own), "/health")
        assert bool(ask(port, str(own), "/health")) == bool(said)
        # The chain below it changes nothing.
        own.write_text(own.read_text() + own.read_text())
        assert said in ask(port, str(own), "/health")


def test_health_trusts_the_installed_certificate_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with (
        served(tmp_path, ("application.test",), 200) as (port, _),
        served(tmp_path / "other", ("application.test",), 200) as (_, other),
    ):
        assert "certificate verify failed" in ask(port, str(other), "/health")
    assert "refused" in ask(port, str(other), "/health")


def test_the_script_and_the_settings_speak_of_the_same_places() -> None:
    script = (Path(__file__).parents[2] / "components/application/apply.sh").read_text()
    assert "BASE=/usr/local/application" in shlex.split(script, comments=True)
    assert "HTTPS_PORT=3003" in script
    for name in script_data(settings(with_certificate()), None):
        assert f"place {name} " in script
