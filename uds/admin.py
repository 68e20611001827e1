"""`uds admin`: the people who may log in to the servers of a stack."""

import base64
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from passlib.hash import sha512_crypt
from zxcvbn import zxcvbn

from components.values import admin_name, public_key
from uds.stack import OperatorError, Stack

SCRATCH_CODES = 5

# A guess costs an attacker with the hash about 50 ms.
_ROUNDS = 100_000


@dataclass(frozen=True)
class Enrolment:
    """What a new admin gets, once: the secret of their authenticator app, and codes for the day the phone is lost."""

    uri: str
    secret: str
    scratch_codes: Sequence[str]


def check_password(password: str, name: str) -> None:
    """Check a sudo password as the servers would (guide, 3.4), since they only get its hash.

    Raises:
        OperatorError: what it lacks.
    """
    wanted = {
        "ten characters": len(password) >= 10,
        "an upper-case letter": re.search(r"[A-Z]", password),
        "two lower-case letters": re.search(r"[a-z].*[a-z]", password),
        "a digit": re.search(r"\d", password),
        "a symbol": re.search(r"[^A-Za-z0-9]", password),
    }
    missing = [what for what, found in wanted.items() if not found]
    if missing:
        raise OperatorError(f"The password lacks {', '.join(missing)}.")
    # Characters of every kind don't make "Password1!" hard to guess. zxcvbn takes no more than 72 characters.
    if name in password.lower() or zxcvbn(password[:72], user_inputs=[name])["score"] < 3:
        raise OperatorError(
            "The password is easy to guess: take a few unrelated words, or let a password manager make it."
        )


def add(stack: Stack, name: str, keys: Sequence[str], password: str) -> Enrolment:
    """Add an admin to the stack's configuration; the next `pulumi up` puts the account on the servers.

    Raises:
        OperatorError: the name, a key or the password can't be used, or the admin is there already.
    """
    admins = stack.section("admins")
    try:
        admin_name(name)
        checked = [public_key(key) for key in keys]
    except ValueError as error:
        raise OperatorError(str(error)) from None
    if name in admins:
        raise OperatorError(f"{name} is an admin already: remove {name} first to start anew.")
    check_password(password, name)
    secret = base64.b32encode(secrets.token_bytes(20)).decode()
    codes = [str(10_000_000 + secrets.randbelow(90_000_000)) for _ in range(SCRATCH_CODES)]
    path = f'admins["{name}"]'
    # The key comes last: an admin who was added by half is refused by the program, and not let in by half.
    stack.set(f"{path}.passwordHash", sha512_crypt.using(rounds=_ROUNDS).hash(password), secret=True)
    stack.set(f"{path}.totpSecret", secret, secret=True)
    for number, code in enumerate(codes):
        stack.set(f"{path}.scratchCodes[{number}]", code, secret=True)
    for number, key in enumerate(checked):
        stack.set(f"{path}.publicKeys[{number}]", key, secret=False)
    issuer = f"Servers {stack.name}"
    # Some apps take neither %3A for the colon nor + for a space.
    query = urlencode({"secret": secret, "issuer": issuer}, quote_via=quote)
    uri = f"otpauth://totp/{quote(issuer)}:{quote(name)}?{query}"
    return Enrolment(uri, secret, codes)


def remove(stack: Stack, name: str) -> None:
    """Remove an admin from the configuration; the next `pulumi up` ends their access.

    Raises:
        OperatorError: there is no such admin.
    """
    admins = stack.section("admins")
    if name not in admins:
        raise OperatorError(f"{name} is not an admin of {stack.name}. Admins: {', '.join(sorted(admins)) or 'none'}.")
    stack.remove(f'admins["{name}"]')


def listed(stack: Stack) -> dict[str, list[str]]:
    """The admins and their public keys."""
    return {name: admin.get("publicKeys", []) for name, admin in sorted(stack.section("admins").items())}
