"""Runs a command, and times things."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def seconds(work: Callable[[], None]) -> float:
    """How long the work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run it quietly.

    Raises:
        subprocess.CalledProcessError: it ended with another status than 0.
    """
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
