"""`uds rehearse`: a stack on this machine, for as long as somebody looks at it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from uds.stack import ROOT, OperatorError


@contextmanager
def rehearsed(stack: str) -> Iterator[None]:
    """The stack's rehearsal, apart from one that `make up` has started, and gone afterwards whatever happens.

    Raises:
        OperatorError: it doesn't come up. Why has been shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Read by `Workspace`, here and in the driver.
        os.environ["UDS_REHEARSALS"] = folder
        try:
            _bring_up(stack)
            yield
        finally:
            # Whoever is in a hurry now would leave machines behind. The driver inherits this.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            _drive("down", stack)


def _bring_up(stack: str) -> None:
    # An interrupt (Ctrl-C) reaches the driver too, which then ends in order: wait for it, where Python would kill it.
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: interrupts.append(number))
    status = _drive("up", stack, "--brief")
    signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
    if status:
        raise OperatorError(f"{stack} does not come up.")


def _drive(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "rehearsal", *arguments], cwd=ROOT, check=False).returncode
