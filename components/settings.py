"""Configuration -> validated, typed settings.

Everything that a stack file may say is a field here, and nothing else in the program reads `pulumi.Config`. A mistake
is reported before anything is created, all mistakes at once, each with its key, its value (unless it could be a
secret) and what is allowed.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from components.catalogue import DEFAULT_SIZES, REGIONS, SPLIT_NETWORKS
from components.values import (
    AbsolutePath,
    AdminName,
    Certificates,
    DatabaseName,
    HostName,
    MailAddress,
    Package,
    PasswordHash,
    PublicKey,
    Recipient,
    Secret,
    Source,
    SshPrivateKey,
    TimeZone,
    Whole,
    belongs_together,
    key_material,
    one_pair,
    parse_network,
)

PROJECT = "user-data-security"
PROJECT_FOLDER = Path(__file__).parent.parent

# The automation's account, made at first boot. Its name is the same everywhere, so no other part has to ask for it.
DEPLOY_USER = "deploy"

# Numbers in the private network, below the application servers', so that these can grow in number.
DATABASE_NUMBER = 5
BACKUP_NUMBER = 6

# Settings whose values no message may show.
_SECRET_NAME = re.compile(r"password|privateKey|token|webhook", re.I)
_SECRET_VALUE = re.compile(r"PRIVATE KEY|SECRET-KEY", re.I)


class CloudName(StrEnum):
    """The clouds that a stack can be on."""

    LINODE = "linode"
    AWS = "aws"


class SettingsError(Exception):
    """The stack's configuration can't be used. The message has one line a mistake."""


class _Section(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        # An error must never carry a value by itself: `describe` decides what may be shown.
        hide_input_in_errors=True,
        populate_by_name=True,
        strict=False,
    )


class NetworkSettings(_Section):
    """The private network of the stack."""

    cidr: Annotated[IPv4Network, BeforeValidator(parse_network)] = IPv4Network("10.20.0.0/24")

    @field_validator("cidr")
    @classmethod
    def _private(cls, cidr: IPv4Network) -> IPv4Network:
        if not any(cidr.subnet_of(IPv4Network(block)) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")):
            raise ValueError("is not private; allowed is a network in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16")
        if cidr.overlaps(IPv4Network("192.168.128.0/17")):
            # Linode's old private network: every customer of the data centre reaches it.
            raise ValueError(
                "overlaps 192.168.128.0/17, which Linode shares between customers; allowed is any other private network"
            )
        if not 16 <= cidr.prefixlen <= 25:
            raise ValueError("has the wrong size; allowed is a prefix from /16 to /25")
        return cidr

    def address(self, number: int) -> IPv4Address:
        """The private server's address with this number. Clouds keep a subnet's first four and last for themselves."""
        return self.cidr[number]


class SshSettings(_Section):
    """Who may reach SSH from outside."""

    # A rule of Linode's firewall holds no more.
    allowed_sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=255)]
    allow_anywhere: bool = False

    @model_validator(mode="after")
    def _not_the_world(self) -> Self:
        for network in self.allowed_sources:
            # Shorter than this is a region of the internet, not an office.
            if not self.allow_anywhere and network.prefixlen < (8 if network.version == 4 else 19):
                raise ValueError(
                    f"allowedSources: {network} lets the whole world try SSH; name your own addresses, "
                    "or set ssh.allowAnywhere to true if you really mean it"
                )
        return self

    @property
    def operators(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that may reach SSH from outside, none of them inside another."""
        v4 = [source for source in self.allowed_sources if isinstance(source, IPv4Network)]
        v6 = [source for source in self.allowed_sources if isinstance(source, IPv6Network)]
        return (*collapse_addresses(v4), *collapse_addresses(v6))


class AppSettings(_Section):
    """The application servers."""

    count: Annotated[Whole, Field(ge=1, le=50)] = 1
    size: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")] | None = None
    packages: tuple[Package, ...] = ()


class DatabaseSettings(_Section):
    """The database server and the one database that the application uses. `uds init` makes the passwords and keys.

    `certificate` (PEM) is the server's, signed by `ca_certificate`, whose key stays with the operator.
    `migration_user` is a second user that may change the database's structure; without it there is none.
    """

    size: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")] | None = None
    port: Annotated[Whole, Field(ge=1024, le=65535)] = 3306
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")] = "production"
    user: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")] = "application"
    packages: tuple[Package, ...] = ()
    password: Secret
    migration_user: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")] | None = None
    migration_password: Secret | None = None
    ca_certificate: Certificates
    certificate: Certificates
    private_key: Secret

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        belongs_together("certificate", self.certificate, self.private_key)
        if self.migration_user == self.user:
            raise ValueError(f"migrationUser: {self.user} is the application's user; allowed is any other name")
        if (self.migration_user is None) != (self.migration_password is None):
            raise ValueError("migrationUser and migrationPassword belong together; run `uds init` to make the password")
        return self


class ApplicationSettings(_Section):
    """The application itself: what runs on the application servers, as the locked account `application`.

    `release` is a folder or a .tar.gz archive, relative to the project, that is delivered as it is; `command` is how to
    start it (its first word below the release, or an absolute path). Without them, account and folders are ready for a
    deployment of one's own. `health_path` must answer with a status below 400 on HTTPS after a start. `certificate`
    (PEM, the chain below it) and `private_key` are for HTTPS; `settings` go into its configuration file as they are.
    `pending_private_key` waits for its certificate, with the request for that below it: no server gets it.
    """

    release: str | None = None
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    health_path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/._-]*$")] = "/"
    certificate: Certificates | None = None
    private_key: Secret | None = None
    pending_private_key: Secret | None = None
    settings: dict[str, str | int | float | bool] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.release is None) != (self.command is None):
            raise ValueError("release and command belong together: what is delivered, and how it is started")
        if self.release is not None and not (PROJECT_FOLDER / self.release).exists():
            raise ValueError(f"release: {self.release} does not exist; allowed is a folder or .tar.gz of the project")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and privateKey belong together; run `uds cert` to make or install both")
        if self.release is not None and self.certificate is None:
            raise ValueError("release needs a certificate for HTTPS; run `uds cert self-signed` or `uds cert csr`")
        if self.certificate is not None and self.private_key is not None:
            belongs_together("certificate", self.certificate, self.private_key)
        return self


class BackupSettings(_Section):
    """The nightly backups, and where they are kept: on a `server`, in a `bucket`, or both. Without any there are none.

    `recipients` are age's public keys: each of them opens every backup made while it is here. `databases` are saved
    beside the application's, `paths` (files and folders of the database server) in an archive. `uds init` makes the
    first recipient, whose identity stays with the operator, and the key with which the database server adds backups to
    the backup server. In the bucket nobody can change or delete a backup for `bucket_days`; then it goes. `region` is
    where server and bucket are, where that isn't the stack's own region.
    """

    server: bool = True
    bucket: bool = False
    region: str | None = None
    # Not fewer than the guide keeps; more than ten years would be a mistake that can't be taken back.
    bucket_days: Annotated[Whole, Field(ge=7, le=3650)] = 35
    size: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")] | None = None
    recipients: tuple[Recipient, ...] = ()
    databases: tuple[DatabaseName, ...] = ()
    paths: tuple[AbsolutePath, ...] = ()
    public_key: PublicKey | None = None
    private_key: SshPrivateKey | None = None

    @field_validator("recipients", "databases", "paths")
    @classmethod
    def _once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value, count in Counter(values).items():
            if count > 1:
                raise ValueError(f"has {value} {count} times; allowed is once")
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        needed: dict[str, object] = {}
        if self.server:
            needed |= {"publicKey": self.public_key, "privateKey": self.private_key}
        if self.are_made:
            needed["recipients"] = self.recipients
        for name, value in needed.items():
            if not value:
                off = " and ".join(f"backup.{key}" for key in ("server", "bucket") if getattr(self, key))
                raise ValueError(f"{name} is missing; run `uds init`, or set {off} to false to have no backups")
        if self.server and self.public_key and self.private_key:
            one_pair(self.public_key, self.private_key)
        return self

    @property
    def are_made(self) -> bool:
        """Whether there is anywhere to keep them."""
        return self.server or self.bucket


class DeploySettings(_Section):
    """The automation's account. `uds init` makes all of it."""

    public_key: PublicKey
    private_key: SshPrivateKey
    sudo_password: Secret
    sudo_password_hash: PasswordHash
    bootstrap_seed: Secret

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        one_pair(self.public_key, self.private_key)
        return self


class AdminSettings(_Section):
    """A person who may log in. `uds admin add` makes all of it."""

    public_keys: Annotated[tuple[PublicKey, ...], Field(min_length=1)]
    password_hash: PasswordHash
    totp_secret: Secret
    scratch_codes: Annotated[tuple[SecretStr, ...], Field(min_length=1, max_length=10)]

    @field_validator("totp_secret")
    @classmethod
    def _is_base32(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[A-Z2-7]{26,}", value.get_secret_value()):
            raise ValueError(
                "is not a base32 secret of at least 128 bits (RFC 4226, section 4); run `uds admin add` to make one"
            )
        return value

    @field_validator("scratch_codes")
    @classmethod
    def _are_codes(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(re.fullmatch(r"[1-9]\d{7}", code.get_secret_value()) for code in value):
            raise ValueError("has a code that is not eight digits; run `uds admin add` to make them")
        return value


class EmailSettings(_Section):
    """A mail server that alerts go through, always inside TLS: from the beginning (`tls`), or from STARTTLS on."""

    host: HostName
    port: Annotated[Whole, Field(ge=1, le=65535)]
    security: Literal["starttls", "tls"]
    user: str
    password: Secret
    sender: MailAddress
    recipients: Annotated[tuple[MailAddress, ...], Field(min_length=1)]


class SlackSettings(_Section):
    """An incoming webhook of Slack, whose address is a secret."""

    webhook: Secret

    @field_validator("webhook")
    @classmethod
    def _is_https(cls, webhook: SecretStr) -> SecretStr:
        if not re.fullmatch(r"https://[A-Za-z0-9.:\[\]-]+/[!-~]*", webhook.get_secret_value()):
            raise ValueError("is not the address of a webhook; allowed is https://HOST/PATH, as Slack shows it")
        return webhook


class PushoverSettings(_Section):
    """An application (`token`) and a user or group (`user`) of Pushover."""

    token: Secret
    user: Secret


class AlertSettings(_Section):
    """Where alerts go, any number of channels at once, and which logins raise none.

    Logins from `allowed_sources` are written to the journal only. `ca_certificate` (PEM) is an authority of one's own
    that the channels' certificates may be signed by, beside those that everybody trusts.
    """

    email: EmailSettings | None = None
    slack: SlackSettings | None = None
    pushover: PushoverSettings | None = None
    allowed_sources: tuple[Source, ...] = ()
    timezone: TimeZone = "UTC"
    ca_certificate: Certificates | None = None

    @property
    def has_channel(self) -> bool:
        """Whether anybody would hear of an alert."""
        return bool(self.email or self.slack or self.pushover)


class Settings(_Section):
    """All that a stack's configuration says."""

    cloud: CloudName
    region: str
    image: Literal["debian13", "debian12", "ubuntu24.04"] = "debian13"
    # The cloud's own number of an image of that system, where it isn't to be the newest one.
    image_id: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._/-]+)?$")] = ""
    network: NetworkSettings = NetworkSettings()
    ssh: SshSettings
    app: AppSettings = AppSettings()
    database: DatabaseSettings
    application: ApplicationSettings = ApplicationSettings()
    alerts: AlertSettings = AlertSettings()
    deploy: DeploySettings
    # Checked as well where it is left out, so that what is missing is told.
    backup: Annotated[BackupSettings, Field(default_factory=dict, validate_default=True)]
    admins: dict[AdminName, AdminSettings] = {}

    # Checked field by field, so that a mistake elsewhere hides none of these. `info.data` has the fields above that are
    # right by themselves.
    @field_validator("region")
    @classmethod
    def _of_the_cloud(cls, region: str, info: ValidationInfo) -> str:
        _check_region(region, info.data.get("cloud"))
        return region

    @field_validator("ssh")
    @classmethod
    def _from_outside(cls, ssh: SshSettings, info: ValidationInfo) -> SshSettings:
        network = info.data.get("network")
        for source in ssh.allowed_sources:
            if network and source.version == 4 and source.prefixlen and source.overlaps(network.cidr):
                raise ValueError(
                    f"allowedSources: {source} overlaps network.cidr ({network.cidr}); allowed are addresses "
                    "outside the private network, since its servers are reached through the first application server"
                )
        return ssh

    @field_validator("backup")
    @classmethod
    def _of_this_stack(cls, backup: BackupSettings, info: ValidationInfo) -> BackupSettings:
        cloud, database = info.data.get("cloud"), info.data.get("database")
        if backup.region is not None:
            try:
                _check_region(backup.region, cloud)
            except ValueError as error:
                raise ValueError(f"region: {backup.region} {error}") from None
            if backup.region == info.data.get("region"):
                raise ValueError(f"region: {backup.region} is the stack's own; allowed is another one, or none")
            if not backup.are_made:
                raise ValueError("region is for the backup server and the bucket; allowed only with one of them")
        if backup.bucket and cloud is CloudName.LINODE:
            # Its keys are for reading and writing, or for reading: whoever breaks in could delete every backup.
            raise ValueError(
                "bucket: true is for stacks on aws; allowed on linode is false, since its object storage has no keys "
                "that only add"
            )
        if database and database.name in backup.databases:
            raise ValueError(
                f"databases: {database.name} is saved as the application's; allowed are other databases of the server"
            )
        return backup

    @field_validator("admins")
    @classmethod
    def _own_keys(cls, admins: dict[str, AdminSettings], info: ValidationInfo) -> dict[str, AdminSettings]:
        deploy = info.data.get("deploy")
        owners = {key_material(deploy.public_key): f"the account {DEPLOY_USER}"} if deploy else {}
        for name, admin in admins.items():
            for key in admin.public_keys:
                owner = owners.setdefault(key_material(key), name)
                if owner != name:
                    raise ValueError(
                        f"{name}.publicKeys: a key belongs to {owner} already; everyone has a key of their own"
                    )
        return admins

    @property
    def private_subnet(self) -> IPv4Network:
        """Where the servers stand that the world can't address: the lower half of the network, or all of it."""
        return self._half(0)

    @property
    def public_subnet(self) -> IPv4Network:
        """Where the application servers stand: the upper half of the network, or all of it."""
        return self._half(1)

    @cached_property
    def app_addresses(self) -> dict[str, IPv4Address]:
        """The application servers and their private addresses: `app-1` first, which is the bastion."""
        return {f"app-{number}": self.public_subnet[10 + number] for number in range(1, self.app.count + 1)}

    @property
    def database_address(self) -> IPv4Address:
        """The database server's private address."""
        return self.network.address(DATABASE_NUMBER)

    @property
    def backup_address(self) -> IPv4Address:
        """The backup server's private address, among those that the world can address where it stands elsewhere."""
        return self.public_subnet[BACKUP_NUMBER] if self.backup.region else self.network.address(BACKUP_NUMBER)

    @property
    def app_size(self) -> str:
        """The application servers' size, as the cloud names it."""
        return self.app.size or DEFAULT_SIZES[self.cloud]

    @property
    def database_size(self) -> str:
        """The database server's size, as the cloud names it."""
        return self.database.size or DEFAULT_SIZES[self.cloud]

    @property
    def backup_size(self) -> str:
        """The backup server's size, as the cloud names it."""
        return self.backup.size or DEFAULT_SIZES[self.cloud]

    def _half(self, number: int) -> IPv4Network:
        cidr = self.network.cidr
        return list(cidr.subnets())[number] if self.cloud in SPLIT_NETWORKS else cidr


def _check_region(region: str, cloud: CloudName | None) -> None:
    """Raises ValueError when the cloud has no such region; of an unknown cloud nothing is said here."""
    if cloud and region not in REGIONS[cloud]:
        raise ValueError(f"is not a region of {cloud}; allowed: {', '.join(sorted(REGIONS[cloud]))}")


def parse(config: Mapping[str, str]) -> Settings:
    """Settings from a stack's configuration values, as Pulumi hands them over: full key -> text (JSON for objects).

    Raises:
        SettingsError: one line a mistake.
    """
    raw: dict[str, Any] = {}
    for full_key, text in config.items():
        namespace, _, key = full_key.partition(":")
        if namespace == PROJECT:
            raw[key] = _value(text)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(error, raw))) from None


def load() -> Settings:
    """The running program's settings.

    Raises:
        SettingsError: one line a mistake.
    """
    from pulumi.runtime.config import CONFIG  # noqa: PLC0415 - so that `uds` can check values without loading Pulumi

    return parse(CONFIG.get())


def _value(text: str) -> object:
    # Pulumi hands over every value as text. Only objects and lists are JSON by intent: "2" stays text for pydantic,
    # which knows what the field wants.
    if text[:1] in "{[":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


# Pydantic speaks of Python's types; who writes a stack file knows YAML's.
_NOT_A = {"model_type": "an object", "dict_type": "an object", "tuple_type": "a list", "string_type": "a text"}


def _describe(error: ValidationError, raw: object) -> Iterator[str]:
    items = error.errors(include_url=False)
    for item in items:
        # "[key]" and the like are pydantic's own steps.
        path = [str(part) for part in item["loc"] if not isinstance(part, str) or not part.endswith("]")]
        # A list that is short only because its items are wrong has been complained about.
        if item["type"] == "too_short" and any(other["loc"][:-1] == item["loc"] for other in items):
            continue
        yield f"{PROJECT}:{_join(path)}{_complaint(item, path, raw)}"


def _complaint(item: ErrorDetails, path: list[str], raw: object) -> str:
    what = item["msg"].removeprefix("Value error, ").replace("Tuple", "List")
    match item["type"]:
        case "missing":
            maker = {"deploy": "run `uds init`", "database": "run `uds init`", "admins": "run `uds admin add`"}
            return f" is missing; {maker.get(path[0], 'Pulumi.yaml describes it')}"
        case "extra_forbidden":
            return f" is not a setting; allowed here: {', '.join(_siblings(path))}"
        case "value_error" if isinstance(_at(raw, path), Mapping | None) and len(item["loc"]) == len(path):
            # Said of an object as a whole (or of one that was left out), it begins with the key in it.
            return f".{what}"
        case kind if kind in _NOT_A:
            what = f"is not {_NOT_A[kind]}"
    shown = _shown(raw, path)
    return f" {shown}: {what}" if shown else f" {what}"


def _join(path: list[str]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if part.isdigit() else (f".{part}" if text else part)
    return text


def _siblings(path: list[str]) -> list[str]:
    """The keys that are allowed beside the last one of `path`."""
    model: type[BaseModel] = Settings
    for part in path[:-1]:
        for name, field in model.model_fields.items():
            if part in (field.alias, name):
                kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
                model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _at(raw: object, path: list[str]) -> object:
    """The value at `path`, or None where there is none."""
    value = raw
    for part in path:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _shown(raw: object, path: list[str]) -> str:
    """The value at `path` for an error message, or nothing where it could be a secret."""
    value = _at(raw, path)
    secret = path[0] in ("deploy", "admins") or _SECRET_NAME.search(path[-1]) or _SECRET_VALUE.search(str(value))
    return "" if secret or not isinstance(value, (str, int, float, bool)) else repr(value)
