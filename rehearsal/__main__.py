"""What `make` runs: a stack of the project, by the real Pulumi, with this machine in place of the cloud."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from components.settings import PROJECT, PROJECT_FOLDER
from rehearsal import host, image, plugins, recovery, toolchain
from rehearsal.bench import measure
from rehearsal.first_keys import FirstKeys
from rehearsal.host import HostError
from rehearsal.realm import Realm
from rehearsal.store import RealmError, write_atomically
from rehearsal.toolchain import ToolchainError
from rehearsal.workspace import POLICIES, Workspace, rehearsed_only
from uds import cert, init, ssh
from uds.certificates import KeyType
from uds.stack import OperatorError, Stack

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="The rehearsal; see the Makefile.")
out = Console(highlight=False, emoji=False)
# Progress is no result: `make -s outputs` prints JSON and nothing else.
log = Console(stderr=True, highlight=False, emoji=False)

# The release that the stack `local` delivers.
DEMO = "rehearsal/demo"

# ssh's own exit status.
_NOT_REACHED = 255

StackName = Annotated[str, typer.Argument(metavar="STACK")]
Arguments = Annotated[list[str] | None, typer.Argument(metavar="[-- PULUMI ARGUMENTS...]")]
Collection = Annotated[Path | None, typer.Option(help="A copy of dev-sec's ansible collection, to compare with.")]


@app.command()
def up(
    stack: StackName,
    arguments: Arguments = None,
    brief: Annotated[bool, typer.Option("--brief", help="Say nothing of what to do with it.")] = False,
) -> None:
    """Bring the stack up on this machine, from whatever is there."""
    started = time.monotonic()
    workspace = _prepare(stack, with_machines=True)
    # Pulumi's own start takes as long as the network's.
    with ThreadPoolExecutor() as pool:
        initialised = pool.submit(_initialise, workspace)
        realm = Realm.open(workspace.folder)
        realm.start(_say)
    opened = initialised.result()
    _allow_this_host(workspace, realm)
    recovery.recover(opened, realm, _say)
    _pulumi(workspace, ["up", "--yes", "--skip-preview", *(arguments or [])])
    facts = opened.outputs()
    _prepare_demo(opened, facts)
    _summary(stack, facts, time.monotonic() - started)
    if not brief:
        _hints(workspace, opened, facts)


@app.command()
def prepare() -> None:
    """Install and build all that the tests need, and start nothing."""
    host.prepare(_say)
    with TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        tools = pool.submit(toolchain.ensure, Path(folder), _say)
        for name in image.SUITES:
            image.ensure(name, _say)
        tools.result()


@app.command()
def preview(stack: StackName, arguments: Arguments = None) -> None:
    """Say what `up` would do, and what the policies say to that; of a production stack, with throw-away secrets."""
    workspace = _prepare(stack, with_machines=False)
    if rehearsed_only(stack):
        # Such a stack file names no sources: they are this machine's.
        _allow_this_host(workspace, Realm.open(workspace.folder))
    _initialise(workspace)
    _pulumi(workspace, ["preview", "--policy-pack", str(POLICIES), *(arguments or [])])


@app.command()
def down(stack: StackName) -> None:
    """Remove the rehearsal: machines, networks, state and throw-away secrets."""
    workspace = Workspace(stack)
    # Without its committed file there may still be a rehearsal; without both there never was one.
    if not workspace.folder.exists():
        _check(workspace)
    workspace.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    Realm.open(workspace.folder).destroy()
    workspace.remove()
    _say(f"The rehearsal of {stack} is gone.")


@app.command()
def outputs(stack: StackName) -> None:
    """Print the stack's outputs as JSON."""
    print(json.dumps(Stack.open(stack, rehearsal=True).outputs(), indent=2))


@app.command()
def bench(stack: StackName, against: Collection = None) -> None:
    """Measure on this machine, in a rehearsal of its own."""
    measure(stack, against, out)


def _prepare(stack: str, *, with_machines: bool) -> Workspace:
    """Everything that a rehearsal needs before Pulumi runs. What is there already costs next to nothing."""
    workspace = Workspace(stack)
    _check(workspace)
    if with_machines:
        host.prepare(_say)
    workspace.prepare()
    # Both take minutes the first time, on a core each.
    with ThreadPoolExecutor() as pool:
        tools = pool.submit(toolchain.ensure, workspace.bin, _say)
        if with_machines:
            pool.submit(image.ensure, _configured(workspace, "image", image.DEFAULT_IMAGE), _say).result()
        tools.result()
    # A cloud that there isn't has no plugin to be asked for: the program says what is wrong with it.
    plugins.install(workspace.folder, _configured(workspace, "cloud", ""))
    return workspace


def _check(workspace: Workspace) -> None:
    try:
        workspace.check()
    except FileNotFoundError as error:
        raise OperatorError(f"There is no stack {workspace.stack}: {error.filename} does not exist.") from None


def _allow_this_host(workspace: Workspace, realm: Realm) -> None:
    workspace.set_section("ssh", {"allowedSources": [f"{realm.operator_v4}/32", f"{realm.operator_v6}/128"]})


def _configured(workspace: Workspace, key: str, default: str) -> str:
    config = yaml.safe_load(workspace.stack_file.read_text())["config"]
    return str(config.get(f"{PROJECT}:{key}", default))


def _initialise(workspace: Workspace) -> Stack:
    stack = FirstKeys.open(workspace.stack, rehearsal=True)
    stack.pulumi("stack", "select", "--create")
    application = stack.section("application")
    # Nobody is asked: the key folder of a rehearsal has the rehearsal's own passphrase.
    for what in init.initialise(stack, workspace.passphrase_file.read_text):
        _say(f"made: {what}")
    if "certificate" not in application:
        cert.make_self_signed(stack, [_host(application)], KeyType.P256)
        _say("made: a certificate for the application, which nobody vouches for")
    return Stack.open(workspace.stack, rehearsal=True)


def _host(application: Mapping[str, Any]) -> str:
    """What the rehearsed application is called: its own setting, or a name that nobody has (RFC 6761)."""
    return str(application.get("settings", {}).get("host", "application.test"))


def _pulumi(workspace: Workspace, arguments: Sequence[str]) -> None:
    command = ["pulumi", *arguments, "--stack", workspace.stack]
    # An interrupt (Ctrl-C) reaches Pulumi too, which then ends in order: wait for it, where Python would kill it.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    done = subprocess.run(command, cwd=workspace.folder, env=workspace.environment(), check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _prepare_demo(stack: Stack, facts: Mapping[str, Any]) -> None:
    """Have the demo's table, as somebody does by hand who delivers it (see its README.md)."""
    if stack.section("application").get("release") != DEMO:
        return
    # Whichever of the two the server has.
    client = 'exec "$(command -v mariadb || command -v mysql)"'
    command = f"{client} {shlex.quote(facts['database']['name'])}"
    password = stack.section("deploy")["sudoPassword"]
    schema = (PROJECT_FOLDER / DEMO / "schema.sql").read_text()
    end = time.monotonic() + 60
    with ssh.opened(stack, facts) as reaching:
        while (done := ssh.as_root(reaching, "db-1", password, command, schema)).returncode:
            # Servers that have got another size are rebooting.
            if done.returncode != _NOT_REACHED or time.monotonic() > end:
                raise OperatorError(f"The demo's table could not be made on db-1: {done.stderr.strip()}")
            time.sleep(1)


def _summary(name: str, facts: Mapping[str, Any], seconds: float) -> None:
    table = Table("server", "role", "public address", "private address")
    for server, known in facts["servers"].items():
        table.add_row(server, known["role"], known.get("publicIp", "-"), known["privateIp"])
    out.print(f"\nThe stack {name} is up, after {seconds:.0f} s.")
    out.print(table)


def _hints(workspace: Workspace, stack: Stack, facts: Mapping[str, Any]) -> None:
    # On a machine without uv, its environment has been made all the same.
    uds = "uv run uds" if shutil.which("uv") else ".venv/bin/uds"
    # Without the option, it would be production's.
    this = stack.name if rehearsed_only(stack.name) else f"{stack.name} --rehearsal"
    out.print(f"Log in      {uds} ssh {this} app-1        (then db-1, through app-1)")
    out.print(f"As root     {uds} ssh {this} db-1 --sudo -- iptables -S")
    out.print(f"Add people  {uds} admin add {this} alice --key ~/.ssh/id_ed25519.pub, then make up again")
    application = stack.section("application")
    if "release" in application:
        certificate = workspace.folder / "application.pem"
        write_atomically(certificate, application["certificate"])
        host, address = _host(application), facts["servers"]["app-1"]["publicIp"]
        # One line, whatever its length, so that it can be copied.
        out.print(
            f"Call it     curl --cacert {certificate} --resolve {host}:443:{address} https://{host}/", soft_wrap=True
        )
    if not {"email", "slack", "pushover"} & set(stack.section("alerts")):
        out.print("Alerts      to the servers' journals only: see `alerts` in Pulumi.yaml")
    out.print("Prove it    make test")
    out.print(f"Remove it   make down STACK={stack.name}")


def _say(text: str) -> None:
    log.print(text, style="dim", markup=False)


def main() -> None:
    """The entry: what a person can mend is said in a few words, without a traceback."""
    try:
        app()
    except (HostError, OperatorError, RealmError, ToolchainError) as error:
        log.print(str(error), style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
