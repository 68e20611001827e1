"""Stand between the engine and a policy pack until the pack's process can start.

The engine tells a pack its stack only after it has connected, but a pack reads project, stack and configuration from
its environment when it starts. So the engine connects to this proxy, which waits for that call, and then passes
every other one on as it is.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc  # type: ignore[import-untyped] # it ships no types
from pulumi.runtime.proto import analyzer_pb2

# Calls of the engine to one pack that may run at the same time.
_WORKERS = 16


def pack_environment(request: analyzer_pb2.AnalyzerStackConfigureRequest) -> dict[str, str]:
    """Return what Pulumi's own language host tells a policy pack about the stack."""
    return {
        "PULUMI_ORGANIZATION": request.organization,
        "PULUMI_PROJECT": request.project,
        "PULUMI_STACK": request.stack,
        "PULUMI_DRY_RUN": "true" if request.dry_run else "false",
        "PULUMI_CONFIG": json.dumps(dict(request.config)),
    }


class PolicyPackError(Exception):
    """A policy pack can't be used."""


class PolicyPackProxy(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
    """A server for the engine that is a client of the pack."""

    def __init__(self, start: Callable[[dict[str, str]], int], options: list[tuple[str, int]]) -> None:
        """Serve on ``port``; ``start`` gets the pack's environment, once, and returns the port that the pack serves
        (0: it ended)."""
        self._start = start
        self._options = options
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._server = grpc.server(ThreadPoolExecutor(_WORKERS), handlers=[self], options=options)
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        """End both connections."""
        self._server.stop(grace=None)
        if self._channel is not None:
            self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Choose how one call is answered."""
        method = handler_call_details.method

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if method.endswith("/Handshake"):
                return b""  # an AnalyzerHandshakeResponse has no fields
            environment: dict[str, str] = {}
            if method.endswith("/ConfigureStack"):
                environment = pack_environment(analyzer_pb2.AnalyzerStackConfigureRequest.FromString(request))
            try:
                reply: bytes = self._connect(environment).unary_unary(method)(request)
            except PolicyPackError as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            return reply

        return grpc.unary_unary_rpc_method_handler(answer)

    def _connect(self, environment: dict[str, str]) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                port = self._start(environment)
                if port == 0:
                    raise PolicyPackError("the policy pack ended before it was ready; its own message says why")
                self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=self._options)
            return self._channel
