"""Runs a command, and times things."""

import os
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


def largest(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[float, int]:
    """Seconds of a command, and the bytes of memory that the largest of its processes had.

    Raises:
        subprocess.CalledProcessError: it ended with another status than 0.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    # Linux counts it in KiB: getrusage(2).
    return time.monotonic() - started, usage.ru_maxrss * 1024
