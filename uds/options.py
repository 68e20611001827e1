"""What the operator's commands have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from uds.stack import Stack

StackName = Annotated[str, typer.Argument(metavar="STACK", help="Name of the stack, such as local or linode.")]
Rehearsal = Annotated[
    bool, typer.Option("--rehearsal", help="The rehearsal of a production stack (make up STACK=...).")
]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File whose first line is the passphrase, instead of asking.")
]


def first_line(file: Path) -> str:
    """The passphrase in a file."""
    return file.read_text().partition("\n")[0]


def passphrase_of(stack: Stack, file: Path | None, prompt: str) -> Callable[[], str]:
    """The way to the passphrase of the operator's keys: the file, a rehearsal's own, or a question."""
    known = file or stack.passphrase_file
    if known is None:
        return lambda: str(typer.prompt(prompt, hide_input=True))
    return lambda: first_line(known)
