"""Serve Pulumi's language runtime protocol: ``pulumi-language-python [flags] ENGINE_ADDRESS``."""

# The protocol gives the methods their names and arguments, and this start must import nothing that it may not need:
# ruff: noqa: ARG002, N802, PLC0415

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc  # type: ignore[import-untyped] # it ships no types

from rehearsal.language_host.early import EarlyPlugins
from rehearsal.language_host.lifeline import end_with_parent

# Each program and each plugin that runs holds one worker.
_WORKERS = 32
# Configuration and options of a stack can be larger than gRPC's own limit of 4 MiB.
_MAX_MESSAGE = 400 * 1024 * 1024
_OPTIONS = [("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", _MAX_MESSAGE)]


def _skip_the_sdk() -> None:
    """Let ``pulumi.runtime.proto`` be imported without the SDK around it, which takes 0.4 s at every start.

    A package's ``__init__`` runs when a module inside it is imported; an empty package in its place keeps only the
    path. This process needs nothing of the SDK but the messages; the programs have a process of their own.
    """
    spec = importlib.util.find_spec("pulumi")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("pulumi-language-python (rehearsal): the Python package pulumi is missing: run `uv sync`")
    path = Path(spec.submodule_search_locations[0])
    for name, folder in (
        ("pulumi", path),
        ("pulumi.runtime", path / "runtime"),
        ("pulumi.runtime.proto", path / "runtime" / "proto"),
    ):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


if not TYPE_CHECKING:
    _skip_the_sdk()

from google.protobuf import empty_pb2  # type: ignore[import-untyped] # noqa: E402 - ships no types; must come late
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2  # noqa: E402 - the empty packages must be there first

from rehearsal.language_host import policy_pack  # noqa: E402 - likewise


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """The part of the protocol that previews, updates, refreshes, destroys, policy packs and plugins use."""

    def __init__(self, engine_address: str) -> None:
        """Start the process of the first program at once, so that it imports the SDK while the engine prepares."""
        self._engine_address = engine_address
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._waiting: subprocess.Popen[bytes] | None = self._start_program()

    def _start(self, command: list[str], **options: object) -> subprocess.Popen[bytes]:
        with self._lock:
            child = subprocess.Popen([sys.executable, "-u", "-P", "-m", *command], bufsize=0, **options)  # type: ignore[call-overload] # options differ by kind of child
            self._children.add(child)
        return child  # type: ignore[no-any-return] # follows from the line above

    def _start_program(self) -> subprocess.Popen[bytes]:
        # What the program prints goes to this process's own standard output: the engine shows it.
        return self._start(["rehearsal.language_host.program", str(os.getpid())], stdin=subprocess.PIPE)

    def _finish(self, child: subprocess.Popen[bytes]) -> int:
        status = child.wait()
        with self._lock:
            self._children.discard(child)
        return status

    def end_children(self) -> None:
        """End every running program and plugin; they take it quietly."""
        with self._lock:
            for child in self._children:
                child.terminate()

    def Handshake(
        self, request: language_pb2.LanguageHandshakeRequest, context: grpc.ServicerContext
    ) -> language_pb2.LanguageHandshakeResponse:
        """Take the engine's address, which is the one on the command line."""
        self._engine_address = request.engine_address or self._engine_address
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: empty_pb2.Empty, context: grpc.ServicerContext) -> plugin_pb2.PluginInfo:
        """Tell the version, which is the SDK's."""
        from importlib.metadata import version

        return plugin_pb2.PluginInfo(version=version("pulumi"))

    def GetRequiredPlugins(
        self, request: language_pb2.GetRequiredPluginsRequest, context: grpc.ServicerContext
    ) -> language_pb2.GetRequiredPluginsResponse:
        """Name none: the engine looks plugins up when they are first used."""
        return language_pb2.GetRequiredPluginsResponse()

    def GetRequiredPackages(
        self, request: language_pb2.GetRequiredPackagesRequest, context: grpc.ServicerContext
    ) -> language_pb2.GetRequiredPackagesResponse:
        """Name none: the engine looks plugins up when they are first used."""
        return language_pb2.GetRequiredPackagesResponse()

    def InstallDependencies(
        self, request: language_pb2.InstallDependenciesRequest, context: grpc.ServicerContext
    ) -> Iterator[language_pb2.InstallDependenciesResponse]:
        """Install nothing: everything runs in the project's own environment, which ``uv sync`` keeps."""
        return iter(())

    def RuntimeOptionsPrompts(
        self, request: language_pb2.RuntimeOptionsRequest, context: grpc.ServicerContext
    ) -> language_pb2.RuntimeOptionsResponse:
        """Ask nothing: there is one interpreter."""
        return language_pb2.RuntimeOptionsResponse()

    def About(self, request: language_pb2.AboutRequest, context: grpc.ServicerContext) -> language_pb2.AboutResponse:
        """Name the interpreter that programs run with."""
        return language_pb2.AboutResponse(executable=sys.executable, version=sys.version.split()[0])

    def GetProgramDependencies(
        self, request: language_pb2.GetProgramDependenciesRequest, context: grpc.ServicerContext
    ) -> language_pb2.GetProgramDependenciesResponse:
        """List the packages of the environment (for ``pulumi about``)."""
        from importlib.metadata import distributions

        return language_pb2.GetProgramDependenciesResponse(
            dependencies=[language_pb2.DependencyInfo(name=d.name, version=d.version) for d in distributions()]
        )

    def Run(self, request: language_pb2.RunRequest, context: grpc.ServicerContext) -> language_pb2.RunResponse:
        """Run a program to its end."""
        with self._lock:
            child, self._waiting = self._waiting, None
        if child is None:
            child = self._start_program()
        context.add_callback(child.terminate)
        settings = {
            "project": request.project,
            "stack": request.stack,
            "organization": request.organization,
            "monitor": request.monitor_address,
            "engine": self._engine_address,
            "parallel": request.parallel,
            "dry_run": request.dryRun,
            "config": dict(request.config),
            "config_secret_keys": list(request.configSecretKeys),
            "root_directory": request.info.root_directory,
            "pwd": request.pwd,
            "program": str(Path(request.info.program_directory, request.info.entry_point)),
            "args": list(request.args),
        }
        with contextlib.suppress(BrokenPipeError):  # it ended early; its status says how
            child.communicate(json.dumps(settings).encode())
        return _run_response(self._finish(child))

    def RunPlugin(
        self, request: language_pb2.RunPluginRequest, context: grpc.ServicerContext
    ) -> Iterator[language_pb2.RunPluginResponse]:
        """Run a policy pack or a provider plugin, passing on what it prints and how it ends."""
        is_pack = request.kind == "analyzer"
        child = self._start(
            [
                "rehearsal.language_host.plugin",
                str(os.getpid()),
                request.kind,
                request.info.program_directory,
                *request.args,
            ],
            cwd=request.info.program_directory if is_pack else request.pwd,
            env=dict(entry.partition("=")[::2] for entry in request.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        context.add_callback(child.terminate)
        stdin: IO[bytes] = child.stdin  # type: ignore[assignment] # a pipe, as asked for above
        stdout: IO[bytes] = child.stdout  # type: ignore[assignment] # likewise
        if not is_pack:
            stdin.close()
            yield from self._output(child)
            return

        configured = threading.Event()

        def start(environment: dict[str, str]) -> int:
            with contextlib.suppress(BrokenPipeError):  # it ended early; what it printed says why
                stdin.write(json.dumps(environment).encode())
                stdin.close()
            try:
                return int(stdout.readline() or 0)  # unbuffered: nothing after the line is taken
            finally:
                configured.set()

        context.add_callback(configured.set)
        proxy = policy_pack.PolicyPackProxy(start, _OPTIONS)
        yield language_pb2.RunPluginResponse(stdout=f"{proxy.port}\n".encode())
        configured.wait()
        yield from self._output(child)
        proxy.stop()

    def _output(self, child: subprocess.Popen[bytes]) -> Iterator[language_pb2.RunPluginResponse]:
        output: queue.Queue[language_pb2.RunPluginResponse | None] = queue.Queue()

        def forward(stream: IO[bytes], wrap: Callable[[bytes], language_pb2.RunPluginResponse]) -> None:
            while chunk := os.read(stream.fileno(), 65536):
                output.put(wrap(chunk))
            output.put(None)

        for stream, wrap in (
            (child.stdout, lambda chunk: language_pb2.RunPluginResponse(stdout=chunk)),
            (child.stderr, lambda chunk: language_pb2.RunPluginResponse(stderr=chunk)),
        ):
            threading.Thread(target=forward, args=(stream, wrap), daemon=True).start()
        open_streams = 2
        while open_streams:
            response = output.get()
            if response is None:
                open_streams -= 1
            else:
                yield response
        yield language_pb2.RunPluginResponse(exitcode=self._finish(child))

    def Cancel(self, request: empty_pb2.Empty, context: grpc.ServicerContext) -> empty_pb2.Empty:
        """End what runs."""
        self.end_children()
        return empty_pb2.Empty()


def _run_response(status: int) -> language_pb2.RunResponse:
    if status == 0:
        return language_pb2.RunResponse()
    # The same number as in `program`, whose import would bring the whole SDK in. A negative status is a signal: it is
    # ours or the engine's, and the user knows.
    if status in (32, -signal.SIGINT, -signal.SIGTERM):
        return language_pb2.RunResponse(bail=True)
    return language_pb2.RunResponse(error=f"The program ended with status {status}.")


def main() -> None:
    """Serve until the engine interrupts this process or is gone."""
    workspace = Path(os.environ.get("UDS_REHEARSAL", "/nonexistent"))
    if not workspace.is_dir():
        sys.exit(
            "pulumi-language-python (rehearsal): this language host only serves a rehearsal, "
            "and UDS_REHEARSAL does not name the directory of one"
        )
    if len(sys.argv) < 2:
        sys.exit("pulumi-language-python (rehearsal): the address of the engine is missing: Pulumi starts this program")
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    end_with_parent(os.getppid(), done.set)

    host = LanguageHost(sys.argv[-1])
    early = EarlyPlugins(workspace, sys.argv[-1])
    server = grpc.server(
        ThreadPoolExecutor(max_workers=_WORKERS),
        options=_OPTIONS,
    )
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)  # the engine reads the port from the first line
    done.wait()
    host.end_children()
    early.end()
    server.stop(grace=None)
    os._exit(0)  # workers may still wait for children that were told to end


if __name__ == "__main__":
    main()
