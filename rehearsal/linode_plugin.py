"""Puts the stand-in for Pulumi's Linode plugin where a rehearsal's Pulumi finds it."""

import shlex
import sys
from pathlib import Path

NAME = "pulumi-resource-linode"

_PROJECT = Path(__file__).parents[1]


def install(bin_dir: Path) -> Path:
    """Write the executable into `bin_dir` (made if missing) and return its path."""
    bin_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = bin_dir / NAME
    # -P: nothing from the folder that Pulumi starts it in may be imported in place of the project's own.
    command = shlex.join([sys.executable, "-P", "-m", "rehearsal.linode"])
    new = path.with_suffix(".new")
    new.write_text(f'#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(_PROJECT))}\nexec {command} "$@"\n')
    new.chmod(0o755)
    return new.replace(path)
