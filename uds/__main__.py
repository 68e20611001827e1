"""uds, the operator's command: `uv run uds --help`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import segno
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress
from rich.table import Table

from rehearsal.workspace import rehearsed_only
from uds import admin as admins
from uds import alert as alerts
from uds import apply as reapply
from uds import cert as certs
from uds import init as initialisation
from uds import rotate
from uds import ssh as remote_shell
from uds import update as updates
from uds.backup.command import backup_app
from uds.certificates import KeyType
from uds.options import PassphraseFile, Rehearsal, StackName, first_line, passphrase_of
from uds.rehearse import rehearsed
from uds.stack import OperatorError, Stack

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Keys, people and servers of a stack. Stacks named local or *-local are rehearsals on this machine.",
)
admin_app = typer.Typer(no_args_is_help=True, help="The people who may log in.")
app.add_typer(admin_app, name="admin")
cert_app = typer.Typer(no_args_is_help=True, help="The certificate of the application's HTTPS.")
app.add_typer(cert_app, name="cert")
app.add_typer(backup_app, name="backup")
alert_app = typer.Typer(no_args_is_help=True, help="The alerts of the servers.")
app.add_typer(alert_app, name="alert")
rotate_app = typer.Typer(no_args_is_help=True, help="New keys and passwords in the place of those in use.")
app.add_typer(rotate_app, name="rotate")
# No emoji: a fingerprint may have `:AB:` in it, or a key.
out = Console(highlight=False, emoji=False)

Names = Annotated[list[str], typer.Option("--name", help="Host name or address of the server; several times for more.")]
KeyTypeOption = Annotated[KeyType, typer.Option(help="The key to make.")]


@app.command()
def init(
    stack: StackName,
    passphrase_file: PassphraseFile = None,
    rehearsal: Rehearsal = False,
) -> None:
    """Make all keys and secrets of a stack that it doesn't have yet. Safe to run again."""
    opened = Stack.open(stack, rehearsal=rehearsal)
    # Does nothing where the stack is there; Pulumi itself asks for its passphrase where it needs one.
    opened.pulumi("stack", "select", "--create")

    def passphrase() -> str:
        if passphrase_file:
            text = first_line(passphrase_file)
        else:
            text = typer.prompt(
                "Passphrase for your own copy of the deploy key", hide_input=True, confirmation_prompt=True
            )
        if len(text) < 16:
            raise OperatorError("The passphrase is too short: take at least 16 characters (guide, 3.5).")
        return text

    made = False
    for what in initialisation.initialise(opened, passphrase):
        made = True
        out.print(f"made: {what}")
    if not made:
        out.print("Everything is there already.")


@admin_app.command("add")
def admin_add(
    stack: StackName,
    name: Annotated[str, typer.Argument(help="Account name.")],
    key: Annotated[list[Path], typer.Option(help="File with the person's public SSH key; may be given several times.")],
    password_stdin: Annotated[bool, typer.Option(help="Read the sudo password from standard input.")] = False,
    rehearsal: Rehearsal = False,
) -> None:
    """Add a person: key and one-time code to log in, password for sudo. Shows the code's secret once."""
    opened = Stack.open(stack, rehearsal=rehearsal)
    keys = [path.read_text() for path in key]
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = typer.prompt(f"sudo password for {name}", hide_input=True, confirmation_prompt=True)
    enrolment = admins.add(opened, name, keys, password)
    out.print(f"\nScan this with {name}'s authenticator app. It is shown once:\n")
    segno.make(enrolment.uri, error="m").terminal(compact=True)
    out.print(f"\nOr type the secret: {enrolment.secret}")
    out.print(f"Codes for the day the phone is lost, each works once per server: {'  '.join(enrolment.scratch_codes)}")
    out.print(f"\nNext: {_apply_hint(stack, rehearsal)} puts the account on the servers.")


@admin_app.command("remove")
def admin_remove(stack: StackName, name: Annotated[str, typer.Argument()], rehearsal: Rehearsal = False) -> None:
    """Remove a person."""
    admins.remove(Stack.open(stack, rehearsal=rehearsal), name)
    out.print(f"{name} is out of the configuration. Next: {_apply_hint(stack, rehearsal)} ends their access.")


@admin_app.command("list")
def admin_list(stack: StackName, rehearsal: Rehearsal = False) -> None:
    """List the people and their keys."""
    table = Table("admin", "public key")
    for name, keys in admins.listed(Stack.open(stack, rehearsal=rehearsal)).items():
        for key in keys:
            table.add_row(name, key)
    out.print(table)


@cert_app.command("csr")
def cert_csr(
    stack: StackName,
    name: Names,
    *,
    key_type: KeyTypeOption = KeyType.P256,
    output: Annotated[Path | None, typer.Option(help="Write the request into this file instead of showing it.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Give up a request that is waiting.")] = False,
    rehearsal: Rehearsal = False,
) -> None:
    """Make a key, and the request for a certificate (CSR) that an authority signs. The key in use stays in use."""
    text = certs.request(Stack.open(stack, rehearsal=rehearsal), name, key_type, replace=replace)
    if output:
        output.write_text(text)
        out.print(f"The request is in {output}.")
    else:
        sys.stdout.write(text)
    Console(stderr=True, highlight=False, emoji=False).print(
        f"Next: have it signed, then `uds cert install {stack} CERTIFICATE CHAIN`.", markup=False
    )


@cert_app.command("self-signed")
def cert_self_signed(
    stack: StackName, name: Names, key_type: KeyTypeOption = KeyType.P256, rehearsal: Rehearsal = False
) -> None:
    """Make a key and a certificate that nobody vouches for: for rehearsals and first tries."""
    _print_certificate(certs.make_self_signed(Stack.open(stack, rehearsal=rehearsal), name, key_type))
    out.print(f"Next: {_apply_hint(stack, rehearsal)} puts it on the servers.")


@cert_app.command("install")
def cert_install(
    stack: StackName,
    files: Annotated[
        list[Path], typer.Argument(metavar="CERTIFICATE [CHAIN]...", help="PEM files: the server's own first.")
    ],
    rehearsal: Rehearsal = False,
) -> None:
    """Check what the authority has signed, and put it into the stack."""
    _print_certificate(certs.install(Stack.open(stack, rehearsal=rehearsal), files))
    out.print(f"Next: {_apply_hint(stack, rehearsal)} puts it on the servers.")


@cert_app.command("show")
def cert_show(stack: StackName, rehearsal: Rehearsal = False) -> None:
    """Show the certificate: names, dates, fingerprint."""
    facts, waiting = certs.show(Stack.open(stack, rehearsal=rehearsal))
    if facts:
        _print_certificate(facts)
    else:
        out.print("The stack has no certificate: make one with `uds cert csr` or `uds cert self-signed`.")
    if waiting:
        out.print(f"A request for {', '.join(waiting)} is waiting for its certificate.")


def _print_certificate(facts: certs.Facts) -> None:
    lines = {
        "names": ", ".join(facts.names),
        "signed by": facts.issuer,
        "valid": f"{facts.begins:%Y-%m-%d} to {facts.ends:%Y-%m-%d} ({facts.days_left} days left)",
        "key": facts.key_type,
        "SHA-256": facts.fingerprint,
    }
    for what, value in lines.items():
        # Whole, however narrow the terminal is: it is there to be compared.
        out.print(f"{what:<10} {value}", markup=False, soft_wrap=True)
    for warning in certs.warnings(facts):
        out.print(warning, style="yellow", markup=False)


@alert_app.command("test")
def alert_test(stack: StackName, rehearsal: Rehearsal = False) -> None:
    """Send an alert through every channel from every server, and show the answers; exits 1 if one wasn't taken."""
    answers = alerts.test(Stack.open(stack, rehearsal=rehearsal))
    table = Table("server", "channel", "answer")
    for answer in answers:
        table.add_row(answer.server, answer.channel, escape(answer.words), style=None if answer.taken else "red")
    out.print(table)
    if not all(answer.taken for answer in answers):
        raise typer.Exit(1)


@rotate_app.command("deploy-key")
def rotate_deploy_key(stack: StackName, passphrase_file: PassphraseFile = None, rehearsal: Rehearsal = False) -> None:
    """The automation's SSH key. Servers take both until the next `pulumi up`."""
    opened = Stack.open(stack, rehearsal=rehearsal)
    rotate.deploy_key(opened, _passphrase(opened, passphrase_file))
    out.print(f"The servers take the new key. Next: {_apply_hint(stack, rehearsal)} takes the old one away.")


@rotate_app.command("host-key")
def rotate_host_key(
    stack: StackName,
    server: Annotated[str, typer.Argument(help="Name of the server, such as app-1 or db-1.")],
    rehearsal: Rehearsal = False,
) -> None:
    """A server's SSH host key. Until the next `pulumi up`, nothing of this project knows the server."""
    replaced = rotate.host_key(Stack.open(stack, rehearsal=rehearsal), server)
    command = _apply_command(stack, rehearsal, f"--replace '{replaced}'")
    out.print(f"{server} has another host key. Next, so that it is known: {command}", markup=False, soft_wrap=True)


@rotate_app.command("database-password")
def rotate_database_password(stack: StackName, rehearsal: Rehearsal = False) -> None:
    """The passwords of the database's accounts. The application is restarted with the new one."""
    rotate.database_password(Stack.open(stack, rehearsal=rehearsal))
    out.print(f"Next: {_apply_hint(stack, rehearsal)} puts them on the servers.")


@rotate_app.command("database-certificate")
def rotate_database_certificate(
    stack: StackName, passphrase_file: PassphraseFile = None, rehearsal: Rehearsal = False
) -> None:
    """The database server's certificate and its key, for another 366 days. Nothing is restarted."""
    opened = Stack.open(stack, rehearsal=rehearsal)
    rotate.database_certificate(opened, _passphrase(opened, passphrase_file))
    out.print(f"Next: {_apply_hint(stack, rehearsal)} puts it on the server.")


@rotate_app.command("backup-identity")
def rotate_backup_identity(
    stack: StackName, passphrase_file: PassphraseFile = None, rehearsal: Rehearsal = False
) -> None:
    """The identity that opens backups. The old one still opens what was made before."""
    opened = Stack.open(stack, rehearsal=rehearsal)
    recipient = rotate.backup_identity(opened, _passphrase(opened, passphrase_file))
    out.print(f"New backups will be for {recipient}. Keep a copy of {opened.keys} elsewhere.", soft_wrap=True)
    out.print(f"Next: {_apply_hint(stack, rehearsal)} tells the database server.")


def _passphrase(stack: Stack, file: Path | None) -> Callable[[], str]:
    return passphrase_of(stack, file, "Passphrase of your keys, as given to `uds init`")


@app.command()
def ssh(
    stack: StackName,
    server: Annotated[str, typer.Argument(help="Name of the server, such as app-1 or db-1.")],
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND...]")] = None,
    sudo: Annotated[bool, typer.Option("--sudo", help="Run the command as root.")] = False,
    rehearsal: Rehearsal = False,
) -> None:
    """Run a command, or a shell, on a server as the automation's account. Passes the exit status through."""
    raise typer.Exit(remote_shell.run(Stack.open(stack, rehearsal=rehearsal), server, command or [], sudo=sudo))


@app.command()
def apply(
    stack: StackName,
    server: Annotated[str, typer.Argument(help="Name of the server, such as app-1 or db-1.")],
    capability: Annotated[str, typer.Argument(help="What to put right, such as hardening or accounts.")],
    rehearsal: Rehearsal = False,
) -> None:
    """Put right what somebody changed on a server by hand. Prints what it changes."""
    raise typer.Exit(reapply.run(Stack.open(stack, rehearsal=rehearsal), server, capability))


@app.command()
def update(stack: StackName, rehearsal: Rehearsal = False) -> None:
    """Install security updates now, and reboot the servers that ask for it, one after the other."""
    log = Console(stderr=True, highlight=False, emoji=False)
    with log.status("") as status:
        done = updates.update(Stack.open(stack, rehearsal=rehearsal), status.update)
    table = Table("server", "updated", "rebooted")
    for one in done:
        table.add_row(one.server, escape("\n".join(one.packages)) or "nothing", "yes" if one.rebooted else "no")
    out.print(table)


@app.command()
def verify(
    stack: StackName,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print everything that was checked, as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with the picture of who may reach whom.")] = None,
    rehearsal: Rehearsal = False,
) -> None:
    """Check the live servers against the guide, from outside and inside. Reads only; exits 1 on any problem."""
    # Only here: it brings testinfra, which nothing else needs.
    from uds import verify as verification  # noqa: PLC0415
    from uds.verify import report as show  # noqa: PLC0415

    opened = Stack.open(stack, rehearsal=rehearsal)
    with Progress(
        "{task.description}", BarColumn(), "{task.completed}", console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task("checks", total=None)

        def seen(result: verification.Result) -> None:
            progress.update(task, advance=1, description=f"{result.server}: {result.check.title}")

        report = verification.verify(opened, seen)
    if html:
        html.write_text(show.to_html(report))
    if json:
        sys.stdout.write(show.to_json(report) + "\n")
    elif report.failures:
        out.print(show.table(report))
        out.print(f"{len(report.failures)} of {len(report.results)} checks found a problem.", style="red")
    else:
        out.print(f"All {len(report.results)} checks passed, on {', '.join(report.servers)}.", style="green")
    if report.failures:
        raise typer.Exit(1)


@app.command()
def rehearse(
    stack: StackName,
    html: Annotated[Path | None, typer.Option(help="Write a page with the picture of who may reach whom.")] = None,
) -> None:
    """Bring a stack up on this machine with its own settings and throw-away secrets, verify it, and remove it."""
    with rehearsed(stack):
        verify(stack, html=html, rehearsal=True)


def _apply_hint(stack: str, rehearsal: bool) -> str:
    return f"`{_apply_command(stack, rehearsal)}`"


def _apply_command(stack: str, rehearsal: bool, options: str = "") -> str:
    if rehearsal or rehearsed_only(stack):
        return f"make up STACK={stack}" + (f' ARGS="{options}"' if options else "")
    return f"pulumi up --stack {stack} {options}".rstrip()


def main() -> None:
    """The command's entry: an error that the operator can mend is one line, not a traceback."""
    try:
        app()
    except OperatorError as error:
        Console(stderr=True, highlight=False, emoji=False).print(f"uds: {error}", style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
