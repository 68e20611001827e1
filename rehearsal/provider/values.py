"""Between Pulumi's property values and plain Python ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from pulumi.provider.experimental.property_value import PropertyValue

Plain = Any
"""None, bool, int, float, str, list, dict; what a preview can't know is the string `pulumi.runtime.rpc.UNKNOWN`."""

Properties = dict[str, PropertyValue]


def plain(value: PropertyValue) -> Plain:
    """The value without secretness and dependencies; whole numbers as int."""
    inner = value.value
    if isinstance(inner, str | bool) or inner is None:
        return inner
    if isinstance(inner, float):
        return int(inner) if inner.is_integer() else inner
    if isinstance(inner, Mapping):
        return {key: plain(item) for key, item in inner.items()}
    if isinstance(inner, Sequence):
        return [plain(item) for item in inner if isinstance(item, PropertyValue)]
    raise TypeError(f"a {value.type.value} is not allowed here")


def plain_map(properties: Properties) -> dict[str, Plain]:
    """`plain` of each property; properties without a value are left out, as Pulumi itself does."""
    values = {key: plain(value) for key, value in properties.items()}
    return {key: value for key, value in values.items() if value is not None}


def wrap(value: Plain) -> PropertyValue:
    """A property value of a plain one; not secret."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return PropertyValue(value)
    if isinstance(value, int | float):
        return PropertyValue(float(value))
    if isinstance(value, Mapping):
        return PropertyValue({key: wrap(item) for key, item in value.items()})
    return PropertyValue([wrap(item) for item in value])


def wrap_like(value: Plain, old: PropertyValue | None) -> PropertyValue:
    """`wrap`, but what was secret anywhere inside stays so."""
    new = wrap(value)
    return new.with_secret(True) if old is not None and old.contains_secret() else new
