"""Run one Pulumi program: a child process of the language host.

The process is started before it is needed and imports the SDK meanwhile. What to run comes as JSON on standard input:
the configuration holds secrets, so it goes neither into the environment nor onto a command line.

Usage: ``python -m rehearsal.language_host.program PARENT``.
"""

import asyncio
import json
import logging
import os
import runpy
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped] # it ships no types
import pulumi
import pulumi.runtime
from pulumi.runtime.proto import engine_pb2

from rehearsal.language_host.lifeline import end_with_parent

# The exit status after an error that was shown to the user already: the language host then adds no message of its own.
EXIT_ERROR_SHOWN = 32


def main() -> None:
    """Wait for a program on standard input, run it, and exit with 0, with its own status, or ``EXIT_ERROR_SHOWN``."""
    # Interrupted, a program ends without a KeyboardInterrupt traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent(int(sys.argv[1]))
    request = sys.stdin.read()
    if not request:  # the language host ended without having had a program to run
        return
    status = _run(json.loads(request))
    # Taking the interpreter apart, with all that the program imported, would take 0.1 s of every run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(request: dict[str, Any]) -> int:
    pulumi.runtime.set_all_config(request["config"], request["config_secret_keys"])
    pulumi.runtime.configure(
        pulumi.runtime.Settings(
            project=request["project"],
            stack=request["stack"],
            monitor=request["monitor"],
            engine=request["engine"],
            parallel=request["parallel"],
            dry_run=request["dry_run"],
            organization=request["organization"],
            root_directory=request["root_directory"],
        )
    )
    debug_messages = _send_debug_messages_in_passing()
    os.chdir(request["pwd"])
    program = request["program"]
    sys.argv = [program, *request["args"]]

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Each resource that is being registered holds a thread while the engine works on it.
    loop.set_default_executor(ThreadPoolExecutor(max_workers=4 * max(request["parallel"], 1)))
    # When one resource fails, the futures of those that wait for it are never read: asyncio would complain of each.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def entry() -> None:
        runpy.run_path(program, run_name="__main__")

    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(entry))
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        pulumi.log.error(str(error.code))
        return EXIT_ERROR_SHOWN
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        return EXIT_ERROR_SHOWN
    except Exception as error:
        pulumi.log.error("The program failed:\n" + _traceback_from(error, Path(program).absolute()))
        return EXIT_ERROR_SHOWN
    finally:
        for message in debug_messages:
            message.exception()  # waits until it has arrived
    return 0


def _send_debug_messages_in_passing() -> list[grpc.Future]:
    """Have the program go on while a debug message is on its way, and return those that are.

    The SDK sends several for every resource, and waits for the engine to take each: an eighth of a run that has nothing
    to do. What people are to see still arrives before the program goes on.
    """
    sent: list[grpc.Future] = []
    engine: Any = pulumi.runtime.settings.get_engine()
    log = engine.Log

    def send(message: engine_pb2.LogRequest) -> object:
        if message.severity != engine_pb2.DEBUG:
            return log(message)
        sent.append(log.future(message))
        return None

    engine.Log = send
    return sent


def _traceback_from(error: Exception, program: Path) -> str:
    """Format the error as Python does, but without the frames above the program's own first one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next((i for i, frame in enumerate(frames) if Path(frame.filename).is_relative_to(program)), 0)
    return "".join(traceback.format_exception(error, limit=own - len(frames)))


if __name__ == "__main__":
    main()
