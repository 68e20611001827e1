"""Puts the stand-in for a cloud's Pulumi plugin where a rehearsal's Pulumi finds it."""

import shlex
import sys
from pathlib import Path

CLOUDS = ("aws", "linode")

_PROJECT = Path(__file__).parents[1]

# What the engine starts, with its own address as the last argument.
_FOUND = """#!/bin/sh
# Our language host has started the plugin already (rehearsal/language_host/early.py): only its port is told then.
for engine; do :; done
name=$(basename "$0")
early=$UDS_REHEARSAL/early/$name@$engine
if mv "$early" "$early.taken" 2>/dev/null; then
    read -r process port < "$early.taken"
    rm "$early.taken"
    if kill -0 "$process"; then
        echo "$port"
        exec tail --pid="$process" -f /dev/null
    fi
fi
exec "$(dirname "$0")/../plugins/$name" "$@"
"""


def executable(cloud: str) -> str:
    """What Pulumi calls the plugin of a cloud."""
    return f"pulumi-resource-{cloud}"


def install(workspace: Path, cloud: str) -> None:
    """Write the executables into the folders of a rehearsal of this cloud; those of others go.

    Of no cloud that can be rehearsed, nothing: the program says what is wrong with the configuration.
    """
    for one in CLOUDS:
        found, plugin = (workspace / folder / executable(one) for folder in ("bin", "plugins"))
        if one == cloud:
            # -P: nothing from the folder that Pulumi starts it in may be imported in place of the project's own.
            command = shlex.join([sys.executable, "-P", "-m", f"rehearsal.{cloud}"])
            _write(plugin, f'#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(_PROJECT))}\nexec {command} "$@"\n')
            _write(found, _FOUND)
        else:
            found.unlink(missing_ok=True)
            plugin.unlink(missing_ok=True)


def _write(path: Path, script: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(script)
    new.chmod(0o755)
    new.replace(path)
