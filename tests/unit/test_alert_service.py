"""What runs on a server for its alerts: the reader of the journal, the queue, the channels, and what sees changes."""

import json
import runpy
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.monit.files.usr.local.lib.uds.alerts import changes, channels
from components.monit.files.usr.local.lib.uds.alerts.alert import Alert, plain, subject, text
from components.monit.files.usr.local.lib.uds.alerts.events import Observer, Quiet
from components.monit.files.usr.local.lib.uds.alerts.service import Service
from components.monit.files.usr.local.lib.uds.alerts.spool import Spool

OFFICE, ELSEWHERE = "198.51.100.7", "203.0.113.9"
QUIET = Quiet(["192.0.2.0/24", "2001:db8:1::/64"], {"deploy": [f"{OFFICE}/32"]})
KEY = "ED25519 SHA256:d8cFS0WAUTimKoCFX8O9EFz0qtCY69qFSjEI7MY5BXE"
NAMES = {1000: "deploy", 1001: "alice", 1002: "bob"}


def observer(state: Any = None) -> Observer:  # noqa: ANN401 - JSON
    return Observer(QUIET, lambda uid: NAMES.get(uid, "nobody"), state)


def entry(
    identifier: str, message: str, pid: int = 1, uid: int = 0, *, at: float = 1000, more: dict[str, str] | None = None
) -> dict[str, object]:
    return {
        "SYSLOG_IDENTIFIER": identifier,
        "MESSAGE": message,
        "_PID": str(pid),
        "_UID": str(uid),
        "_BOOT_ID": "b",
        "__REALTIME_TIMESTAMP": str(int(at * 1e6)),
        "__CURSOR": f"c{at}",
        **(more or {}),
    }


def ssh(
    user: str, address: str, method: str = "publickey", pid: int = 1, result: str = "Accepted"
) -> dict[str, object]:
    return entry("sshd-session", f"{result} {method} for {user} from {address} port 4 ssh2: {KEY}", pid)


def session(leader: int, name: str) -> dict[str, object]:
    fields = {"MESSAGE_ID": "8d45620c1a4348dbb17410da57c60c66", "SESSION_ID": name, "LEADER": str(leader)}
    return entry("systemd-logind", f"New session {name}", 99, more=fields)


def root(uid: int, by: str, service: str = "sudo", **more: str) -> dict[str, object]:
    message = f"pam_unix({service}:session): session opened for user root(uid=0) by {by}(uid={uid})"
    return entry(service.partition("-")[0], message, 50, uid, more=more)


# The journal


@pytest.mark.parametrize("identifier", ["sshd", "sshd-session"])
def test_a_login_says_who_from_where_and_how(identifier: str) -> None:
    seen = observer()
    partial = f"Partial publickey for alice from {ELSEWHERE} port 4 ssh2: {KEY}"
    assert seen.see(entry(identifier, partial)) is None
    alert = seen.see(entry(identifier, f"Accepted keyboard-interactive/pam for alice from {ELSEWHERE} port 4 ssh2"))
    assert alert
    assert alert.subject == f"SSH login: alice from {ELSEWHERE} (SSH key and one-time code)"
    assert alert.text.splitlines() == [
        "User: alice",
        f"From: {ELSEWHERE}",
        "Method: SSH key and one-time code",
        f"Key: {KEY}",
    ]
    assert alert.time == 1000


@pytest.mark.parametrize(
    ("user", "address", "method", "told"),
    [
        ("deploy", OFFICE, "publickey", False),
        # Each of the three must be right.
        ("deploy", ELSEWHERE, "publickey", True),
        ("deploy", OFFICE, "keyboard-interactive/pam", True),
        ("deploy2", OFFICE, "publickey", True),
        ("alice", OFFICE, "publickey", True),
        # Allowed addresses are anybody's.
        ("alice", "192.0.2.255", "keyboard-interactive/pam", False),
        ("alice", "192.0.3.0", "keyboard-interactive/pam", True),
        ("alice", "2001:db8:1::ffff", "keyboard-interactive/pam", False),
        ("alice", "2001:db8:2::1", "keyboard-interactive/pam", True),
        ("alice", "::ffff:192.0.2.1", "keyboard-interactive/pam", False),
    ],
)
def test_only_account_address_and_method_together_are_quiet(user: str, address: str, method: str, told: bool) -> None:
    assert (observer().see(ssh(user, address, method)) is not None) == told


FORGED = f"Accepted publickey for root from {ELSEWHERE} port 4 ssh2: {KEY}"


@pytest.mark.parametrize(
    "forged",
    [
        entry("sshd-session", FORGED, uid=1001),
        entry("other", FORGED),
        entry("sshd-session", f"Invalid user x {FORGED} from {ELSEWHERE} port 4"),
        entry("sshd-session", f"Invalid user x\n{FORGED}"),
        entry("sshd-session", f"{FORGED}\nx"),
        entry("sshd-session", FORGED.replace(ELSEWHERE, "not-an-address")),
        entry("login", "pam_unix(login:session): session opened for user root(uid=0) by x(uid=0)", uid=1001),
        # Nobody can accuse another person.
        root(1002, "alice") | {"_UID": "1001"},
        root(1001, "alice", _EXE="/usr/bin/logger"),
        {**entry("sshd-session", ""), "MESSAGE": [1, 2, 3]},
        {},
    ],
)
def test_what_others_write_raises_nothing(forged: dict[str, object]) -> None:
    assert observer().see(forged) is None


@given(st.dictionaries(st.sampled_from([*entry("", "")]), st.text() | st.none() | st.lists(st.integers())))
def test_no_entry_breaks_the_reader(fields: dict[str, object]) -> None:
    seen = observer()
    good = ssh("alice", ELSEWHERE)
    assert seen.see({**fields, "__REALTIME_TIMESTAMP": "1"}) is None or True
    assert seen.see(good)
    assert json.loads(json.dumps(seen.state)) is not None


def test_a_name_is_who_it_really_is() -> None:
    alert = observer().see(root(1001, "root"))
    assert alert
    assert alert.subject == "Root: alice by sudo"


@pytest.mark.parametrize(("service", "how"), [("sudo", "sudo"), ("sudo-i", "sudo"), ("su", "su"), ("su-l", "su")])
def test_becoming_root_is_told_with_where_the_person_is(service: str, how: str) -> None:
    seen = observer()
    seen.see(ssh("alice", ELSEWHERE, pid=7))
    seen.see(session(7, "c1"))
    alert = seen.see(root(1001, "alice", service, _SYSTEMD_SESSION="c1"))
    assert alert
    assert alert.subject == f"Root: alice by {how}"
    assert f"Logged in as: alice from {ELSEWHERE} (SSH key)" in alert.text


def test_root_by_the_automation_is_quiet_and_by_a_stranger_with_its_name_is_not() -> None:
    seen = observer()
    # No such session: a job of somebody who isn't logged in.
    assert seen.see(root(1000, "deploy"))
    seen.see(ssh("deploy", OFFICE, pid=7))
    seen.see(session(7, "c1"))
    assert seen.see(root(1000, "deploy", _SYSTEMD_SESSION="c1")) is None
    # journald couldn't say where it came from.
    assert seen.see(root(1000, "deploy")) is None
    # Somebody else in the automation's session.
    assert seen.see(root(1001, "alice", _SYSTEMD_SESSION="c1"))
    seen.see(ssh("deploy", ELSEWHERE, pid=8))
    assert seen.see(root(1000, "deploy"))


def test_root_who_becomes_root_is_no_news() -> None:
    assert observer().see(root(0, "alice", "su")) is None


def test_a_console_login_is_told() -> None:
    seen = observer()
    alert = seen.see(entry("login", "pam_unix(login:session): session opened for user alice(uid=1001) by alice(uid=0)"))
    assert alert
    assert alert.subject == "Console login: alice"
    assert [str(login) for login in seen.present(1000)] == ["alice on the console (password)"]


@pytest.mark.parametrize(
    "end",
    [
        f"Connection closed by authenticating user deploy {ELSEWHERE} port 4 [preauth]",
        f"Disconnected from authenticating user deploy {ELSEWHERE} port 4 [preauth]",
        "error: maximum authentication attempts exceeded for deploy",
    ],
)
@pytest.mark.parametrize(("user", "severity"), [("deploy", "critical"), ("alice", "warning")])
def test_a_good_key_that_goes_no_further_is_told(end: str, user: str, severity: str) -> None:
    seen = observer()
    seen.see(ssh(user, ELSEWHERE, pid=7, result="Partial"))
    alert = seen.see(entry("sshd-session", end, 7))
    assert alert
    assert (alert.severity, alert.subject) == (
        severity,
        f"SSH login refused after a valid key: {user} from {ELSEWHERE}",
    )
    assert seen.see(entry("sshd-session", end, 7)) is None


def test_a_login_that_never_ends_its_code_is_told_by_the_listener() -> None:
    seen = observer()
    seen.see(ssh("deploy", ELSEWHERE, pid=7, result="Partial"))
    assert seen.see(entry("sshd", "Timeout before authentication for connection from a to b, pid = 7", 1))


def test_a_login_ends_and_is_remembered_for_a_moment_over_starts_but_not_over_boots() -> None:
    seen = observer()
    seen.see(ssh("alice", ELSEWHERE, pid=7))
    again = observer(json.loads(json.dumps(seen.state)))
    assert [login.user for login in again.present(2000)] == ["alice"]
    again.see(entry("sshd-session", "pam_unix(sshd:session): session closed for user alice", 7, at=2000))
    assert [login.user for login in again.present(2005)] == ["alice"]
    assert list(again.present(2020)) == []
    seen.see({**ssh("bob", ELSEWHERE, pid=8), "_BOOT_ID": "next"})
    assert [login.user for login in seen.present(1000)] == ["bob"]


# The words


def test_no_text_can_pretend_to_be_another_part() -> None:
    evil = Alert("a\r\nBcc: x\u202e", "b\nServer: other\x1b[31m\u2028c", time=0)
    assert subject(evil, "app-1") == r"[app-1] a\r\nBcc: x\u202e"
    lines = text(evil, "app-1", "Europe/Berlin").splitlines()
    assert lines[-4:] == [
        "Server: app-1",
        "Severity: warning",
        "Time: 1970-01-01 00:00:00 UTC",
        "Local time: 1970-01-01 01:00:00 CET (Europe/Berlin)",
    ]
    assert r"Server: other\x1b[31m" in lines


@given(st.text())
def test_plain_is_one_visible_line(words: str) -> None:
    assert plain(words).isprintable()
    assert len(plain(words).splitlines()) <= 1


@pytest.mark.parametrize("bad", ["[]", "{}", '{"subject": 1}', '{"subject": "a", "x": 1}', '{"subject":"a","text":2}'])
def test_what_is_no_alert_is_refused(bad: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own among them
        Alert.from_json(bad)


# The queue


def names(spool: Spool, channel: str) -> list[str]:
    found = []
    while spool.waiting(channel):
        alert = spool.next(channel)
        found.append(alert.subject)
        spool.delivered(channel, alert)
    return found


def test_each_channel_has_every_alert_in_its_order_over_starts(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "q", ["a", "b"])
    spool.put([Alert("1"), Alert("2")], {"cursor": "x"})
    spool.delivered("a", spool.next("a"))
    spool = Spool(tmp_path / "q", ["a", "b"])
    spool.put([Alert("3", time=0)])
    assert spool.memory() == {"cursor": "x"}
    assert (names(spool, "a"), names(spool, "b")) == (["2", "3"], ["1", "2", "3"])


def test_a_channel_that_is_new_or_gone_disturbs_no_other(tmp_path: Path) -> None:
    Spool(tmp_path / "q", ["a", "b"]).put([Alert("1")])
    spool = Spool(tmp_path / "q", ["b", "c"])
    assert (spool.waiting("a"), names(spool, "b"), spool.waiting("c")) == (0, ["1"], 0)


def test_a_full_queue_keeps_the_first_and_confesses_what_it_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "q", ["a", "b"], limit=4)
    for number in range(1, 8):
        spool.put([Alert(str(number), time=number)])
        spool.delivered("b", spool.next("b"))
    spool = Spool(tmp_path / "q", ["a", "b"], limit=4)
    assert names(spool, "a") == ["1", "2", "3", "4", "3 alerts were dropped since 1970-01-01 00:00:05 UTC"]
    assert names(spool, "b") == []
    spool.put([Alert("8")])
    assert names(spool, "a") == ["8"]


def test_without_channels_nothing_waits(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "q", [])
    spool.put([Alert("1")], 5)
    assert spool.memory() == 5


def test_who_waits_gets_the_next_alert(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "q", ["a"])
    found: list[Alert] = []
    waiter = threading.Thread(target=lambda: found.append(spool.next("a")))
    waiter.start()
    spool.put([Alert("1")])
    waiter.join(10)
    assert [alert.subject for alert in found] == ["1"]


# The service

CONFIG = {"server": "app-1", "timezone": "UTC", "allowedSources": [], "automation": {"deploy": [f"{OFFICE}/32"]}}


class Spy:
    """A channel that fails a few times."""

    name = "spy"

    def __init__(self, last: str, failures: Sequence[Exception]) -> None:
        self.last = last
        self.failures = list(failures)
        self.sent: list[str] = []
        self.done = threading.Event()

    def send(self, alert: Alert) -> str:
        if self.failures:
            raise self.failures.pop()
        self.sent.append(alert.subject)
        if alert.subject == self.last:
            self.done.set()
        return "ok"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = Service(CONFIG, tmp_path)
    service.spool = Spool(tmp_path / "own", ["spy"])
    return service


def test_what_was_read_is_not_read_again_after_a_kill(tmp_path: Path) -> None:
    first = Service(CONFIG, tmp_path)
    first.spool = Spool(tmp_path / "own", ["spy"])
    far = 4e9
    first.see({**ssh("alice", ELSEWHERE), "__REALTIME_TIMESTAMP": str(int(far * 1e6))})
    assert first.spool.waiting("spy") == 1
    assert first.spool.memory()["cursor"] == "c1000"


def test_nobody_is_told_of_what_was_before_the_first_start(service: Service) -> None:
    service.see(ssh("alice", ELSEWHERE))
    assert service.spool.waiting("spy") == 0


def test_a_channel_that_fails_gets_each_alert_once_and_in_order(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    spy = Spy("last", [channels.RefusedError("no"), OSError("down"), TimeoutError(), *(OSError() for _ in range(6))])
    service.put([Alert("1"), Alert("2"), Alert("last")])
    threading.Thread(target=service.deliver, args=(spy,), daemon=True).start()
    assert spy.done.wait(10)
    assert spy.sent == ["1", "2", "last"]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_others_hear_of_a_channel_that_stays_away(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    spy = Spy("No alerts go through spy", [OSError("gone")] * 20)
    service.put([Alert("1")])
    threading.Thread(target=service.deliver, args=(spy,), daemon=True).start()
    assert spy.done.wait(10)
    assert spy.sent == ["1", "No alerts go through spy"]


class Picky(Spy):
    """A channel that never takes one of the alerts."""

    def __init__(self, last: str, bad: str, error: Exception) -> None:
        super().__init__(last, [])
        self.bad, self.error = bad, error

    def send(self, alert: Alert) -> str:
        if alert.subject == self.bad:
            raise self.error
        return super().send(alert)


def test_an_alert_that_is_refused_for_its_words_holds_up_no_other(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    spy = Picky("3", "2", channels.RefusedError("550 spam"))
    service.put([Alert("1"), Alert("2", time=0), Alert("3")])
    threading.Thread(target=service.deliver, args=(spy,), daemon=True).start()
    assert spy.done.wait(10)
    assert spy.sent == ["1", "An alert of 1970-01-01 00:00:00 UTC is refused by spy", "3"]


def test_an_alert_that_a_channel_never_heard_is_not_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = threading.Event()
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 30:
            tries.set()
            threading.Event().wait()

    monkeypatch.setattr("time.sleep", sleep)
    spy = Picky("2", "1", OSError("no route"))
    service.put([Alert("1"), Alert("2")])
    threading.Thread(target=service.deliver, args=(spy,), daemon=True).start()
    assert tries.wait(10)
    assert spy.sent == []


def test_changes_are_told_unless_only_the_automation_is_there(service: Service) -> None:
    service._changed(["account: x was added"])
    alert = service.spool.next("spy")
    assert alert.subject == "Changed: account"
    assert "Logged in: nobody" in alert.text
    service.spool.delivered("spy", alert)
    far = {"__REALTIME_TIMESTAMP": str(int(4e9 * 1e6))}
    service.see({**ssh("deploy", OFFICE, pid=7), **far})
    service._changed(["account: x was removed"])
    assert service.spool.waiting("spy") == 0
    service.see({**ssh("alice", ELSEWHERE, pid=8), **far})
    service.spool.delivered("spy", service.spool.next("spy"))
    service._changed(["key: of x was added", "firewall: y was added"])
    alert = service.spool.next("spy")
    assert (alert.subject, alert.severity) == ("Changed: firewall, key", "critical")
    assert f"alice from {ELSEWHERE} (SSH key), deploy from {OFFICE} (SSH key)" in alert.text


# Changes


def test_differences_are_named_without_secrets() -> None:
    before = {"account: a": "uid 1", "password: of a": "old", "firewall: IPv4 filter :INPUT DROP": "1"}
    after = {"account: a": "uid 0", "password: of a": "new", "firewall: IPv4 filter :INPUT ACCEPT": "1"}
    assert list(changes.differences(before, after)) == [
        "account: a was changed (uid 0)",
        "firewall: IPv4 filter :INPUT ACCEPT was added",
        "firewall: IPv4 filter :INPUT DROP was removed",
        "password: of a was changed",
    ]


def test_rules_are_compared_without_their_counters() -> None:
    one = "# x\n*filter\n:INPUT DROP [5:600]\n-A INPUT -j A\n-A INPUT -j A\nCOMMIT\n"
    assert changes.rules("IPv4", one) == changes.rules("IPv4", one.replace("5:600", "7:800"))
    assert changes.rules("IPv4", one) != changes.rules("IPv4", one.replace("-A INPUT -j A\n", "", 1))
    assert changes.rules("IPv4", one)["firewall: IPv4 filter :INPUT DROP"] == "1"


# uds-alert

UDS_ALERT = Path(changes.__file__).parents[3] / "sbin/uds-alert"


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["--severity", "info", "two", "words"], b"text\xff", ("two words", "text\ufffd", "info")),
        (["s"], b"", ("s", "it is down", "warning")),
    ],
)
def test_the_command_hands_over_what_it_was_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    stdin: bytes,
    expected: tuple[str, str, str],
) -> None:
    monkeypatch.setattr("sys.argv", ["uds-alert", *arguments])
    monkeypatch.setenv("MONIT_DESCRIPTION", "it is down")
    (tmp_path / "in").write_bytes(stdin)
    received: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            received.append(b"".join(iter(lambda: connection.recv(65536), b"")))
            connection.sendall(b"{}")

    with socket.socket(socket.AF_UNIX) as listener, (tmp_path / "in").open() as text_in:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        monkeypatch.setattr("sys.stdin", text_in)
        connect = socket.socket.connect
        monkeypatch.setattr(socket.socket, "connect", lambda one, _: connect(one, str(tmp_path / "socket")))
        threading.Thread(target=serve, args=(listener,)).start()
        runpy.run_path(str(UDS_ALERT))
    alert = Alert.from_json(received[0])
    assert (alert.subject, alert.text, alert.severity) == expected
