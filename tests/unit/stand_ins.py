"""What the tests of both clouds' plugins ask them, in the engine's own words."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pulumi.provider.experimental import provider
from pulumi.provider.experimental.property_value import PropertyValue

from rehearsal.provider.base import StandIn
from rehearsal.provider.values import wrap


def properties(values: Mapping[str, Any]) -> dict[str, PropertyValue]:
    """A resource's inputs, as the engine hands them over."""
    return {key: value if isinstance(value, PropertyValue) else wrap(value) for key, value in values.items()}


def refusals(plugin: StandIn, urn: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    """What `check` has against these inputs: why, by the property."""
    response = asyncio.run(plugin.check(provider.CheckRequest(urn, {}, properties(inputs), b"")))
    return {failure.property: failure.reason for failure in response.failures or []}
