"""`uds verify`: the live servers against the guide, section by section, from outside and inside. It only reads."""

import base64
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from testinfra.host import Host

from components.files import ServerFile
from components.settings import parse
from uds import apply, ssh
from uds.stack import OperatorError, Stack
from uds.verify import application, backup, database, firewall, outside, people, system  # noqa: F401 - each registers its checks
from uds.verify.check import CHECKS, Check
from uds.verify.firewall import Accepted, accepted
from uds.verify.server import RootShell, Server


@dataclass(frozen=True)
class Result:
    """One check on one server."""

    server: str
    check: Check
    problems: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.check.remedy.replace("{server}", self.server)


@dataclass(frozen=True)
class Report:
    """What was found. `reach` is who may reach whom by the live rules of both IP versions, by server."""

    stack: str
    servers: Mapping[str, Mapping[str, Any]]
    results: tuple[Result, ...]
    reach: Mapping[str, tuple[Accepted, ...]]

    @property
    def failures(self) -> list[Result]:
        """The checks that found a problem."""
        return [result for result in self.results if result.problems]


@contextmanager
def connected(stack: Stack) -> Iterator[list[Server]]:
    """Every server of the stack, with a connection to each.

    Raises:
        OperatorError: a server can't be reached.
        SettingsError: the stack's configuration can't be used.
    """
    settings, outputs = parse(stack.config()), stack.outputs()
    scripts = apply.scripts(stack)
    password = settings.deploy.sudo_password.get_secret_value()
    names = sorted(outputs["servers"])
    with ssh.opened(stack, outputs) as command, ThreadPoolExecutor(len(names)) as pool, ExitStack() as shells:

        def one(name: str) -> Server:
            shell = shells.enter_context(RootShell(name, command, password))
            files = {capability: _files(inputs) for capability, inputs in scripts.get(name, {}).items()}
            role = outputs["servers"][name]["role"]
            return Server(name, role, Host(shell), settings, outputs, files, command)

        yield list(pool.map(one, names))


def verify(stack: Stack, progress: Callable[[Result], None]) -> Report:
    """Check every server of the stack, all at the same time; `progress` hears of each check.

    Raises:
        OperatorError: a server can't be reached.
        SettingsError: the stack's configuration can't be used.
    """

    def one(server: Server) -> tuple[list[Result], tuple[Accepted, ...]]:
        results = []
        for check in CHECKS:
            if server.role in check.roles:
                results.append(Result(server.name, check, _problems(check, server)))
                progress(results[-1])
        return results, tuple(rule for version in (4, 6) for rule in accepted(server, version))

    with connected(stack) as servers, ThreadPoolExecutor(len(servers)) as pool:
        found = {server.name: done for server, done in zip(servers, pool.map(one, servers), strict=True)}
        facts = servers[0].outputs["servers"]
    results = tuple(result for done, _ in found.values() for result in done)
    return Report(stack.name, facts, results, {name: rules for name, (_, rules) in found.items()})


def _problems(check: Check, server: Server) -> tuple[str, ...]:
    try:
        return tuple(check.find(server))
    except OperatorError:
        raise
    # A server that answers nonsense must not hide what the other checks find.
    except Exception as error:
        return (f"could not be checked: {type(error).__name__}: {error}".strip(),)


def _files(inputs: Mapping[str, Any]) -> list[ServerFile]:
    """The files that a capability's bundle installs."""
    _, _, payload = apply.plain(inputs["stdin"]).partition("\n")
    files = []
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(payload))) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if member.name.startswith("files/") and content:
                path = member.name.removeprefix("files")
                files.append(ServerFile(path, member.mode, content.read().decode()))
    return files
