"""The configuration: what is refused, in which words, and that no error shows a secret."""

from collections.abc import Callable
from ipaddress import IPv4Network
from typing import TypeAlias

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from pyrage import x25519

from components.catalogue import REGIONS
from components.settings import PROJECT, CloudName, Settings, SettingsError, parse
from tests.unit.support import PASSWORD_HASH, SECRETS, as_pulumi, configuration, ed25519_pair, secret_texts, settings


def public_line(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | dsa.DSAPublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


PRIVATE, PUBLIC = ed25519_pair()
RSA_2048 = public_line(rsa.generate_private_key(65537, 2048).public_key())
RSA_3072 = public_line(rsa.generate_private_key(65537, 3072).public_key())
ECDSA = public_line(ec.generate_private_key(ec.SECP256R1()).public_key())
# A key that lives on a security key: OpenSSH's PROTOCOL.u2f.
SK_ED25519 = (
    "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIBUnWcE/0Zbt2NWKHgvRvbCuwThgwEfU2xRmPabY"
    "43HrAAAABHNzaDo= token"
)
ALLOWED_KEYS = "allowed is one line of an OpenSSH public key: ssh-ed25519"
RECIPIENT = configuration()["backup"]["recipients"][0]
ADMIN = configuration()["admins"]["alice"]
EMAIL = {
    "host": "mail.example.org",
    "port": 587,
    "security": "starttls",
    "user": "alerts",
    "password": "n0-vKq8sPb2hYwz4",
    "sender": "alerts@example.org",
    "recipients": ["ops@example.org"],
}


def errors(changes: dict[str, object]) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        settings(changes)
    return str(raised.value).splitlines()


# What is wrong -> the key that the message names, and what else it says.
Case: TypeAlias = tuple[dict[str, object], str, list[str]]
BAD: dict[str, Case] = {
    "unknown key": ({"fierwall": "on"}, "fierwall", ["is not a setting", "here: admins, alerts, app, application"]),
    "unknown key in an object": ({"app.cuont": 2}, "app.cuont", ["not a setting", "here: count, packages, size"]),
    "unknown key of an admin": ({"admins.alice.shell": "zsh"}, "admins.alice.shell", ["here: passwordHash"]),
    "text for a number": ({"app.count": "many"}, "app.count", ["'many'", "valid integer"]),
    "half a server": ({"app.count": 1.5}, "app.count", ["1.5", "valid integer"]),
    "yes for a number": ({"app.count": True}, "app.count", ["True", "whole number"]),
    "text for an object": ({"network": "10.0.0.0/24"}, "network", ["'10.0.0.0/24'", "is not an object"]),
    "broken JSON": ({"network": '{"cidr": '}, "network", ["is not an object"]),
    "text for a list": ({"ssh.allowedSources": "198.51.100.7"}, "ssh.allowedSources", ["is not a list"]),
    "number for a text": ({"admins.alice.totpSecret": 7}, "admins.alice.totpSecret", ["is not a text"]),
    "no servers": ({"app.count": 0}, "app.count", ["0", "greater than or equal to 1"]),
    "too many servers": ({"app.count": 51}, "app.count", ["51", "less than or equal to 50"]),
    "bad package": ({"app.packages": ["curl", "-o evil"]}, "app.packages[1]", ["'-o evil'", "pattern"]),
    "bad size": ({"database.size": "big one"}, "database.size", ["'big one'", "pattern"]),
    "privileged port": ({"database.port": 1023}, "database.port", ["1023", "greater than or equal to 1024"]),
    "port over the end": ({"database.port": 65536}, "database.port", ["65536", "less than or equal to 65535"]),
    "bad database name": ({"database.name": "prod; drop"}, "database.name", ["'prod; drop'", "pattern"]),
    "bad database user": ({"database.user": "a'b"}, "database.user", ["pattern"]),
    "unknown cloud": ({"cloud": "azure"}, "cloud", ["'azure'", "'linode' or 'aws'"]),
    "unknown region": ({"region": "mars-1"}, "region", ["'mars-1'", "not a region of linode", "allowed: ap-"]),
    "region of the other cloud": ({"cloud": "aws"}, "region", ["'eu-central'", "not a region of aws", "eu-central-1"]),
    "no image's number": ({"imageId": "-ami"}, "imageId", ["'-ami'"]),
    "unknown image": ({"image": "debian11"}, "image", ["'debian11'", "'debian13'", "'debian12'", "'ubuntu24.04'"]),
    "no cloud": ({"cloud": None}, "cloud", ["is missing", "Pulumi.yaml"]),
    "no sources": ({"ssh.allowedSources": []}, "ssh.allowedSources", ["List should have at least 1 item"]),
    "no deploy account": ({"deploy": None}, "deploy", ["is missing", "uds init"]),
    "no sudo password": ({"deploy.sudoPassword": None}, "deploy.sudoPassword", ["is missing", "uds init"]),
    "no one-time codes": (
        {"admins.alice.totpSecret": None},
        "admins.alice.totpSecret",
        ["is missing", "uds admin add"],
    ),
    # Networks
    "no network": ({"ssh.allowedSources": ["office"]}, "ssh.allowedSources[0]", ["'office'", "CIDR notation"]),
    "impossible address": (
        {"ssh.allowedSources": ["198.51.100.7/32", "300.1.1.1/32"]},
        "ssh.allowedSources[1]",
        ["'300.1.1.1/32'", "CIDR notation"],
    ),
    "host bits": (
        {"ssh.allowedSources": ["198.51.100.7/24"]},
        "ssh.allowedSources[0]",
        ["'198.51.100.7/24'", "allowed is 198.51.100.0/24, or one address with /32"],
    ),
    "host bits in v6": (
        {"ssh.allowedSources": ["2001:db8::1/64"]},
        "ssh.allowedSources[0]",
        ["allowed is 2001:db8::/64, or one address with /128"],
    ),
    "the world": ({"ssh.allowedSources": ["0.0.0.0/0"]}, "ssh.allowedSources", ["0.0.0.0/0", "ssh.allowAnywhere"]),
    "the world in v6": ({"ssh.allowedSources": ["::/0"]}, "ssh.allowedSources", ["::/0", "ssh.allowAnywhere"]),
    "half the world": ({"ssh.allowedSources": ["128.0.0.0/1"]}, "ssh.allowedSources", ["128.0.0.0/1", "whole world"]),
    "interface": ({"ssh.allowedSources": ["fe80::1%eth0"]}, "ssh.allowedSources[0]", ["fe80::1%eth0", "without %"]),
    "multicast": ({"ssh.allowedSources": ["224.0.0.0/8"]}, "ssh.allowedSources[0]", ["224.0.0.0/8", "multicast"]),
    "v4 in v6": ({"ssh.allowedSources": ["::ffff:198.51.100.7"]}, "ssh.allowedSources[0]", ["its IPv4 form"]),
    "more than a firewall holds": (
        {"ssh.allowedSources": [f"198.51.100.{number}" for number in range(256)]},
        "ssh.allowedSources",
        ["at most 255"],
    ),
    "own network": ({"ssh.allowedSources": ["10.20.0.11/32"]}, "ssh.allowedSources", ["overlaps network.cidr"]),
    "around the own network": ({"ssh.allowedSources": ["10.0.0.0/8"]}, "ssh.allowedSources", ["10.0.0.0/8 overlaps"]),
    "public network": ({"network.cidr": "198.51.100.0/24"}, "network.cidr", ["'198.51.100.0/24'", "10.0.0.0/8"]),
    "half private": ({"network.cidr": "172.0.0.0/8"}, "network.cidr", ["is not private", "172.16.0.0/12"]),
    "v6 network": ({"network.cidr": "fd00::/64"}, "network.cidr", ["'fd00::/64'", "valid IPv4 network"]),
    "shared network": ({"network.cidr": "192.168.200.0/24"}, "network.cidr", ["192.168.128.0/17", "Linode shares"]),
    "around the shared network": ({"network.cidr": "192.168.0.0/16"}, "network.cidr", ["192.168.128.0/17"]),
    "network too small": ({"network.cidr": "10.20.0.0/26"}, "network.cidr", ["'10.20.0.0/26'", "/16 to /25"]),
    "network too large": ({"network.cidr": "10.0.0.0/15"}, "network.cidr", ["/16 to /25"]),
    # Keys
    "short RSA": ({"admins.alice.publicKeys": [RSA_2048]}, "admins.alice.publicKeys[0]", ["2048 bits", "3072"]),
    "ECDSA": ({"admins.alice.publicKeys": [ECDSA]}, "admins.alice.publicKeys[0]", ["type ecdsa", ALLOWED_KEYS]),
    "private for public": ({"admins.alice.publicKeys": [PRIVATE]}, "admins.alice.publicKeys[0]", ["PRIVATE key"]),
    "private deploy key for public": ({"deploy.publicKey": PRIVATE}, "deploy.publicKey", ["PRIVATE key", "new pair"]),
    "two lines": ({"admins.alice.publicKeys": [f"{PUBLIC}\n{PUBLIC}"]}, "admins.alice.publicKeys[0]", ["one line"]),
    "options": ({"admins.alice.publicKeys": [f'command="sh" {PUBLIC}']}, "admins.alice.publicKeys[0]", [ALLOWED_KEYS]),
    "cut key": ({"admins.alice.publicKeys": [PUBLIC[:40]]}, "admins.alice.publicKeys[0]", ["not a public key"]),
    "cut sk key": ({"admins.alice.publicKeys": [SK_ED25519[:90]]}, "admins.alice.publicKeys[0]", ["not a public key"]),
    "no keys": ({"admins.alice.publicKeys": []}, "admins.alice.publicKeys", ["at least 1 item"]),
    "key of another": (
        {"admins.bob": {**ADMIN, "publicKeys": [" ".join(ADMIN["publicKeys"][0].split()[:2]) + " bob"]}},
        "admins.bob.publicKeys",
        ["belongs to alice already"],
    ),
    "key of deploy": (
        {"admins.alice.publicKeys": [configuration()["deploy"]["publicKey"]]},
        "admins.alice.publicKeys",
        ["belongs to the account deploy already"],
    ),
    "another's public key": ({"deploy.publicKey": PUBLIC}, "deploy.publicKey", ["does not belong to privateKey"]),
    "no private key": ({"deploy.privateKey": "-----BEGIN"}, "deploy.privateKey", ["OpenSSH private key", "uds init"]),
    # Backups
    "no keys for backups": ({"backup": None}, "backup.publicKey", ["is missing", "uds init", "backup.server to false"]),
    "nobody to open backups": ({"backup.recipients": []}, "backup.recipients", ["is missing", "uds init"]),
    "nobody to open what is in the bucket": (
        {"cloud": "aws", "region": "eu-central-1", "backup": {"server": False, "bucket": True}},
        "backup.recipients",
        ["is missing", "set backup.bucket to false"],
    ),
    "a bucket on linode": ({"backup.bucket": True}, "backup.bucket", ["true is for stacks on aws", "allowed", "false"]),
    "backups on mars": ({"backup.region": "mars-1"}, "backup.region", ["mars-1", "not a region of linode", "us-east"]),
    "backups elsewhere, but here": ({"backup.region": "eu-central"}, "backup.region", ["eu-central", "another one"]),
    "no backups, and elsewhere": (
        {"backup": {"server": False, "region": "us-east"}},
        "backup.region",
        ["allowed only with one of them"],
    ),
    "kept for less than a week": ({"backup.bucketDays": 6}, "backup.bucketDays", ["6", "7"]),
    "kept for ever": ({"backup.bucketDays": 3651}, "backup.bucketDays", ["3651", "3650"]),
    "another's key for backups": ({"backup.publicKey": PUBLIC}, "backup.publicKey", ["does not belong to privateKey"]),
    "no recipient": ({"backup.recipients": ["alice"]}, "backup.recipients[0]", ["'alice'", "public key of age"]),
    "cut recipient": (
        {"backup.recipients": [RECIPIENT[:-1]]},
        "backup.recipients[0]",
        [f"'{RECIPIENT[:-1]}'", "age1 and 58 more"],
    ),
    "SSH key as a recipient": ({"backup.recipients": [PUBLIC]}, "backup.recipients[0]", ["allowed is age1"]),
    "recipient twice": ({"backup.recipients": [RECIPIENT] * 2}, "backup.recipients", [f"{RECIPIENT} 2 times"]),
    "no database name": ({"backup.databases": ["a b"]}, "backup.databases[0]", ["'a b'", "allowed are up to 64"]),
    "database as an option": ({"backup.databases": ["-x"]}, "backup.databases[0]", ["'-x'", "not - or _ first"]),
    "engine's database": ({"backup.databases": ["MySQL"]}, "backup.databases[0]", ["'MySQL'", "engine itself"]),
    "application's database again": (
        {"backup.databases": ["production"]},
        "backup.databases",
        ["production is saved as the application's"],
    ),
    "relative path": ({"backup.paths": ["srv/files"]}, "backup.paths[0]", ["'srv/files'", "such as /srv/files"]),
    "path with a way back": ({"backup.paths": ["/srv/../etc"]}, "backup.paths[0]", ["'/srv/../etc'", "without .."]),
    "path with an end": ({"backup.paths": ["/srv/"]}, "backup.paths[0]", ["'/srv/'"]),
    "path of two lines": ({"backup.paths": ["/srv\n/etc"]}, "backup.paths[0]", ["absolute path"]),
    # Alerts
    "mail without TLS": ({"alerts.email": {**EMAIL, "security": "none"}}, "alerts.email.security", ["'starttls' or"]),
    "mail to nobody": ({"alerts.email": {**EMAIL, "recipients": []}}, "alerts.email.recipients", ["at least 1 item"]),
    "half a mail address": (
        {"alerts.email": {**EMAIL, "recipients": ["a\nBcc: b@example.org"]}},
        "alerts.email.recipients[0]",
        ["pattern"],
    ),
    "a URL for a host": ({"alerts.email": {**EMAIL, "host": "smtp://mail.test"}}, "alerts.email.host", ["pattern"]),
    "webhook without TLS": (
        {"alerts.slack": {"webhook": "http://hooks.slack.com/services/T/B/x"}},
        "alerts.slack.webhook",
        ["https://HOST/PATH"],
    ),
    "no user at Pushover": ({"alerts.pushover": {"token": "t0ken"}}, "alerts.pushover.user", ["is missing"]),
    "regular expression for a network": (
        {"alerts.allowedSources": ["198\\.51\\..*"]},
        "alerts.allowedSources[0]",
        ["CIDR notation"],
    ),
    "unknown time zone": ({"alerts.timezone": "Berlin"}, "alerts.timezone", ["'Berlin'", "Europe/Berlin"]),
    # Secrets
    "empty secret": ({"deploy.sudoPassword": "  "}, "deploy.sudoPassword", ["is empty", "uds init"]),
    "plain password for a hash": ({"deploy.sudoPasswordHash": "hunter22"}, "deploy.sudoPasswordHash", ["$6$ or $y$"]),
    "MD5 hash": (
        {"admins.alice.passwordHash": "$1$" + "a" * 50},
        "admins.alice.passwordHash",
        ["not a password hash"],
    ),
    "hash with a line end": ({"deploy.sudoPasswordHash": PASSWORD_HASH + "\n"}, "deploy.sudoPasswordHash", ["$6$"]),
    "short one-time secret": ({"admins.alice.totpSecret": "JBSWY3DP"}, "admins.alice.totpSecret", ["128 bits"]),
    "one-time secret in hex": ({"admins.alice.totpSecret": "0189" * 8}, "admins.alice.totpSecret", ["base32"]),
    "short code": ({"admins.alice.scratchCodes": ["1234567"]}, "admins.alice.scratchCodes", ["eight digits"]),
    "code that PAM ignores": ({"admins.alice.scratchCodes": ["01234567"]}, "admins.alice.scratchCodes", ["digits"]),
    "no codes": ({"admins.alice.scratchCodes": []}, "admins.alice.scratchCodes", ["at least 1 item"]),
}
PLACEHOLDERS = "change-me CHANGEME password secret <password> your-password-here TODO xxxxxxxx ...".split()


@pytest.mark.parametrize(("changes", "key", "parts"), BAD.values(), ids=BAD.keys())
def test_a_mistake_is_named_with_what_is_allowed(changes: dict[str, object], key: str, parts: list[str]) -> None:
    (line,) = errors(changes)
    assert line.startswith((f"{PROJECT}:{key} ", f"{PROJECT}:{key}: "))
    for part in parts:
        assert part in line


@pytest.mark.parametrize("text", PLACEHOLDERS)
@pytest.mark.parametrize("path", [path for path in SECRETS if "scratchCodes" not in path])
def test_a_placeholder_never_becomes_a_secret(path: str, text: str) -> None:
    (line,) = errors({path: text})
    assert line.startswith(f"{PROJECT}:{path} is still a placeholder")


# The library warns that it will know DSA no longer; then it is no public key at all.
@pytest.mark.filterwarnings("ignore:SSH DSA")
def test_dsa_is_refused() -> None:
    key = dsa.generate_private_key(1024)  # noqa: S505 - small because it is refused for its type, and quick to make
    (line,) = errors({"admins.alice.publicKeys": [public_line(key.public_key())]})
    assert line.startswith(f"{PROJECT}:admins.alice.publicKeys[0] is")
    assert ALLOWED_KEYS in line


@pytest.mark.parametrize(
    ("name", "part"),
    [("", "a letter first"), ("al ice", "a-z"), ("Alice", "a-z"), ("1st", "a letter first"), ("a" * 32, "up to 31")]
    + [("al:ice", "a-z"), ("../root", "a-z"), ("-rf", "a letter first"), ("álice", "a-z")]
    + [(name, "reserved") for name in ("root", "deploy", "mysql", "ubuntu", "systemd-network", "uds-x", "ssh-users")],
)
def test_an_account_name_is_one_that_every_image_takes_and_nobody_owns(name: str, part: str) -> None:
    (line,) = errors({"admins": {name: ADMIN}})
    assert line.startswith(f"{PROJECT}:admins.")
    assert repr(name) in line
    assert part in line


def test_all_mistakes_are_reported_at_once() -> None:
    lines = errors(
        {
            "region": "mars-1",
            "app.count": 99,
            "fierwall": "on",
            "ssh.allowedSources": ["0.0.0.0/0"],
            "deploy.privateKey": "-----BEGIN",
            "admins.alice.totpSecret": "short",
            "admins.root": ADMIN,
            "admins.bob": {},
        }
    )
    reported = {line.removeprefix(f"{PROJECT}:").split(" ")[0].rstrip(":") for line in lines}
    assert reported == {
        "region",
        "app.count",
        "fierwall",
        "ssh.allowedSources",
        "deploy.privateKey",
        "admins.alice.totpSecret",
        "admins.root",
        *(f"admins.bob.{key}" for key in ("publicKeys", "passwordHash", "totpSecret", "scratchCodes")),
    }


def test_a_mistake_in_one_item_is_one_line() -> None:
    assert len(errors({"ssh.allowedSources": ["office"]})) == 1


def test_an_empty_stack_is_told_what_it_needs() -> None:
    with pytest.raises(SettingsError) as raised:
        parse({})
    missing = [line.split(" ")[0] for line in str(raised.value).splitlines()]
    keys = ("cloud", "region", "ssh", "database", "deploy", "backup.publicKey")
    assert missing == [f"{PROJECT}:{key}" for key in keys]


def test_an_identity_for_a_recipient_is_not_shown() -> None:
    identity = str(x25519.Identity.generate())
    (said,) = errors({"backup.recipients": [identity]})
    assert "backup.recipients[0] is an IDENTITY" in said
    assert identity[20:] not in said


@pytest.mark.parametrize(("cloud", "address"), [("linode", "10.20.0.6"), ("aws", "10.20.0.134")])
def test_a_backup_server_elsewhere_stands_where_the_world_can_address_it(cloud: str, address: str) -> None:
    regions = {"linode": ("eu-central", "us-east"), "aws": ("eu-central-1", "us-east-1")}[cloud]
    made = settings({"cloud": cloud, "region": regions[0], "backup.region": regions[1]})
    assert (str(made.backup_address), made.backup_address in made.public_subnet) == (address, True)


def test_with_a_bucket_alone_no_key_of_the_backup_server_is_asked_for() -> None:
    backup = {"server": False, "bucket": True, "recipients": [RECIPIENT]}
    made = settings({"cloud": "aws", "region": "eu-central-1", "backup": backup}).backup
    assert (made.are_made, made.private_key, made.bucket_days) == (True, None, 35)


def test_without_a_backup_server_nothing_more_is_asked_for() -> None:
    assert not settings({"backup": {"server": False}}).backup.server


MARK = "qZ7uniqueKx4"


@pytest.mark.parametrize("path", [*SECRETS, "deploy", "admins", "admins.alice", "admins.alice.scratchCodes"])
@pytest.mark.parametrize(
    "value",
    [MARK, f"change {MARK}", [MARK], {"a": MARK}, f'{{"a": "{MARK}"', f"-----BEGIN {MARK}"],
    ids=["text", "placeholder", "list", "object", "broken JSON", "key"],
)
def test_no_error_shows_what_stands_where_a_secret_belongs(path: str, value: object) -> None:
    # The second mistake makes sure of an error where the first is no mistake.
    assert MARK not in "\n".join(errors({path: value, "app.count": 0}))


@pytest.mark.parametrize(
    "path",
    "cloud region image network network.cidr ssh ssh.allowedSources ssh.allowAnywhere app.count app.size "
    "database.port database.name database.user deploy.publicKey unknown app.unknown admins.alice.publicKeys".split(),
)
@pytest.mark.parametrize("wrap", [str, lambda key: [key], lambda key: {"key": key}], ids=["text", "list", "object"])
def test_no_error_shows_a_private_key_in_the_wrong_place(path: str, wrap: Callable[[str], object]) -> None:
    text = "\n".join(errors({path: wrap(PRIVATE), "app.packages": [PRIVATE]}))
    assert not any(line in text for line in PRIVATE.splitlines()[1:-1])


@given(
    path=st.sampled_from(SECRETS), secret=st.text(st.characters(min_codepoint=0x2600, max_codepoint=0x26FF), min_size=1)
)
def test_no_error_shows_a_part_of_a_secret(path: str, secret: str) -> None:
    # Of an alphabet that no message uses, so that a single character would show.
    assert not set(secret) & set("".join(errors({path: secret, "app.count": 0})))


def test_the_secrets_of_good_settings_are_hidden_from_prints() -> None:
    for text in secret_texts(configuration()):
        assert text not in repr(settings())
        assert text not in settings().model_dump_json()


GOOD: dict[str, dict[str, object]] = {
    "as it is": {},
    "nobody but the automation": {"admins": {}},
    "the world on purpose": {"ssh.allowedSources": ["0.0.0.0/0", "::/0"], "ssh.allowAnywhere": True},
    "one address without a prefix": {"ssh.allowedSources": ["198.51.100.7"]},
    "as many sources as a firewall holds": {"ssh.allowedSources": [f"198.51.{number}.0/24" for number in range(255)]},
    "own network in v6": {"ssh.allowedSources": ["fd00::/64"]},
    "RSA": {"admins.alice.publicKeys": [RSA_3072]},
    "security key": {"admins.alice.publicKeys": [SK_ED25519]},
    "several keys, one twice": {"admins.alice.publicKeys": [PUBLIC, SK_ED25519, f"{PUBLIC} again"]},
    "line end of a file": {"admins.alice.publicKeys": [f"{PUBLIC} alice\r\n"]},
    "yescrypt": {"admins.alice.passwordHash": "$y$j9T$" + "a" * 60},
    "number as text": {"app.count": "3"},
    "below the shared network": {"network.cidr": "192.168.0.0/17"},
    "other image": {"image": "ubuntu24.04"},
    "private key without its last line end": {
        "deploy.privateKey": configuration()["deploy"]["privateKey"].rstrip("\n")
    },
    "aws": {"cloud": "aws", "region": "eu-central-1"},
    "a very image": {"imageId": "ami-0123456789abcdef0"},
}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD.keys())
def test_good_settings_are_taken(changes: dict[str, object]) -> None:
    settings(changes)


@pytest.mark.parametrize("cloud", list(CloudName))
def test_every_region_of_every_cloud_is_taken(cloud: CloudName) -> None:
    for region in REGIONS[cloud]:
        assert settings({"cloud": cloud.value, "region": region}).region == region


def test_a_public_key_is_kept_as_one_clean_line() -> None:
    admins = settings({"admins.alice.publicKeys": [f"  {PUBLIC} alice@laptop\n"]}).admins
    assert admins["alice"].public_keys == (f"{PUBLIC} alice@laptop",)


def test_what_belongs_to_other_parts_of_pulumi_is_left_alone() -> None:
    assert parse({**as_pulumi(configuration()), "aws:region": "eu-central-1", "pulumi:tags": "{}"}) == settings()


CLOUDS: dict[str, dict[str, object]] = {"linode": {}, "aws": {"cloud": "aws", "region": "eu-west-1"}}


@pytest.mark.parametrize(
    ("changes", "app", "database"),
    [
        ({}, "g6-nanode-1", "g6-nanode-1"),
        ({"cloud": "aws", "region": "eu-west-1"}, "t3.micro", "t3.micro"),
        ({"app.size": "g6-standard-2", "database.size": "g6-standard-4"}, "g6-standard-2", "g6-standard-4"),
    ],
)
def test_the_smallest_size_is_the_default(changes: dict[str, object], app: str, database: str) -> None:
    assert (settings(changes).app_size, settings(changes).database_size) == (app, database)


@pytest.mark.parametrize("prefix", range(16, 26))
@pytest.mark.parametrize("cloud", CLOUDS)
def test_addresses_are_apart_and_the_clouds_own_are_left_out(cloud: str, prefix: int) -> None:
    network = IPv4Network(f"10.20.0.0/{prefix}")
    most = settings({**CLOUDS[cloud], "network.cidr": str(network), "app.count": 50})
    assert len({*most.app_addresses.values(), most.database_address}) == 51
    placed = [(most.private_subnet, most.database_address)]
    placed += [(most.public_subnet, address) for address in most.app_addresses.values()]
    for subnet, address in placed:
        # AWS keeps the first four and the last (VPC guide, "Subnet CIDR blocks"); Linode keeps fewer.
        own = [subnet.network_address + number for number in range(4)] + [subnet.broadcast_address]
        assert subnet.subnet_of(network)
        assert address in subnet
        assert address not in own
    assert most.private_subnet.overlaps(most.public_subnet) == (cloud == "linode")


def test_a_server_more_leaves_the_others_where_they_are() -> None:
    def addresses(count: int) -> list[tuple[str, str]]:
        chosen: Settings = settings({"app.count": count})
        return [*((name, str(address)) for name, address in chosen.app_addresses.items())]

    assert addresses(1) == [("app-1", "10.20.0.11")]
    assert all(addresses(count + 1)[:count] == addresses(count) for count in range(1, 50))
    assert settings({"app.count": 50}).database_address == settings().database_address


def test_an_alert_channels_secrets_are_in_no_message() -> None:
    changes = {
        "alerts.email": {**EMAIL, "port": 0},
        "alerts.slack": {"webhook": "http://T0/B0/s3cret"},
        "alerts.pushover": {"token": "change-me", "user": "u5er"},
    }
    text = "\n".join(errors(changes))
    assert not [secret for secret in (EMAIL["password"], "s3cret", "u5er") if str(secret) in text]


def test_a_stack_may_have_any_number_of_channels() -> None:
    assert not settings().alerts.has_channel
    webhook = "https://hooks.slack.com/services/T0/B0/x-y_Z"
    assert settings({"alerts.slack": {"webhook": webhook}}).alerts.has_channel
    assert settings({"alerts.email": EMAIL}).alerts.email
