"""Work on a server: the bundle, and the very command that unpacks and runs it, with stand-ins for sudo and /."""

import io
import os
import re
import socket
import stat
import subprocess
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pulumi
import pytest

from components import remote
from components.files import ServerFile
from components.remote import Login, RemoteScript, bundle, connection, wait_for_ssh
from tests.unit.program import plain, run
from tests.unit.support import configuration

LOGIN = Login(private_key="the key", sudo_password="the password")
FILES = [ServerFile("/etc/a.conf", 0o644, "a\n"), ServerFile("/usr/local/sbin/b", 0o755, "b\n")]


# The bundle


def test_the_same_contents_give_the_same_bytes() -> None:
    first = bundle("work", "true\n", FILES, {"one": "1", "two": "2"})
    assert bundle("work", "true\n", FILES[::-1], {"two": "2", "one": "1"}) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert {member.mtime for member in archive} == {0}
    assert bundle("work", "true\n", FILES, {"one": "1", "two": "3"}) != first
    assert bundle("work", "false\n", FILES, {"one": "1", "two": "2"}) != first


def test_a_bundle_holds_script_files_and_data_with_their_modes() -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle("work", "echo hi\n", FILES, {"secret": "päss"})), mode="r") as archive:
        found = {member.name: (member.mode, archive.extractfile(member)) for member in archive}
        assert {name: mode for name, (mode, _) in found.items()} == {
            "apply": 0o700,
            "data/secret": 0o600,
            "files/etc/a.conf": 0o644,
            "files/usr/local/sbin/b": 0o755,
            "name": 0o600,
        }
        texts = {name: stream.read().decode() for name, (_, stream) in found.items() if stream}
    assert texts["apply"] == remote.PRELUDE.read_text() + "echo hi\n"
    assert (texts["data/secret"], texts["files/etc/a.conf"]) == ("päss", "a\n")


# The command


@dataclass(frozen=True)
class Server:
    """A folder that stands for a server, and the ways of a user who may use sudo on it."""

    root: Path

    def apply(
        self, script: str, files: list[ServerFile] | None = None, data: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run what Pulumi would run, with what it would hand over."""

        def main() -> None:
            RemoteScript(
                "work",
                connection=connection("198.51.100.1", "ssh-ed25519 AAAA", LOGIN),
                login=LOGIN,
                script=script,
                files=files or [],
                data=data,
            )

        inputs = plain(run({}, main=main).resources["work-apply"].inputs)
        command, places = re.subn(r"/run/", f"{self.root}/run/", inputs["create"])
        assert places == 2
        return subprocess.run(
            ["sh", "-c", command],
            input=inputs["stdin"],
            env={"PATH": f"{self.root}/bin:{os.environ['PATH']}", "SEEN": str(self.root / "seen")},
            capture_output=True,
            text=True,
            check=False,
        )

    def seen(self, what: str) -> str:
        """What sudo was given."""
        return (self.root / "seen" / what).read_text()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    for folder in ("bin", "run/lock", "seen", "root"):
        (tmp_path / folder).mkdir(parents=True)
    sudo = tmp_path / "bin" / "sudo"
    sudo.write_text(
        "#!/bin/bash\n"
        'IFS= read -r password; printf %s "$password" > "$SEEN/password"\n'
        'printf "%s\\n" "$@" > "$SEEN/arguments"\n'
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'
    )
    sudo.chmod(0o755)
    # The same prelude, for another / and for a user who isn't root. Without all of it, nothing is run.
    prelude = remote.PRELUDE.read_text()
    for found, instead in (
        ("target=/$", f"target={tmp_path}/root/$"),
        ("file=/$", f"file={tmp_path}/root/$"),
        ("=/var/lib/uds/", f"={tmp_path}/state/"),
        ("-o root -g root ", ""),
        ("$mode root", "$mode $(id -un)"),
    ):
        assert prelude.count(found) == 1
        prelude = prelude.replace(found, instead)
    monkeypatch.setattr(remote, "PRELUDE", tmp_path / "remote.sh")
    remote.PRELUDE.write_text(prelude)
    return Server(tmp_path)


def test_a_script_runs_beside_its_files_and_data(server: Server) -> None:
    done = server.apply("cat files/etc/a.conf data/name\n", FILES, {"name": "value\n"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\nvalue\n", "")


def test_sudo_always_asks_and_gets_the_password_first(server: Server) -> None:
    assert server.apply("true\n").returncode == 0
    assert server.seen("password") == LOGIN.sudo_password
    # -k: whatever sudo remembers, the line is read; -S: from standard input.
    assert server.seen("arguments").splitlines()[:4] == ["-k", "-S", "-p", ""]
    assert LOGIN.sudo_password not in server.seen("arguments")


def test_a_script_has_no_input_that_a_program_could_swallow(server: Server) -> None:
    assert server.apply("[ /dev/stdin -ef /dev/null ] && echo closed\n").stdout == "closed\n"


@pytest.mark.parametrize(
    ("script", "status", "output"),
    [
        ("echo one\nexit 7\necho two\n", 7, "one\n"),
        ("echo one\nfalse\necho two\n", 1, "one\n"),
        ("false | true\necho two\n", 1, ""),
        ('echo "$nothing"\necho two\n', 1, ""),
    ],
    ids=["exit", "failure", "failure in a pipe", "unset variable"],
)
def test_a_script_stops_at_its_first_failure_and_says_so(server: Server, script: str, status: int, output: str) -> None:
    done = server.apply(script)
    assert (done.returncode, done.stdout) == (status, output)


@pytest.mark.parametrize("script", ["true\n", "exit 1\n"])
def test_nothing_is_left_behind(server: Server, script: str) -> None:
    server.apply(script, FILES, {"secret": "s"})
    assert [path.name for path in (server.root / "run").iterdir()] == ["lock"]


def test_nobody_else_can_read_what_is_unpacked(server: Server) -> None:
    done = server.apply("stat -c %a . data data/secret\ntouch new\nstat -c %a new\n", [], {"secret": "s"})
    assert done.stdout.split() == ["700", "700", "600", "600"]


def test_the_command_is_short_lined_and_readable_by_any_shell() -> None:
    def main() -> None:
        RemoteScript(
            "work",
            connection=connection("198.51.100.1", "ssh-ed25519 AAAA", LOGIN),
            login=LOGIN,
            script="#" * 500_000,
            data={"noise": os.urandom(200_000).hex()},
        )

    inputs = plain(run({}, main=main).resources["work-apply"].inputs)
    assert max(len(line) for line in inputs["stdin"].splitlines()) <= 76
    assert subprocess.run(["sh", "-n", "-c", inputs["create"]], check=False).returncode == 0


# install_files


def installed(server: Server) -> dict[str, tuple[int, str]]:
    root = server.root / "root"
    files = [path for path in root.rglob("*") if path.is_file()]
    return {"/" + str(path.relative_to(root)): (stat.S_IMODE(path.stat().st_mode), path.read_text()) for path in files}


def test_files_are_installed_once_and_mended_when_they_drift(server: Server) -> None:
    def changes() -> list[str]:
        done = server.apply("install_files\n", FILES)
        assert (done.returncode, done.stderr) == (0, "")
        return [line.removeprefix("changed: ").removeprefix(f"{server.root}/root") for line in done.stdout.splitlines()]

    whole = {"/etc/a.conf": (0o644, "a\n"), "/usr/local/sbin/b": (0o755, "b\n")}
    assert changes() == list(whole)
    assert installed(server) == whole
    assert changes() == []

    (server.root / "root/etc/a.conf").write_text("drifted\n")
    (server.root / "root/usr/local/sbin/b").chmod(0o777)
    assert changes() == list(whole)
    assert installed(server) == whole

    (server.root / "root/etc/a.conf").unlink()
    assert changes() == ["/etc/a.conf"]
    assert installed(server) == whole
    # The script's own umask doesn't close folders that others need.
    assert stat.S_IMODE((server.root / "root/usr/local").stat().st_mode) == 0o755


def test_what_is_there_in_the_end_is_remembered_for_monit(server: Server) -> None:
    server.apply(f"install_files\necho other > {server.root}/root/etc/a.conf\nrecord_files\n", FILES)
    sums = (server.root / "state/checksums/work").read_text()
    assert subprocess.run(["sha256sum", "--check", "-"], input=sums, text=True, capture_output=True, check=True)
    assert [line.partition("/root")[2] for line in sums.splitlines()] == ["/etc/a.conf", "/usr/local/sbin/b"]
    server.apply("record_files\n")
    assert (server.root / "state/checksums/work").read_text() == ""


def test_a_file_that_others_read_is_never_there_by_half(server: Server) -> None:
    server.apply("install_files\n", FILES)
    before = (server.root / "root/etc/a.conf").stat().st_ino
    changed = [ServerFile("/etc/a.conf", 0o600, "new\n")]
    server.apply("install_files\n", changed)
    # Another file under the same name: whoever has the old one open still reads all of it.
    assert (server.root / "root/etc/a.conf").stat().st_ino != before
    assert installed(server)["/etc/a.conf"] == (0o600, "new\n")


# Waiting for a private server


def test_a_server_counts_as_reachable_when_sshd_greets() -> None:
    def main() -> None:
        machine = pulumi.CustomResource("test:index:Machine", "machine", {})
        stack = pulumi.runtime.get_root_resource()
        assert stack
        wait_for_ssh("db-1", "127.0.0.1", connection("198.51.100.1", "ssh-ed25519 AAAA", LOGIN), machine, stack)

    command = run(configuration(), main=main).resources["db-1-reachable"].inputs["create"]
    answers = [b"", b"HTTP/1.0 400\r\n", b"SSH-2.0-OpenSSH_10.0\r\n"]
    given = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                client, _ = listener.accept()
                with client:
                    client.sendall(answer)
                given.append(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        asked = command.replace("/dev/tcp/127.0.0.1/22", f"/dev/tcp/127.0.0.1/{listener.getsockname()[1]}")
        assert asked != command
        done = subprocess.run(["sh", "-c", asked], capture_output=True, timeout=20, check=False)
        thread.join(timeout=5)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert given == answers
