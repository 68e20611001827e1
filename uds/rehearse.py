"""`uds rehearse`: a stack on this machine, for as long as somebody looks at it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from uds.stack import ROOT, OperatorError

# Ctrl-C, `kill` and whoever supervises this, a terminal that is closed.
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def rehearsed(stack: str) -> Iterator[None]:
    """The stack's rehearsal, apart from one that `make up` has started, and gone afterwards whatever happens.

    Raises:
        OperatorError: it doesn't come up. Why has been shown.
        KeyboardInterrupt, SystemExit: somebody ended it, and nothing is left.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Read by `Workspace`, here and in the driver.
        os.environ["UDS_REHEARSALS"] = folder
        for number in _ENDINGS:
            signal.signal(number, _end)
        try:
            _bring_up(stack)
            yield
        finally:
            _be_deaf()
            subprocess.run(_driver("down", stack), cwd=ROOT, check=False)


def _bring_up(stack: str) -> None:
    # In a process group of its own, so that every end reaches it in one way: Pulumi ends in order at an interrupt, and
    # the driver with it.
    with subprocess.Popen(_driver("up", stack, "--brief"), cwd=ROOT, process_group=0) as driver:
        try:
            status = driver.wait()
        except (KeyboardInterrupt, SystemExit):
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGINT)
            driver.wait()
            raise
    if status:
        raise OperatorError(f"{stack} does not come up.")


def _end(number: int, _frame: FrameType | None) -> None:
    _be_deaf()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _be_deaf() -> None:
    # Whoever is in a hurry now would leave machines behind. The driver inherits this.
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _driver(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rehearsal", *arguments]
