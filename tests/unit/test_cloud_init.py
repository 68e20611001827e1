"""The first boot: the tree, the user data, and the key of the first contact."""

import gzip
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from components import app_server
from components.catalogue import IMAGES
from components.cloud_init import (
    BASE_PACKAGES,
    ROOT,
    FirstBoot,
    UserDataError,
    bootstrap_host_key,
    public_line,
    server_files,
    user_data,
)
from components.clouds.linode import Linode
from components.files import digest
from components.firewall import Firewall, Rule, rules_v4, rules_v6
from tests.unit.support import PASSWORD_HASH, configuration, settings

FIREWALL = app_server.firewall(settings())
DEPLOY_KEY = configuration()["deploy"]["publicKey"]
SEED = "a seed"
BOOT = FirstBoot(
    hostname="app-1",
    openssh=IMAGES["debian13"].openssh,
    firewall=FIREWALL,
    packages=("nodejs", "chrony"),
    deploy_public_key=DEPLOY_KEY,
    deploy_sources=("198.51.100.7/32", "2001:db8:1::/64"),
)
TREE = sorted(path for path in (ROOT / "files").rglob("*") if path.is_file())
SSHD = "/etc/ssh/sshd_config.d/00-hardening.conf"


def data_of(boot: FirstBoot = BOOT, secrets: tuple[str, ...] = (), limit: int = 16384, seed: str = SEED) -> bytes:
    key = bootstrap_host_key(seed, boot.hostname)
    return user_data(boot, deploy_password_hash=PASSWORD_HASH, host_key=key, secrets=secrets, limit=limit)


def text_of(boot: FirstBoot = BOOT) -> str:
    return gzip.decompress(data_of(boot)).decode()


def document(boot: FirstBoot = BOOT) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(text_of(boot))
    return parsed


def contents(boot: FirstBoot = BOOT) -> dict[str, str]:
    return {file.path: file.content for file in server_files(boot)}


def sshd_lines(boot: FirstBoot = BOOT) -> list[str]:
    return [line for line in contents(boot)[SSHD].splitlines() if line and not line.startswith("#")]


def sshd_options(boot: FirstBoot = BOOT) -> dict[str, str]:
    """The options before the first Match."""
    lines = sshd_lines(boot)
    return dict(line.split(" ", 1) for line in lines[: next(n for n, line in enumerate(lines) if line[:6] == "Match ")])


@pytest.mark.parametrize("image", IMAGES)
def test_cloud_init_would_read_the_user_data(image: str) -> None:
    text = text_of(replace(BOOT, openssh=IMAGES[image].openssh))
    # cloud-init ignores the whole file for as little as a space after the sign.
    assert text.splitlines()[0] == "#cloud-config"
    assert isinstance(yaml.safe_load(text), dict)


def test_each_file_arrives_as_it_lies_in_the_tree() -> None:
    sent = {file["path"]: file for file in document()["write_files"]}
    made = {file.path: file for file in server_files(BOOT)}
    assert list(sent)[: len(made)] == list(made)
    for source in TREE:
        path = "/" + source.relative_to(ROOT / "files").as_posix().removesuffix(".j2")
        assert sent[path]["content"] == made[path].content
        assert sent[path]["permissions"] == f"{made[path].mode:04o}"
        if source.suffix != ".j2":
            assert sent[path]["content"] == source.read_text()


def test_the_bootstrap_key_comes_beside_the_tree_and_is_no_part_of_it() -> None:
    own = {file.path for file in server_files(BOOT)}
    others = {file["path"]: file for file in document()["write_files"] if file["path"] not in own}
    assert set(others) == {"/etc/ssh/bootstrap_host_key", "/etc/ssh/sshd_config.d/00-bootstrap.conf"}
    assert {file["permissions"] for file in others.values()} == {"0600"}
    key = load_pem_private_key(others["/etc/ssh/bootstrap_host_key"]["content"].encode(), None)
    assert key.public_key() == bootstrap_host_key(SEED, "app-1").public_key()
    # sshd takes the first HostKeyAlgorithms line that it reads: this file's name comes before the hardening's.
    bootstrap = "/etc/ssh/sshd_config.d/00-bootstrap.conf"
    assert "HostKeyAlgorithms ssh-ed25519,ecdsa-sha2-nistp256" in others[bootstrap]["content"]
    assert sorted([SSHD, bootstrap]) == [bootstrap, SSHD]


@pytest.mark.parametrize("source", TREE, ids=lambda path: path.name)
def test_a_file_of_the_tree_survives_yaml(source: Path) -> None:
    text = source.read_text()
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert text[0] not in " \n\t"
    # YAML 1.1 has line ends beyond ASCII.
    assert text.isascii()
    assert text.replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        (SSHD, 0o600),
        ("/etc/ssh/authorized_keys.d/deploy", 0o644),  # sshd reads it as the user
        ("/etc/sudoers.d/10-hardening", 0o440),
        ("/etc/iptables/rules.v4", 0o600),
        ("/etc/iptables/rules.v6", 0o600),
        ("/etc/uds/packages", 0o600),
        ("/etc/pam.d/sshd", 0o644),
        ("/etc/issue.net", 0o644),
        ("/usr/local/sbin/uds-harden", 0o755),
        ("/usr/local/sbin/uds-first-boot", 0o755),
    ],
)
def test_modes(path: str, mode: int) -> None:
    assert {file.path: file.mode for file in server_files(BOOT)}[path] == mode


def test_no_file_has_an_owner_that_may_not_exist_yet() -> None:
    assert all(set(file) == {"path", "permissions", "content"} for file in document()["write_files"])


def test_the_automation_has_a_password_for_sudo_and_no_way_around_it() -> None:
    (user,) = document()["users"]
    assert user["name"] == "deploy"
    assert user["groups"] == ["sudo", "ssh-users"]
    assert (user["hashed_passwd"], user["lock_passwd"]) == (PASSWORD_HASH, False)
    assert not {"sudo", "ssh_authorized_keys", "plain_text_passwd"} & set(user)
    assert not any("NOPASSWD" in text for path, text in contents().items() if path.startswith("/etc/"))


def test_root_and_stray_host_keys_are_closed_at_once() -> None:
    first = document()
    assert first["disable_root"] is True
    assert (first["ssh_deletekeys"], first["ssh_genkeytypes"]) == (True, ["ed25519"])
    assert first["hostname"] == first["fqdn"] == "app-1"
    assert first["runcmd"] == [["/usr/local/sbin/uds-first-boot", digest(server_files(BOOT))]]


def test_the_firewall_that_is_sent_is_the_models() -> None:
    assert contents()["/etc/iptables/rules.v4"] == rules_v4(FIREWALL)
    assert contents()["/etc/iptables/rules.v6"] == rules_v6(FIREWALL)


def test_packages_are_the_base_and_the_roles_own_once_each() -> None:
    assert contents()["/etc/uds/packages"].splitlines() == sorted({*BASE_PACKAGES, "nodejs"})


def test_deploys_key_is_the_only_key() -> None:
    keys = {path: text for path, text in contents().items() if "/authorized_keys" in path}
    assert keys == {"/etc/ssh/authorized_keys.d/deploy": f"{DEPLOY_KEY}\n"}


@pytest.mark.parametrize(
    ("image", "options", "absent"),
    [
        ("debian13", {"PerSourcePenaltyExemptList", "PerSourcePenalties"}, "curve25519-sha256"),
        ("debian12", set(), "mlkem768x25519-sha256"),
        ("ubuntu24.04", set(), "mlkem768x25519-sha256"),
    ],
)
def test_sshd_is_told_only_what_its_version_knows(image: str, options: set[str], absent: str) -> None:
    boot = replace(BOOT, openssh=IMAGES[image].openssh)
    # The first came with OpenSSH 9.8, mlkem768x25519-sha256 with 9.9: with either, an older sshd doesn't start.
    assert {name for name in sshd_options(boot) if name.startswith("PerSourcePenalt")} == options
    assert absent not in sshd_options(boot)["KexAlgorithms"].split(",")
    if options:
        assert sshd_options(boot)["PerSourcePenaltyExemptList"] == ",".join(BOOT.deploy_sources)


@pytest.mark.parametrize("image", IMAGES)
def test_pulumis_ssh_client_shares_a_key_exchange_with_sshd(image: str) -> None:
    # golang.org/x/crypto/ssh has these two of ours and none of sntrup761.
    go = {"mlkem768x25519-sha256", "curve25519-sha256"}
    assert go & set(sshd_options(replace(BOOT, openssh=IMAGES[image].openssh))["KexAlgorithms"].split(","))


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("targets", [(), ("10.20.0.5:22",)])
def test_the_drop_in_says_everything_once_and_ends_for_all(image: str, targets: tuple[str, ...]) -> None:
    lines = sshd_lines(replace(BOOT, openssh=IMAGES[image].openssh, jump_targets=targets))
    # Without it, whatever sshd_config says after the include would hold for deploy only.
    assert lines[-1] == "Match all"
    names = [line.split()[0] for line in lines]
    before = names[: names.index("Match")]
    assert len(before) == len(set(before))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("PermitRootLogin", "no"),
        ("PasswordAuthentication", "no"),
        ("PermitEmptyPasswords", "no"),
        ("AuthenticationMethods", "publickey,keyboard-interactive:pam"),
        ("AllowGroups", "ssh-users"),
        ("AuthorizedKeysFile", "/etc/ssh/authorized_keys.d/%u"),
        ("X11Forwarding", "no"),
        ("AllowAgentForwarding", "no"),
        ("RequiredRSASize", "3072"),
    ],
)
def test_sshd_refuses_what_the_guide_refuses(option: str, value: str) -> None:
    assert sshd_options()[option] == value


def test_only_the_bastion_forwards_and_only_to_its_targets() -> None:
    bastion = sshd_options(replace(BOOT, jump_targets=("10.20.0.5:22", "10.20.0.6:22")))
    assert (bastion["AllowTcpForwarding"], bastion["PermitOpen"]) == ("local", "10.20.0.5:22 10.20.0.6:22")
    assert sshd_options()["AllowTcpForwarding"] == "no"
    assert "PermitOpen" not in sshd_options()


def test_one_time_codes_are_required_of_everyone_who_is_asked() -> None:
    (line,) = [line for line in contents()["/etc/pam.d/sshd"].splitlines() if line.startswith("auth")]
    assert line.split()[:3] == ["auth", "required", "pam_google_authenticator.so"]
    assert "nullok" not in line
    assert line.endswith(" noskewadj")
    assert "@include common-auth" not in contents()["/etc/pam.d/sshd"]


def test_the_same_settings_give_the_same_bytes() -> None:
    assert data_of() == data_of()
    # No time in the header (RFC 1952, MTIME): it would differ from one second to the next.
    assert data_of()[4:8] == bytes(4)


@pytest.mark.parametrize(
    "changed",
    [
        replace(BOOT, packages=("redis",)),
        replace(BOOT, firewall=Firewall("app", (Rule("tcp", 22, (IPv4Network("192.0.2.1"),), "SSH"),))),
        replace(BOOT, jump_targets=("10.20.0.5:22",)),
        replace(BOOT, deploy_sources=("192.0.2.1/32",)),
        replace(BOOT, openssh=IMAGES["debian12"].openssh),
    ],
)
def test_the_digest_changes_with_what_the_server_gets(changed: FirstBoot) -> None:
    assert digest(server_files(changed)) != digest(server_files(BOOT))


def test_the_digest_changes_with_a_mode_and_with_a_path() -> None:
    first, *rest = server_files(BOOT)
    for changed in (replace(first, mode=0o777), replace(first, path="/etc/other")):
        assert digest([changed, *rest]) != digest([first, *rest])


def test_the_digest_stays_with_everything_else() -> None:
    # Nothing of the server's name or first key is in its tree: one digest for all application servers.
    same = replace(BOOT, hostname="app-2", packages=tuple(reversed(BOOT.packages)))
    assert digest(server_files(same)) == digest(server_files(BOOT))
    assert data_of(seed="another") != data_of()


def test_more_than_the_cloud_takes_is_an_error_with_both_numbers() -> None:
    size = len(data_of())
    assert data_of(limit=size)
    with pytest.raises(UserDataError, match=rf"app-1: user data of {size} bytes .* limit of {size - 1};"):
        data_of(limit=size - 1)


@pytest.mark.parametrize("image", IMAGES)
def test_a_server_with_twenty_offices_leaves_linode_a_third_for_more(image: str) -> None:
    offices = [f"198.51.{number}.0/24" for number in range(10)] + [f"2001:db8:{number:x}::/48" for number in range(10)]
    many = settings({"ssh.allowedSources": offices})
    boot = replace(BOOT, openssh=IMAGES[image].openssh, firewall=app_server.firewall(many), deploy_sources=offices)
    assert len(data_of(boot)) * 3 / 2 < Linode.user_data_limit


def test_a_secret_in_user_data_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserDataError, match="app-1: a secret of the stack is in its user data") as raised:
        data_of(replace(BOOT, packages=("s3cret",)), secrets=("unrelated", "s3cret"))
    assert "s3cret" not in str(raised.value)


def test_a_first_contact_has_a_key_of_its_own_for_each_server_and_stack() -> None:
    hosts = ("app-1", "app-2", "db-1")
    lines = {public_line(bootstrap_host_key(seed, host)) for seed in ("one", "two") for host in hosts}
    assert len(lines) == 6
    assert {line.split()[0] for line in lines} == {"ecdsa-sha2-nistp256"}


def test_the_first_contacts_key_never_changes() -> None:
    # Written down: another derivation would shut out the first contact of servers that are just being made.
    assert public_line(bootstrap_host_key("seed", "app-1")) == (
        "ecdsa-sha2-nistp256 "
        "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBLu1VTW39Mspqrh4bQgo"
        "mTCq2vaz38ZyZgGkYpo4nq9ed8ttcWu4/YUOKvhlHieIKeaS8rOkdfqIBgO+N1iTm8E="
    )
