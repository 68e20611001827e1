"""A rehearsal for the tests: brought up once by the same driver as `make up`, in a folder of its own."""

import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
import yaml
from xdist.remote import Producer  # type: ignore[import-untyped] # it ships no types
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped] # as above

from components.settings import PROJECT
from rehearsal.machines import Machine
from rehearsal.realm import Realm
from rehearsal.workspace import Workspace
from uds.ssh import agent, write_config
from uds.stack import Stack

ROOT = Path(__file__).parents[2]
PASSWORD = "Gr8-Wombat!Kite"

STACKS = ("local", "aws-local")
"""One of each cloud: every test that has a rehearsal runs on all of them, unless it is marked with `one_stack`."""


BOTH = ("test_aws", "test_ports")
"""Where clouds differ most: tested on both at every change, and the rest every night."""


WHOLE = ("test_judges", "test_stack", "test_verify")
"""Files that share a stack with the backup server, and so a worker."""


def one_stack(why: str) -> pytest.MarkDecorator:
    """For tests whose subject can't depend on the cloud, to save their time: they run on the first stack alone."""
    return pytest.mark.one_stack(why)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_stack(why): can't depend on the cloud, so it runs on one stack")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stack_name" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("one_stack")
        file = metafunc.module.__name__.rpartition(".")[2]
        again = () if file in BOTH else pytest.mark.nightly("a second time, on another cloud")
        stacks = [STACKS[0], *([] if alone else [pytest.param(name, marks=again) for name in STACKS[1:]])]
        metafunc.parametrize("stack_name", stacks, indirect=True, scope="session")


class _ByFileOrCloud(LoadFileScheduling):  # type: ignore[misc] # as above
    """A worker has a file to itself, or all files that share a stack, which is then brought up once."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        shared = "with backups" if Path(file).stem in WHOLE else file
        return next((name for name in STACKS[1:] if name in nodeid), shared)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    return _ByFileOrCloud(config, log)


@pytest.fixture(scope="session")
def stack_name(request: pytest.FixtureRequest) -> str:
    """The name of the stack that a test runs on."""
    name: str = request.param
    return name


@dataclass
class Rehearsal:
    """One rehearsal of a stack, driven from outside as a person drives it."""

    folder: Path
    """UDS_REHEARSALS: what the driver takes for the place of all rehearsals."""
    name: str
    """The stack's."""
    stays_connected: bool = False
    """Whether a command takes the connection of the one before: not where logins are the subject."""
    _contexts: ExitStack = field(default_factory=ExitStack)
    _ssh_config: Path | None = None
    _stack: Stack | None = None
    _outputs: tuple[bytes, dict[str, Any]] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "UDS_REHEARSALS": str(self.folder)}

    @property
    def workspace(self) -> Path:
        return self.folder / self.name

    def make(self, verb: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What `make VERB ARGS=...` runs."""
        command = [sys.executable, "-m", "rehearsal", verb, self.name, *(["--", *arguments] if arguments else [])]
        return self._run(command, check=check)

    def uds(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """`uv run uds ARGUMENTS`."""
        return self._run([sys.executable, "-m", "uds", *arguments], stdin=stdin, check=check)

    def stack(self) -> Stack:
        """The stack with its secrets."""
        workspace = Workspace(self.name)
        assert workspace.folder == self.workspace, "the test process must have UDS_REHEARSALS set"
        opened = Stack(self.name, workspace.folder, workspace.folder / "keys", workspace.environment())
        # The one from before knows its configuration already.
        if self._stack != opened:
            self._stack = opened
        return self._stack

    def pulumi(self, *arguments: str) -> str:
        return self.stack().pulumi(*arguments)

    def outputs(self) -> dict[str, Any]:
        """As Pulumi says, which takes long: it is asked again when its state has changed."""
        (state,) = (self.workspace / "state").glob(f".pulumi/stacks/**/{self.name}.json")
        text = state.read_bytes()
        if self._outputs is None or self._outputs[0] != text:
            self._outputs = text, self.stack().outputs()
        return copy.deepcopy(self._outputs[1])

    def configure(self, key: str, values: Mapping[str, object]) -> None:
        """Change one object of the configuration, as somebody who edits the stack file does."""
        Workspace(self.name).set_section(key, values)

    def configuration(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(Workspace(self.name).stack_file.read_text())["config"]
        return {key.removeprefix(f"{PROJECT}:"): value for key, value in config.items()}

    def realm(self) -> Realm:
        return Realm.open(self.workspace)

    def label(self, server: str) -> str:
        """What the cloud calls a server."""
        return f"{self.name}-{server}"

    def machine(self, server: str) -> Machine:
        return self.realm().machine(self.label(server))

    def private_address(self, server: str) -> str:
        return str(self.outputs()["servers"][server]["privateIp"])

    def public_addresses(self, server: str) -> tuple[str, ...]:
        """Where the world can address a server, IPv4 and then IPv6; a private one may have no such address.

        The first may be translated, and then the server itself doesn't know it.
        """
        v4 = self.outputs()["servers"][server].get("publicIp")
        own = [str(ip_interface(address).ip) for nic in self.machine(server).nics for address in nic.addresses]
        return (*([v4] if v4 else []), *(address for address in own if ":" in address))

    def ssh(
        self, server: str, *command: str, stdin: str = "", check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A command as `deploy`, by the same configuration that `uds ssh` uses, but without its start-up time."""
        if self._ssh_config is None:
            folder = Path(self._contexts.enter_context(tempfile.TemporaryDirectory()))
            socket = self._contexts.enter_context(agent(self.stack().section("deploy")["privateKey"], folder))
            options = [f"IdentityAgent {socket}"]
            if self.stays_connected:
                options += ["ControlMaster auto", f"ControlPath {folder}/%C", "ControlPersist 30"]
            self._ssh_config = write_config(folder, self.outputs(), *options)
        return self._run(
            ["ssh", "-F", str(self._ssh_config), server, *command], stdin=stdin, check=check, timeout=timeout
        )

    def sudo(self, server: str, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell script as root, over SSH and with the sudo password, as the automation does."""
        password = self.stack().section("deploy")["sudoPassword"]
        return self.ssh(server, "sudo -k -S -p '' -- bash -s", stdin=f"{password}\n{script}\n", check=check)

    def close(self) -> None:
        self._contexts.close()

    def reconnect(self) -> None:
        """Servers were added, replaced or rebooted: the next `ssh` asks the outputs, and connects, again."""
        self._contexts.close()
        self._ssh_config = None

    def _run(
        self, command: Sequence[str], *, stdin: str = "", check: bool, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


def new_rehearsal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = STACKS[0], *, backups: bool = False
) -> Iterator[Rehearsal]:
    """A rehearsal that isn't up yet; whatever the test did, nothing of it is left afterwards."""
    monkeypatch.setenv("UDS_REHEARSALS", str(folder))
    with _removed_afterwards(_prepared(folder, name, backups=backups)) as rehearsal:
        yield rehearsal
    shutil.rmtree(folder, ignore_errors=True)


def _prepared(folder: Path, name: str, *, backups: bool = False) -> Rehearsal:
    """Only with `backups` it has the third server, which most tests don't need."""
    rehearsal = Rehearsal(folder, name)
    Workspace(name).prepare()
    rehearsal.configure("backup", {"server": backups})
    return rehearsal


@contextmanager
def _removed_afterwards(rehearsal: Rehearsal) -> Iterator[Rehearsal]:
    try:
        yield rehearsal
    finally:
        rehearsal.close()
        rehearsal.make("down")


@pytest.fixture(scope="session")
def session_monkeypatch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def rehearsals(
    tmp_path_factory: pytest.TempPathFactory, session_monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Rehearsal]]:
    """Each stack by name: up from when the first test asks for it until the last test of all has ended."""
    assert os.geteuid() == 0, "the rehearsal's machines need root: run the tests as root or with sudo"
    folder = tmp_path_factory.mktemp("rehearsals")
    session_monkeypatch.setenv("UDS_REHEARSALS", str(folder))
    with ExitStack() as afterwards:

        @cache
        def rehearsal(name: str) -> Rehearsal:
            made = afterwards.enter_context(_removed_afterwards(_prepared(folder, name)))
            made.make("up")
            return made

        yield rehearsal


@pytest.fixture(scope="session")
def up(rehearsals: Callable[[str], Rehearsal], stack_name: str) -> Rehearsal:
    """The stack, up and ready; shared by the tests that leave it as they found it."""
    return rehearsals(stack_name)


@pytest.fixture(scope="session")
def whole_rehearsals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Rehearsal]]:
    """As `rehearsals`, with the backup server."""
    with ExitStack() as afterwards:

        @cache
        def rehearsal(name: str) -> Rehearsal:
            folder = tmp_path_factory.mktemp("rehearsals")
            with _in(folder):
                made = afterwards.enter_context(_removed_afterwards(_prepared(folder, name, backups=True)))
            made.make("up")
            return made

        yield rehearsal


@pytest.fixture(scope="module")
def up_with_backups(whole_rehearsals: Callable[[str], Rehearsal], stack_name: str) -> Iterator[Rehearsal]:
    """As `up`, with the backup server, for the files of `WHOLE`, which then don't use `up`."""
    rehearsal = whole_rehearsals(stack_name)
    with _in(rehearsal.folder):
        yield rehearsal


@pytest.fixture(scope="module")
def own_with_backups(tmp_path_factory: pytest.TempPathFactory, stack_name: str) -> Iterator[Rehearsal]:
    """As `up_with_backups`, of a test file's own, which may leave it in any state."""
    with pytest.MonkeyPatch.context() as patch:
        for rehearsal in new_rehearsal(tmp_path_factory.mktemp("rehearsals"), patch, stack_name, backups=True):
            rehearsal.make("up")
            yield rehearsal


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    """The rehearsals of this process are those in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDS_REHEARSALS", str(folder))
        yield


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack_name: str) -> Iterator[Rehearsal]:
    """A rehearsal of the test's own, with nothing started, for what would spoil the shared one."""
    yield from new_rehearsal(tmp_path / "rehearsals", monkeypatch, stack_name)
