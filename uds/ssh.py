"""`uds ssh`: a command or a shell on a server, as the automation's account, through the bastion, with pinned keys."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from uds.stack import OperatorError, Stack


def is_private(facts: Mapping[str, str]) -> bool:
    """Whether a server, by its facts in the stack's outputs, is reached through the first application server only.

    One in another region isn't, since it must be reached when the stack's own region is not.
    """
    return facts["role"] != "app" and "region" not in facts


def address(facts: Mapping[str, str]) -> str:
    """Where a server is reached: by those inside where it is private, else by anybody whom its firewalls let."""
    return facts["privateIp"] if is_private(facts) else facts["publicIp"]


def write_config(folder: Path, outputs: Mapping[str, Any], *options: str) -> Path:
    """Write OpenSSH's configuration for the stack's servers into `folder`: names, jumps, and the only keys accepted.

    With it, `ssh -F FILE db-1` goes through the first application server. `options` are more lines, for the servers and
    the jump alike; the first word on something is the last, so they may name another user than the automation's.
    """
    servers: Mapping[str, Mapping[str, str]] = outputs["servers"]
    known_hosts = folder / "known_hosts"
    known_hosts.write_text("".join(f"{name} {server['hostKey']}\n" for name, server in servers.items()))
    lines = []
    for name, server in servers.items():
        lines += [f"Host {name}", f"  HostName {address(server)}", f"  HostKeyAlias {name}"]
        if is_private(server):
            lines.append("  ProxyJump app-1")
    lines += [
        "Host *",
        *(f"  {option}" for option in options),
        f"  User {outputs['sshUser']}",
        f"  UserKnownHostsFile {known_hosts}",
        "  GlobalKnownHostsFile none",
        "  StrictHostKeyChecking yes",
        "  UpdateHostKeys no",
        "  ConnectTimeout 15",
        # The banner is for people; here it would mix with a command's output.
        "  LogLevel ERROR",
    ]
    config = folder / "config"
    config.write_text("\n".join(lines) + "\n")
    return config


@contextmanager
def agent(private_key: str, folder: Path) -> Iterator[Path]:
    """An agent of its own that holds the key for a while, so that the key never lies on the disk."""
    path = folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        while not _listens(path):
            if process.poll() is not None:
                raise OperatorError("ssh-agent did not start.")
            time.sleep(0.01)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        # Pulumi drops the last line end of a value, and OpenSSH reads no key without it.
        key = private_key.rstrip("\n") + "\n"
        subprocess.run(["ssh-add", "-q", "-"], input=key, text=True, env=environment, check=True)
        yield path
    finally:
        process.terminate()
        process.wait()


def _listens(path: Path) -> bool:
    """Whether somebody answers at this socket: it is there a moment before."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        return True
    return False


def check_server(outputs: Mapping[str, Any], server: str) -> None:
    """See that the stack has a server of this name.

    Raises:
        OperatorError: it has none; with those that it has.
    """
    if server not in outputs["servers"]:
        raise OperatorError(f"There is no server {server}. Servers: {', '.join(sorted(outputs['servers']))}.")


@contextmanager
def opened(stack: Stack, outputs: Mapping[str, Any]) -> Iterator[list[str]]:
    """The beginning of an ssh command line, to which a server's name is added; as the automation's account.

    Raises:
        OperatorError: no ssh on this machine.
    """
    if not shutil.which("ssh"):
        raise OperatorError("There is no ssh on this machine: install openssh-client.")
    private_key = stack.section("deploy")["privateKey"]
    with tempfile.TemporaryDirectory() as name, agent(private_key, Path(name)) as held:
        yield ["ssh", "-F", str(write_config(Path(name), outputs, f"IdentityAgent {held}"))]


@contextmanager
def connected(stack: Stack, server: str) -> Iterator[list[str]]:
    """The beginning of an ssh command line that reaches `server`, as the automation's account.

    Raises:
        OperatorError: no such server, or no ssh on this machine.
    """
    outputs = stack.outputs()
    check_server(outputs, server)
    with opened(stack, outputs) as ssh:
        yield [*ssh, server]


def run(stack: Stack, server: str, command: Sequence[str], *, sudo: bool) -> int:
    """Run `command` (or a shell) on `server` and return its exit status.

    One word is a line for the server's shell, as with ssh; several are a program and its arguments, as they are.

    Raises:
        OperatorError: no such server, or no ssh on this machine.
    """
    if sudo and not command:
        raise OperatorError("--sudo needs a command: uds ssh STACK SERVER --sudo -- COMMAND.")
    with connected(stack, server) as ssh:
        if not command:
            return subprocess.run(ssh, check=False).returncode
        if sudo:
            program = command if len(command) > 1 else ["sh", "-c", *command]
            password = stack.section("deploy")["sudoPassword"]
            return _run_as_root([*ssh, f"sudo -k -S -p '' -- {shlex.join(program)}"], password)
        return subprocess.run([*ssh, shlex.join(command) if len(command) > 1 else command[0]], check=False).returncode


def pipe(stack: Stack, server: str, command: str, stdin: str) -> int:
    """Run a line of shell on `server` with `stdin` as its input, which no argument shows, and return its exit status.

    Raises:
        OperatorError: no such server, or no ssh on this machine.
    """
    with connected(stack, server) as ssh:
        return subprocess.run([*ssh, command], input=stdin.encode(), check=False).returncode


def as_root(
    opened: Sequence[str], server: str, password: str, command: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a line of shell on `server` as root, with `stdin` as its input, by a connection of `opened`."""
    return subprocess.run(
        [*opened, server, f"sudo -k -S -p '' -- sh -c {shlex.quote(command)}"],
        input=f"{password}\n{stdin}",
        capture_output=True,
        text=True,
        check=False,
    )


def _run_as_root(ssh: Sequence[str], password: str) -> int:
    """Give sudo its password first, and the command everything that comes on our own standard input."""
    process = subprocess.Popen(ssh, stdin=subprocess.PIPE)
    if process.stdin is None:  # it is a pipe, as asked for above
        raise OperatorError("ssh could not be started.")
    process.stdin.write(password.encode() + b"\n")
    process.stdin.flush()
    # In the background, so that a command that ends early doesn't wait for input that nobody gives.
    threading.Thread(target=_feed, args=(process.stdin,), daemon=True).start()
    return process.wait()


def _feed(target: IO[bytes]) -> None:
    # Broken where the command ended without reading all of it.
    with suppress(BrokenPipeError), target:
        if not sys.stdin.isatty():
            shutil.copyfileobj(sys.stdin.buffer, target)
