"""Pulumi.yaml, the example stacks and `Settings` say the same."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from components.settings import PROJECT, AdminSettings, Settings, parse
from tests.unit.support import as_pulumi, configuration
from uds.certificates import KeyType, general_names, private_pem, self_signed

ROOT = Path(__file__).parents[2]
DECLARED: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["config"]
SCHEMA = Settings.model_json_schema()
STACK_FILES = sorted(ROOT.glob("Pulumi.*.yaml"))


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema, with what it refers to."""
    reference = schema.get("$ref", "").rsplit("/", 1)[-1]
    return {**SCHEMA["$defs"][reference], **schema} if reference else schema


def fields() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every field of every object: its section, its name and its schema."""
    for section, schema in SCHEMA["properties"].items():
        for name, field in resolved(schema).get("properties", {}).items():
            yield section, name, resolved(field)
    for name, field in AdminSettings.model_json_schema()["properties"].items():
        yield "admins", name, field


FIELDS = list(fields())

# What `uds init` and `uds cert` make in sections that people write.
MADE = {
    "database": ("password", "migrationPassword", "caCertificate", "certificate", "privateKey"),
    "application": ("certificate", "privateKey", "pendingPrivateKey"),
    "backup": ("publicKey", "privateKey"),
}


def certificate() -> dict[str, str]:
    """What `uds cert` makes."""
    key = KeyType.P256.new_key()
    certificate = self_signed(key, general_names(["application.test"]))
    return {"certificate": certificate.public_bytes(Encoding.PEM).decode(), "privateKey": private_pem(key)}


def test_the_project_is_the_one_that_the_settings_belong_to() -> None:
    assert yaml.safe_load((ROOT / "Pulumi.yaml").read_text())["name"] == PROJECT


def test_the_same_keys_are_declared_and_read() -> None:
    assert set(DECLARED) == set(SCHEMA["properties"])


@pytest.mark.parametrize("key", DECLARED)
def test_types_and_defaults_agree(key: str) -> None:
    declared, field = DECLARED[key], resolved(SCHEMA["properties"][key])
    assert declared["type"] == field["type"]
    if declared["type"] == "object":
        # Pulumi hands over an empty object then, and what is missing in it is named by its own key.
        assert declared["default"] == {}
    else:
        assert declared.get("default") == field.get("default")


@pytest.mark.parametrize("key", DECLARED)
def test_every_key_is_described_with_what_it_allows(key: str) -> None:
    description = DECLARED[key]["description"]
    for allowed in resolved(SCHEMA["properties"][key]).get("enum", []):
        assert allowed in description


@pytest.mark.parametrize(("section", "name", "field"), FIELDS, ids=[f"{section}.{name}" for section, name, _ in FIELDS])
def test_every_field_is_described_with_its_default_and_limits(section: str, name: str, field: dict[str, Any]) -> None:
    description = DECLARED[section]["description"]
    if section in ("deploy", "admins") or name in MADE.get(section, ()):
        # Named in a sentence: nobody writes these by hand.
        assert re.search(rf"\b{name}\b", description)
        return
    # What is said of a field ends where the next one begins.
    said = re.search(rf"\b{name}: ((?:(?!\b\w+: ).)+)", description)
    assert said
    if field.get("default") or field.get("default") is False:
        assert f"(default {str(field['default']).lower()}" in said[1]
    if "minimum" in field:
        assert f"{field['minimum']} to {field['maximum']}" in said[1]


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
def test_an_example_stack_needs_nothing_but_its_secrets(path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(path.read_text())["config"]
    own = {key.removeprefix(f"{PROJECT}:"): value for key, value in config.items() if key.startswith(f"{PROJECT}:")}
    made = configuration()
    database = {**own.get("database", {}), **made["database"]}
    application = {**own.get("application", {}), **certificate()}
    settings = parse(
        as_pulumi(
            {
                "ssh": made["ssh"],
                **own,
                "deploy": made["deploy"],
                "backup": {**own.get("backup", {}), **made["backup"]},
                "database": database,
                "application": application,
            }
        )
    )
    assert settings.region == config.get(f"{settings.cloud}:region", settings.region)


def test_there_is_an_example_for_every_cloud_and_the_rehearsal() -> None:
    assert {"Pulumi.linode.yaml", "Pulumi.aws.yaml", "Pulumi.local.yaml"} <= {path.name for path in STACK_FILES}


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
def test_an_example_stack_comes_without_anyones_keys_or_addresses(path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(path.read_text())["config"]
    assert not {f"{PROJECT}:deploy", f"{PROJECT}:admins"} & set(config)
    # RFC 5737 and RFC 3849.
    sources = config.get(f"{PROJECT}:ssh", {}).get("allowedSources", [])
    assert all(source.startswith(("198.51.100.", "203.0.113.", "192.0.2.", "2001:db8:")) for source in sources)
