"""Run a policy pack or a provider plugin: a child process of the language host.

Usage: ``python -m rehearsal.language_host.plugin PARENT analyzer|resource DIRECTORY [ARGUMENTS...]``.
A policy pack's configuration, which may hold secrets, comes as JSON on standard input: variables to add to the
environment before the pack starts (where other processes can't read them, unlike those it is started with).
"""

import importlib
import json
import os
import runpy
import signal
import sys

from rehearsal.language_host.lifeline import end_with_parent


def main() -> None:
    """Become the plugin, ending quietly when the engine interrupts it or the language host is gone."""
    parent, kind, directory, *arguments = sys.argv[1:]
    # Python's own handler would end every plugin with a KeyboardInterrupt traceback in the user's face.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent(int(parent))
    if kind == "analyzer":
        importlib.import_module("pulumi")  # while the engine prepares: it takes half a second
        environment = sys.stdin.read()
        if not environment:  # the engine ended without having needed the pack
            return
        os.environ.update(json.loads(environment))
        # The SDK's runner of policy packs takes the engine's address and the pack's directory.
        sys.argv[1:] = [*arguments, directory]
        runpy.run_module("pulumi.policy", run_name="__main__", alter_sys=True)
    else:
        sys.argv = [directory, *arguments]
        runpy.run_path(directory, run_name="__main__")


if __name__ == "__main__":
    main()
