"""What a server gets to know of the people who may log in."""

import re

import pyotp

from components.accounts import admin_files, one_time_codes
from components.files import ServerFile
from tests.unit.support import PASSWORD_HASH, configuration, ed25519_pair, settings

KEYS = [f"{ed25519_pair()[1]} bob@desk", f"{ed25519_pair()[1]} bob@laptop"]
ALICE = configuration()["admins"]["alice"]
BOB = {**ALICE, "publicKeys": KEYS, "totpSecret": "ORSXG5BAORSXG5BAORSXG5BAORSXG5BA", "passwordHash": PASSWORD_HASH}
ADMINS = settings({"admins.bob": BOB}).admins


def test_everyone_has_a_file_of_their_own_keys_that_sshd_can_read_and_they_cant_change() -> None:
    files, _ = admin_files(ADMINS)
    assert files == [
        ServerFile("/etc/ssh/authorized_keys.d/alice", 0o644, f"{ALICE['publicKeys'][0]}\n"),
        ServerFile("/etc/ssh/authorized_keys.d/bob", 0o644, f"{KEYS[0]}\n{KEYS[1]}\n"),
    ]


def test_the_script_gets_names_hashes_and_codes() -> None:
    _, data = admin_files(ADMINS)
    assert data["admins"] == "alice\nbob\n"
    assert data["bob.password-hash"] == f"{PASSWORD_HASH}\n"
    assert data["bob.one-time-codes"] == one_time_codes(ADMINS["bob"])
    assert set(data) == {"admins"} | {f"{n}.{what}" for n in ADMINS for what in ("password-hash", "one-time-codes")}


def test_with_nobody_left_the_script_still_learns_that() -> None:
    assert admin_files({}) == ([], {"admins": ""})


def test_one_time_codes_are_in_the_format_of_the_pam_module() -> None:
    # google-authenticator-libpam, FILEFORMAT: the secret, options behind a quote and a space, scratch codes.
    secret, *rest = one_time_codes(ADMINS["alice"]).splitlines()
    assert secret == ALICE["totpSecret"]
    assert pyotp.TOTP(secret).now().isdigit()
    options = [line for line in rest if line.startswith('" ')]
    assert options == ['" RATE_LIMIT 3 30', '" WINDOW_SIZE 3', '" DISALLOW_REUSE', '" TOTP_AUTH']
    codes = rest[len(options) :]
    assert codes == ALICE["scratchCodes"]
    # The module reads a number: eight digits of which the first isn't 0.
    assert all(re.fullmatch(r"[1-9]\d{7}", code) for code in codes)
    assert one_time_codes(ADMINS["alice"]).endswith(f"{codes[-1]}\n")
