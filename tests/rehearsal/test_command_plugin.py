"""The command plugin and the language host with a real Pulumi and a real sshd on the loopback interface.

The life cycle and the error texts asserted here are those of the real plugin, as measured with its version 1.2.1.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rehearsal import image, podman, toolchain
from tests.rehearsal.support import until

# The program takes its resources from a file, so that a test changes one input at a time.
PROGRAM = """
import json, os, pathlib
import pulumi
from pulumi_command import local, remote

wanted = json.loads(pathlib.Path(os.environ["UDS_REHEARSAL"], "wanted.json").read_text())
if "exit" in wanted:
    raise SystemExit(wanted["exit"])
if "stdin" in wanted.get("remote", {}):
    wanted["remote"]["stdin"] = pulumi.Output.secret(wanted["remote"]["stdin"])
if "remote" in wanted:
    options = pulumi.ResourceOptions(additional_secret_outputs=wanted.get("secretOutputs"))
    command = remote.Command("remote", opts=options, **wanted["remote"])
    pulumi.export("stdout", command.stdout)
if "local" in wanted:
    pulumi.export("local", local.Command("local", **wanted["local"]).stdout)
if "copy" in wanted:
    source = pulumi.FileArchive(wanted["copy"].pop("folder"))
    remote.CopyToRemote("copy", source=source, **wanted["copy"])
"""


@dataclass(frozen=True)
class Server:
    """A running sshd that lets root in."""

    port: int
    host_key: str
    key: str
    log: Path

    def connection(self, **changes: object) -> dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "root",
            "private_key": self.key,
            "host_key": self.host_key,
            "dial_error_limit": 1,
        } | changes


@dataclass
class Stack:
    """A stack in a directory of its own."""

    directory: Path
    wanted: dict[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        environment = os.environ | {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "PULUMI_BACKEND_URL": f"file://{self.directory / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "not a secret",
            "PULUMI_SKIP_UPDATE_CHECK": "1",
            "UDS_REHEARSAL": str(self.directory),
        }
        environment.pop("SSH_AUTH_SOCK", None)
        return environment

    def pulumi(self, *arguments: str, fails: bool = False) -> str:
        """Run pulumi and return what it prints."""
        (self.directory / "wanted.json").write_text(json.dumps(self.wanted))
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive", "--color=never"],
            cwd=self.directory,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def up(self, *arguments: str, fails: bool = False) -> str:
        return self.pulumi("up", "--yes", "--skip-preview", "--suppress-progress", *arguments, fails=fails)

    def state(self) -> str:
        return self.pulumi("stack", "export")

    def output(self, name: str) -> str:
        return self.pulumi("stack", "output", name).strip()


@pytest.fixture(scope="module")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bin")
    toolchain.ensure(directory, print)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", directory / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (directory / "authorized_keys").write_text((directory / "user.pub").read_text())
    log = directory / "log"
    (directory / "config").write_text(
        f"""
        ListenAddress 127.0.0.1:{port}
        HostKey {directory}/host
        AuthorizedKeysFile {directory}/authorized_keys
        PidFile none
        StrictModes no
        UsePAM no
        AcceptEnv GREETING PULUMI_COMMAND_STDOUT
        Subsystem sftp internal-sftp
        LogLevel VERBOSE
        """
    )
    # The stock image's sshd: the host of a rehearsal need not have one, and installing it would start a service.
    shared = tmp_path_factory.getbasetemp()
    name = image.ensure(image.DEFAULT_IMAGE, print)
    sshd = f"mkdir -p /run/sshd; exec /usr/sbin/sshd -D -f {directory}/config -E {log}"
    options = ["--rm", "--network=host", f"--volume={shared}:{shared}", *podman.run_options()]
    process = subprocess.Popen(
        ["podman", *podman.global_options(), "run", *options, "--systemd=false", name, "sh", "-c", sshd]
    )
    try:
        for _ in range(400):
            if log.exists() and "Server listening" in log.read_text():
                break
            time.sleep(0.05)
        yield Server(port, (directory / "host.pub").read_text().strip(), (directory / "user").read_text(), log)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def stack(tmp_path: Path, bin_dir: Path) -> Stack:
    (tmp_path / "bin").symlink_to(bin_dir)
    (tmp_path / "state").mkdir()
    program = tmp_path / "program"
    program.mkdir()
    (program / "__main__.py").write_text(PROGRAM)
    (tmp_path / "Pulumi.yaml").write_text(f"name: trial\nruntime: python\nmain: {program}\n")
    result = Stack(tmp_path)
    result.pulumi("stack", "init", "local")
    return result


def test_life_cycle_of_a_remote_command(stack: Stack, server: Server, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    stack.wanted["remote"] = {
        "connection": server.connection(),
        "create": f"echo create >> {ran}; echo out; echo err >&2",
    }

    assert "create" in stack.pulumi("preview")
    assert not ran.exists(), "a preview must run nothing"
    stack.up()
    assert stack.output("stdout") == "out"
    assert '"stderr": "err"' in stack.state()

    stack.up("--expect-no-changes")
    stack.pulumi("refresh", "--yes", "--expect-no-changes")
    assert ran.read_text().split() == ["create"]

    stack.wanted["remote"]["logging"] = "none"  # any input but triggers, and no update command: create runs again
    assert "1 updated" in stack.up()
    assert ran.read_text().split() == ["create", "create"]

    stack.wanted["remote"]["update"] = f"echo update >> {ran}; echo was $PULUMI_COMMAND_STDOUT"
    assert "1 updated" in stack.up()
    assert ran.read_text().split() == ["create", "create", "update"]
    assert stack.output("stdout") == "was out"

    stack.wanted["remote"]["delete"] = f"echo delete >> {ran}"
    stack.up()
    stack.wanted["remote"]["triggers"] = [1]  # replaces even with an update command: first create, then delete
    assert "1 replaced" in stack.up()
    assert ran.read_text().split()[-2:] == ["create", "delete"]

    stack.pulumi("destroy", "--yes", "--skip-preview")
    assert ran.read_text().split()[-1] == "delete"


def test_a_failure_shows_command_and_output_and_saves_nothing(stack: Stack, server: Server) -> None:
    command = "echo one; echo two >&2; exit 7"
    stack.wanted["remote"] = {"connection": server.connection(), "create": command, "logging": "none"}

    shown = stack.up(fails=True)

    assert f'Process exited with status 7: running "{command}":' in shown
    assert "one" in shown
    assert "two" in shown
    assert "command:remote:Command" not in stack.state()


def test_secrets_stay_encrypted_in_the_state(stack: Stack, server: Server) -> None:
    stack.wanted["remote"] = {
        "connection": server.connection(),
        "create": "tr a-z A-Z",
        "stdin": "correct horse",
        "logging": "none",
    }
    shown = stack.up()
    state = stack.state()
    assert "correct horse" not in state
    assert "OPENSSH PRIVATE KEY" not in state
    # As with the real plugin, what a command prints is no secret by itself, even if its input is.
    assert "CORRECT HORSE" in state

    stack.wanted["secretOutputs"] = ["stdout", "stderr"]
    stack.wanted["remote"]["stdin"] = "battery staple"
    shown += stack.up()
    state = stack.state()
    assert "BATTERY STAPLE" not in state
    assert "battery staple" not in state + shown

    stack.wanted["remote"]["connection"] = server.connection(private_key="-----BEGIN NOTHING-----", port=1)
    shown = stack.pulumi("preview", "--diff")
    assert "connection" in shown
    assert "BEGIN" not in shown


def test_the_host_key_is_pinned(stack: Stack, server: Server, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    other = (tmp_path / "other.pub").read_text()
    stack.wanted["remote"] = {"connection": server.connection(host_key=other), "create": "true"}

    shown = stack.up(fails=True)

    assert "after 1 failed attempts: ssh: handshake failed: ssh: host key mismatch" in shown


def test_only_the_pinned_keys_algorithm_is_offered(stack: Stack, server: Server, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "other"], check=True)
    other = (tmp_path / "other.pub").read_text()
    stack.wanted["remote"] = {"connection": server.connection(host_key=other), "create": "true"}

    assert "no common algorithm for host key" in stack.up(fails=True)


def test_a_refused_connection_is_tried_again(stack: Stack, server: Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but it does not listen
        port = closed.getsockname()[1]
        stack.wanted["remote"] = {
            "connection": server.connection(port=port, dial_error_limit=3),
            "create": "true",
        }
        assert f"after 3 failed attempts: dial tcp 127.0.0.1:{port}: connect: connection refused" in stack.up(
            fails=True
        )


def test_through_a_bastion(stack: Stack, server: Server, tmp_path: Path) -> None:
    connection = server.connection(proxy=server.connection())
    stack.wanted["remote"] = {"connection": connection, "create": "echo $SSH_CONNECTION"}
    stack.up()
    assert stack.output("stdout").endswith(str(server.port))

    # The target's handshake is tried once, whatever the limit is.
    refused = "Connection closed by authenticating user"
    before = server.log.read_text().count(refused)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger"], check=True)
    stranger = (tmp_path / "stranger").read_text()
    stack.wanted["remote"]["connection"] = server.connection(
        proxy=server.connection(), private_key=stranger, dial_error_limit=5
    )
    shown = stack.up(fails=True)
    assert "proxy: after" in shown
    assert "ssh: handshake failed" in shown
    assert server.log.read_text().count(refused) == before + 1

    stack.wanted["remote"]["connection"] = server.connection(proxy=server.connection(host_key=server.host_key[:-8]))
    assert "proxy: failed to parse host key" in stack.up(fails=True)


def test_an_agent_is_asked_when_there_is_no_key(stack: Stack, server: Server) -> None:
    # The name of a socket may be about 100 characters long, which the test's own folder may exceed.
    with tempfile.TemporaryDirectory() as directory:
        agent = f"{directory}/agent"
        process = subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL)
        try:
            while not Path(agent).exists():
                time.sleep(0.02)
            subprocess.run(
                ["ssh-add", "-q", "-"],
                env=os.environ | {"SSH_AUTH_SOCK": agent},
                input=server.key,
                text=True,
                check=True,
            )
            stack.wanted["remote"] = {
                "connection": server.connection(private_key=None, agent_socket_path=agent),
                "create": "echo in",
            }
            stack.up()
            assert stack.output("stdout") == "in"
        finally:
            process.terminate()
            process.wait()

    stack.wanted["remote"]["create"] = "true"
    assert f"dial unix {agent}: connect: no such file or directory" in stack.up(fails=True)


def test_environment_needs_the_servers_consent(stack: Stack, server: Server) -> None:
    stack.wanted["remote"] = {
        "connection": server.connection(),
        "create": "echo $GREETING",
        "environment": {"GREETING": "hello"},
    }
    stack.up()
    assert stack.output("stdout") == "hello"

    stack.wanted["remote"]["environment"] = {"OTHER": "x"}
    assert 'could not set environment variable "OTHER": ssh: setenv failed' in stack.up(fails=True)


def test_a_very_long_line_is_shown_and_does_not_hang(stack: Stack, server: Server) -> None:
    stack.wanted["remote"] = {"connection": server.connection(), "create": "head -c 70000 /dev/zero | tr '\\0' x"}
    shown = stack.up()
    assert "x" * 70000 in shown


def test_unknown_inputs_are_refused_before_anything_runs(stack: Stack, server: Server) -> None:
    stack.wanted["remote"] = {"connection": server.connection(hostkey="x"), "create": "true"}
    assert 'Unrecognized field "connection.hostkey"' in stack.pulumi("preview", fails=True)


def test_copy_to_remote(stack: Stack, server: Server, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_text("one")
    destination = tmp_path / "destination"
    stack.wanted["copy"] = {
        "connection": server.connection(),
        "folder": f"{source}/",
        "remote_path": str(destination),
    }
    stack.up()
    assert (destination / "deep" / "er" / "file").read_text() == "one"
    stack.up("--expect-no-changes")

    (source / "deep" / "er" / "file").write_text("two")
    assert "1 updated" in stack.up()
    assert (destination / "deep" / "er" / "file").read_text() == "two"


def test_local_command(stack: Stack) -> None:
    stack.wanted["local"] = {"create": "cat; echo $NAME", "stdin": "in\n", "environment": {"NAME": "value"}}
    stack.up()
    assert stack.output("local") == "in\nvalue"


def test_a_programs_own_message_is_shown_without_a_traceback(stack: Stack) -> None:
    stack.wanted["exit"] = "trial:size is 'huge', but must be small or large"
    shown = stack.pulumi("preview", fails=True)
    assert "error: trial:size is 'huge', but must be small or large" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_update_leaves_no_process(stack: Stack, server: Server, number: signal.Signals) -> None:
    stack.wanted["remote"] = {"connection": server.connection(), "create": "echo started; sleep 60"}
    (stack.directory / "wanted.json").write_text(json.dumps(stack.wanted))
    update = subprocess.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--non-interactive"],
        cwd=stack.directory,
        env=stack.environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert update.stdout is not None
    shown = ""
    while "started" not in shown:
        shown += update.stdout.readline()

    update.send_signal(number)
    shown += update.communicate(timeout=120)[0]

    assert "Traceback" not in shown
    until(lambda: not _processes_with(f"UDS_REHEARSAL={stack.directory}"))


def _processes_with(variable: str) -> list[str]:
    """Return the command lines of the processes that have a variable in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile, or it is another user's
            continue
    return found
