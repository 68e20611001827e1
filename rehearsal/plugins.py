"""Puts the stand-ins for Pulumi's cloud plugins where a rehearsal's Pulumi finds them."""

import shlex
import sys
from pathlib import Path

CLOUDS = ("aws", "linode")

_PROJECT = Path(__file__).parents[1]


def executable(cloud: str) -> str:
    """What Pulumi calls the plugin of a cloud."""
    return f"pulumi-resource-{cloud}"


def install(bin_dir: Path) -> None:
    """Write the executables into `bin_dir` (made if missing)."""
    bin_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for cloud in CLOUDS:
        path = bin_dir / executable(cloud)
        # -P: nothing from the folder that Pulumi starts it in may be imported in place of the project's own.
        command = shlex.join([sys.executable, "-P", "-m", f"rehearsal.{cloud}"])
        new = path.with_suffix(".new")
        new.write_text(f'#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(_PROJECT))}\nexec {command} "$@"\n')
        new.chmod(0o755)
        new.replace(path)
