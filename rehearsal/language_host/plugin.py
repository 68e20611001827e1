"""Run a policy pack or a provider plugin: a child process of the language host.

Usage: ``python -m rehearsal.language_host.plugin PARENT analyzer|resource DIRECTORY [ARGUMENTS...]``.
"""

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
        # The SDK's runner of policy packs takes the engine's address and the pack's directory.
        sys.argv[1:] = [*arguments, directory]
        runpy.run_module("pulumi.policy", run_name="__main__", alter_sys=True)
    else:
        sys.argv = [directory, *arguments]
        runpy.run_path(directory, run_name="__main__")


if __name__ == "__main__":
    main()
