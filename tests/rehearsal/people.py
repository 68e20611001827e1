"""People who log in, and their two clients: paramiko, to look closely, and OpenSSH's own, which people use."""

import base64
import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import paramiko
import pyotp

from rehearsal.realm import Bystander
from tests.rehearsal.conftest import PASSWORD, Rehearsal
from tests.rehearsal.support import until
from uds import ssh

METADATA = ("169.254.169.254", "fd00:a9fe:a9fe::1")
"""Where a cloud tells its servers about themselves."""

Runner = Sequence[str]
"""What a client's command line starts with, such as `ip netns exec NAME`."""

_LISTENER = """
import socket, sys
with socket.create_server((sys.argv[1], 80), family=int(sys.argv[2])) as server:
    while True:
        server.accept()[0].close()
"""

# OpenSSH asks this for what a person would type: the next line of a file, and nothing when there is none left.
_ASKPASS = """#!/bin/sh
sed -n 1p {answers}
sed -i 1d {answers}
echo "$1" >> {prompts}
"""


@dataclass(frozen=True)
class Person:
    """An account with what its owner has: a key file, and, if enrolled, an authenticator and scratch codes."""

    name: str
    key: Path
    secret: str = ""
    scratch: tuple[str, ...] = ()
    password: str = PASSWORD

    def code(self, step: int = 0) -> str:
        """The code of now (0) or of the next half minute (1). Both are good for the next 30 s, and each works once."""
        return pyotp.TOTP(self.secret).at(datetime.now(UTC), counter_offset=step)


@dataclass(frozen=True)
class Door:
    """A server's sshd: where it is, and the key that it must have."""

    address: str
    host_key: str


@dataclass(frozen=True)
class Answer:
    """What OpenSSH's client said, and what it had asked its user."""

    status: int
    out: str
    err: str
    prompts: tuple[str, ...]


def door(up: Rehearsal, server: str, address: str = "") -> Door:
    facts = up.outputs()["servers"][server]
    public = ssh.address(facts)
    return Door(address or public, facts["hostKey"])


def new_key(folder: Path, name: str) -> Path:
    """A key pair; the path of its private half."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)], check=True)
    return path


def enrol(up: Rehearsal, folder: Path, names: Iterable[str], password: str = PASSWORD) -> dict[str, Person]:
    """`uds admin add` for each, and one `make up`."""
    people = {name: add(up, folder, name, password) for name in names}
    up.make("up")
    return people


def add(up: Rehearsal, folder: Path, name: str, password: str = PASSWORD) -> Person:
    """`uds admin add`: what a person reads off its output is all that they get."""
    key = folder / name if (folder / name).exists() else new_key(folder, name)
    told = up.uds(
        "admin", "add", up.name, name, "--key", f"{key}.pub", "--password-stdin", stdin=f"{password}\n"
    ).stdout
    secret = re.search(r"type the secret: ([A-Z2-7]{32})\b", told)
    assert secret, told
    return Person(name, key, secret[1], tuple(re.findall(r"\b\d{8}\b", told)), password)


def dismiss(up: Rehearsal, names: Iterable[str]) -> None:
    """Take people out again, where a test hasn't."""
    for name in names:
        up.uds("admin", "remove", up.name, name, check=False)
    up.make("up")


def deploy(up: Rehearsal, folder: Path) -> Person:
    """The automation's account, with its key in a file for OpenSSH's client."""
    section = up.stack().section("deploy")
    key = folder / "deploy"
    key.touch(mode=0o600)
    key.write_text(section["privateKey"].rstrip("\n") + "\n")
    return Person("deploy", key, password=section["sudoPassword"])


def knock(door: Door, through: paramiko.Transport | None = None) -> paramiko.Transport:
    """An encrypted connection with nobody logged in yet. Ends in SSHException if the server's key is another one."""
    kind, text = door.host_key.split()[:2]
    pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(text))
    if through is None:
        transport = paramiko.Transport((door.address, 22))
    else:
        transport = paramiko.Transport(through.open_channel("direct-tcpip", (door.address, 22), ("127.0.0.1", 0)))
    transport.start_client(timeout=15)
    assert transport.get_remote_server_key() == pinned
    return transport


def log_in(
    door: Door, person: Person, *codes: str, key: Path | None = None, through: paramiko.Transport | None = None
) -> paramiko.Transport:
    """A login with the person's key and then, if the server asks, the codes; paramiko's AuthenticationException if not.

    Fails if it is asked for anything but a one-time code.
    """
    transport = knock(door, through)
    asked: list[str] = []
    answers = list(codes)

    def answer(_title: str, _instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        asked.extend(prompt for prompt, _ in prompts)
        return [answers.pop(0) if answers else "" for _ in prompts]

    try:
        further = transport.auth_publickey(person.name, paramiko.Ed25519Key(filename=str(key or person.key)))
        if further:
            assert further == ["keyboard-interactive"]
            transport.auth_interactive(person.name, answer)
    except BaseException:
        transport.close()
        raise
    finally:
        assert set(asked) <= {"Verification code: "}
    assert transport.is_authenticated()
    return transport


def admits(
    door: Door, person: Person, *codes: str, key: Path | None = None, through: paramiko.Transport | None = None
) -> bool:
    """Whether this login gets as far as running a command."""
    try:
        transport = log_in(door, person, *codes, key=key, through=through)
    except paramiko.AuthenticationException:
        return False
    try:
        status, out = command(transport, "id -un")
    finally:
        transport.close()
    assert (status, out.strip()) == (0, person.name)
    return True


def command(
    transport: paramiko.Transport, line: str, stdin: str = "", *, terminal: bool = False, timeout: float = 30
) -> tuple[int, str]:
    """Run a line in a session of its own: exit status, and output with errors among it.

    On a terminal, `stdin` is typed when a password is asked for: what is typed before that is thrown away.
    """
    with transport.open_session(timeout=timeout) as channel:
        channel.settimeout(timeout)
        if terminal:
            channel.get_pty()
        channel.set_combine_stderr(True)
        channel.exec_command(line)
        out = b""
        while terminal and b"Password: " not in out:
            received = channel.recv(65536)
            assert received, out
            out += received
        channel.sendall(stdin.encode())
        if not terminal:
            channel.shutdown_write()
        out += b"".join(iter(lambda: channel.recv(65536), b""))
        return channel.recv_exit_status(), out.decode()


class Client:
    """OpenSSH's client with the stack's own configuration, as `uds ssh` and people use it."""

    def __init__(self, up: Rehearsal, folder: Path, person: Person, *options: str) -> None:
        """`options` are lines of ssh_config."""
        self._folder = folder / f"client-{person.name}"
        self._folder.mkdir(exist_ok=True)
        self._answers, self._prompts = self._folder / "answers", self._folder / "prompts"
        self._askpass = self._folder / "askpass"
        self._askpass.write_text(_ASKPASS.format(answers=shlex.quote(str(self._answers)), prompts=self._prompts))
        self._askpass.chmod(0o700)
        own = ("IdentitiesOnly yes", f"IdentityFile {person.key}", "IdentityAgent none")
        self.config = ssh.write_config(self._folder, up.outputs(), f"User {person.name}", *options, *own)

    def run(
        self,
        *arguments: str,
        answers: Sequence[str] = (),
        start: Runner = (),
        environment: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """`ssh ARGUMENTS`, answering its questions in this order."""
        done = subprocess.run(
            [*start, "ssh", "-F", str(self.config), *arguments],
            env=self._environment(answers) | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        return Answer(done.returncode, done.stdout, done.stderr, tuple(self._prompts.read_text().splitlines()))

    @contextmanager
    def running(self, *arguments: str, until: str) -> Iterator[list[str]]:
        """`ssh ARGUMENTS` in the background, from the moment that its messages (the list) contain `until`."""
        process = subprocess.Popen(
            ["ssh", "-F", str(self.config), *arguments],
            env=self._environment(()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        said: list[str] = []
        ready = threading.Event()

        def listen() -> None:
            for line in process.stderr or ():
                said.append(line)
                if until in line:
                    ready.set()

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            assert ready.wait(30), said
            yield said
        finally:
            # SIGTERM can come between the client's check for signals and its poll: then it would wait for minutes.
            process.kill()
            process.wait()
            listener.join()

    def _environment(self, answers: Sequence[str]) -> dict[str, str]:
        self._answers.write_text("".join(f"{answer}\n" for answer in answers))
        self._prompts.write_text("")
        return {**os.environ, "SSH_ASKPASS": str(self._askpass), "SSH_ASKPASS_REQUIRE": "force"}


def from_(somebody: Bystander) -> Runner:
    """Start a client where this bystander is."""
    return ("ip", "netns", "exec", somebody.namespace)


@contextmanager
def for_a_while(up: Rehearsal, server: str, do: str, undo: str) -> Iterator[None]:
    """Change something on a server as root, on its console, and put it back."""
    console(up, server, do)
    try:
        yield
    finally:
        console(up, server, undo)


def another_host_key(up: Rehearsal, server: str) -> AbstractContextManager[None]:
    """Somebody else answers in place of this server."""
    # Restarted, not reloaded: that is done when the new key is in use. Connections that are open stay so.
    return for_a_while(
        up,
        server,
        "cd /etc/ssh; mkdir /root/own; mv ssh_host_ed25519_key* /root/own/\n"
        "ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key; systemctl restart ssh",
        "mv /root/own/* /etc/ssh/; rmdir /root/own; systemctl restart ssh",
    )


def connect_to(address: str) -> str:
    """A command that succeeds if port 80 answers there."""
    return f"timeout 20 bash -c 'exec 3<>/dev/tcp/{address}/80'"


@contextmanager
def metadata_service(up: Rehearsal, server: str) -> Iterator[None]:
    """The cloud's metadata service answers, on the server itself: its firewall doesn't know that it isn't the cloud."""
    start = "; ".join(
        f"ip address add {address} dev lo;"
        f" systemd-run -q --collect --unit=metadata-{family:d} python3 -c '{_LISTENER}' {address} {family:d}"
        for address, family in zip(METADATA, (socket.AF_INET, socket.AF_INET6), strict=True)
    )
    stop = "systemctl stop 'metadata-*'; " + "; ".join(f"ip address del {address} dev lo" for address in METADATA)
    both = " && ".join(map(connect_to, METADATA))
    with for_a_while(up, server, start, stop):
        until(lambda: "answers" in console(up, server, f"{both} && echo answers", check=False))
        yield


def console(up: Rehearsal, server: str, script: str, *, check: bool = True) -> str:
    """Run a shell script as root on a server's console: what it prints, errors among it."""
    done = up.realm().power.exec(up.machine(server).number, ["sh", "-c", f"exec 2>&1; set -e\n{script}"])
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def ends(transport: paramiko.Transport, seconds: float) -> bool:
    """Whether the connection ends by itself in time."""
    with suppress(RuntimeError):
        transport.join(seconds)
    return not transport.is_alive()
