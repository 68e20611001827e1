"""Starts the rehearsal's provider plugins before the engine asks for them.

The engine starts a plugin when the program registers its first resource, and waits until the plugin has imported its
SDK. That takes as long as the program's own imports, beside which it can be done.
"""

import subprocess
import threading
from pathlib import Path

from rehearsal.store import write_atomically


class EarlyPlugins:
    """The plugins of the rehearsal, started for the engine at this address."""

    def __init__(self, workspace: Path, engine_address: str) -> None:
        """Start each, and say in `early/` where it answers: what the engine finds on PATH takes it from there."""
        self._running: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []
        for executable in sorted((workspace / "plugins").glob("pulumi-resource-*")):
            # In a group of its own: the engine interrupts the language host's, and what is still importing would end
            # with a traceback in the user's face.
            plugin = subprocess.Popen(
                [executable, engine_address], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
            )
            mark = workspace / "early" / f"{executable.name}@{engine_address}"
            attendant = threading.Thread(target=_attend, args=(plugin, mark), daemon=True)
            attendant.start()
            self._running.append((plugin, attendant))

    def end(self) -> None:
        """End them all; the engine is done with them, or never asked."""
        for plugin, attendant in self._running:
            plugin.terminate()
            attendant.join()


def _attend(plugin: subprocess.Popen[bytes], mark: Path) -> None:
    port = plugin.stdout.readline().decode().strip() if plugin.stdout else ""
    if port:
        mark.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(mark, f"{plugin.pid} {port}\n")
    plugin.wait()
    mark.unlink(missing_ok=True)
