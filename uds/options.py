"""What the operator's commands have in common."""

from pathlib import Path
from typing import Annotated

import typer

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
