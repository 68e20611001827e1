"""A provider plugin that stands in for a cloud's own: the Pulumi protocol here, the cloud in `Resource` classes."""

import argparse
import asyncio
import os
import re
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import grpc  # type: ignore[import-untyped] # it ships no types
import grpc.aio  # type: ignore[import-untyped] # it ships no types
from pulumi.provider.experimental import provider
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import provider_pb2_grpc

from rehearsal.language_host.lifeline import end_with_parent
from rehearsal.plugins import executable
from rehearsal.provider import schema
from rehearsal.provider.schema import Problem
from rehearsal.provider.values import Plain, Properties, plain_map, wrap, wrap_like
from rehearsal.store import RealmError

WORKSPACE_VARIABLE = "UDS_REHEARSAL"

# Names of the properties that were given, kept among the outputs: only so can a later run see that one was taken away.
_GIVEN = "__given"


class Resource(ABC):
    """One resource type. Values are plain; what depends on inputs alone belongs in `check`, the rest in `create`.

    Raise RealmError with the cloud's own kind of message when it refuses.
    """

    args: ClassVar[tuple[str, str]]
    """Module and name of the SDK's argument class."""
    prefix: ClassVar[str] = ""
    """What the cloud's ids of this type begin with; a number follows."""
    replaces: ClassVar[frozenset[str]]
    """Properties that can't change in place."""

    def check(self, inputs: dict[str, Plain]) -> Iterable[Problem]:
        """What the cloud would refuse by these inputs alone; parts may be UNKNOWN. Types are right already."""
        del inputs
        return ()

    @abstractmethod
    def create(self, inputs: dict[str, Plain]) -> tuple[str, dict[str, Plain]]:
        """Make it: its id, and the outputs that aren't inputs."""

    @abstractmethod
    def read(self, number: int) -> tuple[dict[str, Plain], dict[str, Plain]] | None:
        """What is there: properties that were inputs as they are now, and outputs; None when it's gone."""

    @abstractmethod
    def update(self, number: int, old: dict[str, Plain], new: dict[str, Plain]) -> dict[str, Plain]:
        """Change it in place: the new outputs."""

    @abstractmethod
    def delete(self, number: int) -> None:
        """Remove it; no error when it's gone."""


Function = Callable[[dict[str, Plain]], dict[str, Plain]]
"""What a program may look up: arguments to result. Raises RealmError when the cloud refuses."""


class StandIn(provider.Provider):
    """The plugin. Cloud work runs in threads, so that machines boot at the same time."""

    def __init__(self, resources: Mapping[str, Resource], functions: Mapping[str, Function] | None = None) -> None:
        """`resources` and `functions` by token."""
        self._resources = resources
        self._functions = functions or {}

    def load(self) -> None:
        """Load the SDK's classes, which every run has to."""
        for resource in self._resources.values():
            schema.args_class(*resource.args)

    async def check(self, request: provider.CheckRequest) -> provider.CheckResponse:
        """Refuse what the SDK's classes or the cloud don't allow."""
        resource = self._resource(request.type)
        inputs = plain_map(request.new_inputs)
        # In a thread, since it may have to wait until the class is loaded.
        cls = await asyncio.to_thread(schema.args_class, *resource.args)
        found = list(schema.problems(cls, inputs)) or list(resource.check(inputs))
        failures = [provider.CheckFailure(path, reason) for path, reason in found]
        return provider.CheckResponse(inputs=request.new_inputs, failures=failures)

    async def diff(self, request: provider.DiffRequest) -> provider.DiffResponse:
        """Which properties change, and whether the resource must be replaced for it."""
        resource = self._resource(request.type)
        old, new = plain_map(request.old_state), plain_map(request.new_inputs)
        given = set(old.get(_GIVEN, new))
        ignored = {re.split(r"[.\[]", path, maxsplit=1)[0] for path in request.ignore_changes}
        detailed = {}
        for name in sorted((given | set(new)) - ignored):
            # `__defaults` and the like are no changes.
            if name.startswith("__") or old.get(name) == new.get(name):
                continue
            detailed[name] = provider.PropertyDiff(
                _kind(name not in given, name not in new, name in resource.replaces), input_diff=True
            )
        replaces = [name for name in detailed if name in resource.replaces]
        return provider.DiffResponse(
            changes=bool(detailed), replaces=replaces, diffs=list(detailed), detailed_diff=detailed
        )

    async def create(self, request: provider.CreateRequest) -> provider.CreateResponse:
        """Make the resource; in a preview, say what is known of it: its inputs."""
        resource = self._resource(request.type)
        if request.preview:
            return provider.CreateResponse(resource_id="", properties=request.properties)
        inputs = plain_map(request.properties)
        number, outputs = await asyncio.to_thread(resource.create, inputs)
        return provider.CreateResponse(resource_id=number, properties=_state(request.properties, outputs))

    async def read(self, request: provider.ReadRequest) -> provider.ReadResponse:
        """What is there now, for `pulumi refresh`."""
        found = await asyncio.to_thread(self._resource(request.type).read, self._number(request))
        if found is None:
            return provider.ReadResponse()
        current, outputs = found
        # What the cloud doesn't tell again (keys, user data) is taken to be as it was.
        changed = {name: wrap_like(value, request.inputs.get(name)) for name, value in current.items()}
        inputs = {**request.inputs, **{name: value for name, value in changed.items() if _counts(value, name, request)}}
        return provider.ReadResponse(resource_id=request.resource_id, properties=_state(inputs, outputs), inputs=inputs)

    async def update(self, request: provider.UpdateRequest) -> provider.UpdateResponse:
        """Change the resource in place."""
        old, new = plain_map(request.olds), plain_map(request.news)
        if request.preview:
            kept = {name: value for name, value in request.olds.items() if name not in old.get(_GIVEN, [])}
            return provider.UpdateResponse(properties={**kept, **request.news})
        resource = self._resource(request.type)
        outputs = await asyncio.to_thread(resource.update, self._number(request), old, new)
        return provider.UpdateResponse(properties=_state(request.news, outputs))

    async def delete(self, request: provider.DeleteRequest) -> None:
        """Remove the resource."""
        await asyncio.to_thread(self._resource(request.type).delete, self._number(request))

    async def invoke(self, request: provider.InvokeRequest) -> provider.InvokeResponse:
        """Look something up."""
        if request.tok not in self._functions:
            raise RealmError(f"{request.tok} can't be called in a rehearsal")
        found = self._functions[request.tok](plain_map(request.args))
        return provider.InvokeResponse({name: wrap(value) for name, value in found.items()})

    def _number(self, request: provider.ReadRequest | provider.UpdateRequest | provider.DeleteRequest) -> int:
        number = request.resource_id.removeprefix(self._resource(request.type).prefix)
        if not number.isdigit():
            raise RealmError(f"{request.resource_id!r} is not an id of this cloud")
        return int(number)

    def _resource(self, token: str) -> Resource:
        # The SDK takes the type from the URN, where the types of the parents stand before it.
        token = token.rpartition("$")[2]
        try:
            return self._resources[token]
        except KeyError:
            raise RealmError(f"{token} can't be rehearsed; known: {', '.join(sorted(self._resources))}") from None


def _counts(value: PropertyValue, name: str, request: provider.ReadRequest) -> bool:
    """Whether the cloud's value says something: not that what nobody asked for is at its default."""
    return name in request.inputs or value != request.properties.get(name)


def _kind(added: bool, removed: bool, replaces: bool) -> provider.PropertyDiffKind:
    kind = "ADD" if added else "DELETE" if removed else "UPDATE"
    return provider.PropertyDiffKind[f"{kind}_REPLACE" if replaces else kind]


def _state(inputs: Properties, outputs: Mapping[str, Plain]) -> Properties:
    """What Pulumi keeps: inputs as they came (secrets stay secret), outputs, and which is which."""
    given = sorted(name for name, value in inputs.items() if value.value is not None and not name.startswith("__"))
    computed = {name: wrap(value) for name, value in outputs.items() if value is not None and name not in given}
    return {**inputs, **computed, _GIVEN: wrap(given)}


class _Plainly(grpc.aio.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Shows a refusal as the one line that it is, without this program's stack."""

    async def intercept_service(
        self, continuation: Callable[[object], Awaitable[grpc.RpcMethodHandler]], handler_call_details: object
    ) -> grpc.RpcMethodHandler:
        """Wrap the method that a call goes to."""
        handler = await continuation(handler_call_details)

        async def call(request: object, context: grpc.aio.ServicerContext) -> object:
            try:
                return await handler.unary_unary(request, context)
            except Exception as error:
                # The SDK raises a new exception with the stack in its text; ours is the one that it was handling.
                refusal = error if isinstance(error, RealmError) else error.__context__
                if isinstance(refusal, RealmError):
                    await context.abort(grpc.StatusCode.UNKNOWN, str(refusal))
                raise

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def main(cloud: str, version: str, plugin: Callable[[Path], StandIn]) -> None:
    """The plugin's process: serve until the engine ends it. Ends at once, saying why, outside a rehearsal."""
    arguments = argparse.ArgumentParser(description=f"{cloud} in a rehearsal, for Pulumi")
    arguments.add_argument("engine", help="address of the Pulumi engine")
    # Pulumi adds its logging options when it runs verbosely.
    known, _ = arguments.parse_known_args()
    serve(known.engine, version, plugin(workspace(executable(cloud))))


def workspace(plugin: str) -> Path:
    """The rehearsal that this process belongs to; ends the process, saying why, if it belongs to none."""
    value = os.environ.get(WORKSPACE_VARIABLE, "")
    if not value or not Path(value).is_dir():
        sys.exit(
            f"{plugin}: this stands in for the cloud in a rehearsal only, and {WORKSPACE_VARIABLE}"
            " doesn't name one. Start a rehearsal with `make up`; for the real cloud, take it off PATH."
        )
    return Path(value)


def serve(engine: str, version: str, plugin: StandIn) -> None:
    """Answer the engine until it ends this process. Standard output carries the port and nothing else."""

    async def run() -> None:
        server = grpc.aio.server(interceptors=[_Plainly()], options=_GRPC_CHANNEL_OPTIONS)
        servicer = ProviderServicer([], version, plugin, engine_address=engine)
        provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        # A plugin that was started early has nothing to do yet.
        await asyncio.to_thread(plugin.load)
        await server.wait_for_termination()

    # The engine interrupts its plugins at the end, and waits for them; nothing is left to do then.
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(0))
    # An engine that was killed interrupts nobody, and nothing may be made any more that no engine will know of.
    end_with_parent(os.getppid())
    asyncio.run(run())
