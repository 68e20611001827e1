"""The journal's entries -> who logged in or became root, and whether that is worth an alert. Pure.

Only fields that journald itself vouches for (their names begin with `_`) say who wrote an entry: anybody may log a line
that looks like sshd's. And a line is only ever matched as a whole: a name in it can't be taken for another part.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from .alert import Alert

# Whose entries are of use; for `journalctl --identifier`. OpenSSH 9.8 split sshd.
IDENTIFIERS = ("sshd", "sshd-session", "login", "sudo", "su", "systemd-logind")

# systemd's sd-messages.h.
_SESSION_START = "8d45620c1a4348dbb17410da57c60c66"
_SESSION_STOP = "3354939424b4456d9802ca8333ed424a"

_SSH = re.compile(r"(Accepted|Partial) (\S+) for (\S+) from (\S+) port \d+ ssh2(?:: (.*))?")
_SSH_END = re.compile(
    r"(?:Connection (?:closed|reset) by|Disconnected from|Received disconnect from|Disconnecting|"
    r"error: maximum authentication attempts|Timeout before authentication).*"
)
_SSH_TIMEOUT = re.compile(r"Timeout before authentication .*pid = (\d+)")
_OPENED = re.compile(r"pam_unix\((\S+):session\): session opened for user (\S+)\(uid=(\d+)\) by (\S*)\(uid=(\d+)\)")
_CLOSED = re.compile(r"pam_unix\((?:sshd|login):session\): session closed for user .*")

_TO_ROOT = {"sudo": "sudo", "sudo-i": "sudo", "su": "su", "su-l": "su"}
_TO_ROOT_PROGRAMS = ("", "/usr/bin/sudo", "/usr/bin/su", "/bin/su")

_METHODS = {"publickey": "SSH key", "keyboard-interactive/pam": "SSH key and one-time code"}

# What somebody did last is noticed after they have gone.
_REMEMBERED = 10.0


@dataclass(frozen=True)
class Quiet:
    """Whose logins are not worth an alert: from these networks, or by a machine's account with its key from its own."""

    allowed: Sequence[str]
    automation: Mapping[str, Sequence[str]]

    def covers(self, user: str, address: str, method: str) -> bool:
        """Account, address and method must all be right."""
        if self._within(address, self.allowed):
            return True
        return method == "publickey" and self._within(address, self.automation.get(user, ()))

    @staticmethod
    def _within(address: str, networks: Sequence[str]) -> bool:
        where = ip_address(address)
        if isinstance(where, IPv6Address) and where.ipv4_mapped:
            where = where.ipv4_mapped
        return any(where in ip_network(network) for network in networks)


@dataclass
class Login:
    """Somebody who is logged in. `address` is empty on the console; `ended` is when they logged out."""

    user: str
    address: str
    method: str
    quiet: bool
    session: str = ""
    ended: float | None = None

    def __str__(self) -> str:
        """As an alert names it."""
        where = f"from {self.address}" if self.address else "on the console"
        return f"{self.user} {where} ({_METHODS.get(self.method, self.method)})"


class Observer:
    """Reads entries in their order, and remembers who is logged in: `state` is all that it remembers, as JSON."""

    def __init__(self, quiet: Quiet, name_of: Callable[[int], str], state: Mapping[str, Any] | None = None) -> None:
        """Go on from `state`. `name_of` says whose a user id is."""
        self._quiet = quiet
        self._name_of = name_of
        state = state or {}
        self._boot = str(state.get("boot", ""))
        self._logins = {pid: Login(**login) for pid, login in state.get("logins", {}).items()}
        # Whose key was right, and who has not given the code yet.
        self._half: dict[str, tuple[str, str, str]] = {
            pid: (half[0], half[1], half[2]) for pid, half in state.get("half", {}).items()
        }

    @property
    def state(self) -> dict[str, Any]:
        """For the next start."""
        logins = {pid: asdict(login) for pid, login in self._logins.items()}
        return {"boot": self._boot, "logins": logins, "half": self._half}

    def see(self, entry: Mapping[str, object]) -> Alert | None:
        """Take note of an entry; what it says, if it is worth an alert."""
        fields = {key: value for key, value in entry.items() if isinstance(value, str)}
        now = int(fields.get("__REALTIME_TIMESTAMP", "0")) / 1e6
        boot = fields.get("_BOOT_ID", "")
        if boot != self._boot:
            # Nobody is logged in any more, and process numbers begin again.
            self._boot, self._logins, self._half = boot, {}, {}
        self._forget(now)
        message, pid = fields.get("MESSAGE", ""), fields.get("_PID", "")
        identifier, uid = fields.get("SYSLOG_IDENTIFIER", ""), fields.get("_UID", "")
        if identifier in ("sudo", "su"):
            return self._became_root(fields, message, uid, now)
        if uid != "0":
            return None
        match identifier:
            case "sshd" | "sshd-session":
                return self._ssh(message, pid, now)
            case "login":
                return self._console(message, pid, now)
            case "systemd-logind":
                self._session(fields, now)
        return None

    def present(self, now: float) -> Iterator[Login]:
        """Who is logged in at this time, or was a moment ago."""
        self._forget(now)
        yield from self._logins.values()

    def _ssh(self, message: str, pid: str, now: float) -> Alert | None:
        if _CLOSED.fullmatch(message):
            self._end(pid, now)
        timeout = _SSH_TIMEOUT.fullmatch(message)
        if _SSH_END.fullmatch(message):
            half = self._half.pop(timeout[1] if timeout else pid, None)
            return half and self._half_way(*half, now)
        found = _SSH.fullmatch(message)
        if not found or not _is_address(found[4]):
            return None
        result, method, user, address, key = found.groups()
        if result == "Partial":
            self._half[pid] = (user, address, key or "")
            return None
        _, _, first_key = self._half.pop(pid, ("", "", ""))
        quiet = self._quiet.covers(user, address, method)
        login = self._logins[pid] = Login(user, address, method, quiet)
        if quiet:
            return None
        lines = [f"User: {user}", f"From: {address}", f"Method: {_METHODS.get(method, method)}"]
        if key or first_key:
            lines.append(f"Key: {key or first_key}")
        return Alert(f"SSH login: {login}", "\n".join(lines), time=now)

    def _half_way(self, user: str, address: str, key: str, now: float) -> Alert:
        """Of a person it may be a typing mistake; of a machine's account it is a stolen key."""
        machine = user in self._quiet.automation
        severity = "critical" if machine else "warning"
        why = "not from an allowed address" if machine else "no valid one-time code"
        lines = f"User: {user}\nFrom: {address}\nMethod: SSH key, but {why}: refused\nKey: {key}"
        return Alert(f"SSH login refused after a valid key: {user} from {address}", lines, severity, now)

    def _console(self, message: str, pid: str, now: float) -> Alert | None:
        if _CLOSED.fullmatch(message):
            self._end(pid, now)
        opened = _OPENED.fullmatch(message)
        if not opened or opened[1] != "login":
            return None
        login = self._logins[pid] = Login(opened[2], "", "password", quiet=False)
        return Alert(
            f"Console login: {login.user}", f"User: {login.user}\nFrom: the console\nMethod: password", time=now
        )

    def _became_root(self, fields: Mapping[str, str], message: str, uid: str, now: float) -> Alert | None:
        opened = _OPENED.fullmatch(message)
        if not opened or opened[1] not in _TO_ROOT or opened[3] != "0":
            return None
        # Both are still the person's while they become root. Whoever forges such a line can accuse only themselves.
        if opened[5] != uid or uid == "0" or fields.get("_EXE", "") not in _TO_ROOT_PROGRAMS:
            return None
        user, how = self._name_of(int(uid)), _TO_ROOT[opened[1]]
        # journald can't say the session of a process that has gone already.
        session = fields.get("_SYSTEMD_SESSION", "")
        logins = [login for login in self._logins.values() if session and login.session == session]
        logins = logins or [login for login in self._logins.values() if login.user == user]
        if logins and all(login.quiet and login.user == user for login in logins):
            return None
        where = ", ".join(sorted({str(login) for login in logins})) or "nobody who is logged in"
        return Alert(f"Root: {user} by {how}", f"User: {user}\nMethod: {how}\nLogged in as: {where}", time=now)

    def _session(self, fields: Mapping[str, str], now: float) -> None:
        kind, session = fields.get("MESSAGE_ID"), fields.get("SESSION_ID", "")
        if kind == _SESSION_START and fields.get("LEADER") in self._logins:
            self._logins[fields["LEADER"]].session = session
        elif kind == _SESSION_STOP:
            for pid, login in self._logins.items():
                if login.session == session:
                    self._end(pid, now)

    def _end(self, pid: str, now: float) -> None:
        if pid in self._logins and self._logins[pid].ended is None:
            self._logins[pid].ended = now

    def _forget(self, now: float) -> None:
        gone = [pid for pid, one in self._logins.items() if one.ended is not None and one.ended < now - _REMEMBERED]
        for pid in gone:
            del self._logins[pid]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
