"""What a check is, and the list of all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from uds.verify.server import Server

Problems: TypeAlias = Iterable[str]

EVERY_ROLE = frozenset({"app", "db", "backup"})
APP, DB, BACKUP = frozenset({"app"}), frozenset({"db"}), frozenset({"backup"})

HARDENING = "uds apply STACK {server} hardening"
ACCOUNTS = "uds apply STACK {server} accounts"


@dataclass(frozen=True)
class Check:
    """One thing that must be so on a server.

    `section` is the guide's. `remedy` is what to do when it isn't, with `{server}` in it for the server's name. `find`
    yields what is wrong, in words for the operator: nothing when all is well.
    """

    name: str
    section: str
    title: str
    remedy: str
    roles: frozenset[str]
    find: Callable[[Server], Problems]


CHECKS: list[Check] = []


def check(
    section: str, title: str, remedy: str, roles: frozenset[str] = EVERY_ROLE
) -> Callable[[Callable[[Server], Problems]], Callable[[Server], Problems]]:
    """Make a check of a function, named after it."""

    def register(find: Callable[[Server], Problems]) -> Callable[[Server], Problems]:
        CHECKS.append(Check(find.__name__.replace("_", "-"), section, title, remedy, roles, find))
        return find

    return register


def difference(what: str, found: Iterable[str], wanted: Iterable[str]) -> Problems:
    """What is there and shouldn't be, and the other way round."""
    found, wanted = set(found), set(wanted)
    for item in sorted(found - wanted):
        yield f"{what}: {item} is there, and shouldn't be"
    for item in sorted(wanted - found):
        yield f"{what}: {item} is missing"
