"""Hardening as judges from elsewhere see it: what they find is mended, or waived with a reason (judges/waivers.yaml).

A finding without a waiver fails, and so does a waiver without its finding. Of ports, nmap has the word in
`test_ports.py`.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from rehearsal import podman
from tests.rehearsal.conftest import Rehearsal, one_stack

Findings = Mapping[str, str]
"""What a judge says against a server: the finding's name, and words."""

SERVERS = ("app-1", "db-1", "backup-1")
FOLDER = Path(__file__).parent / "judges"
WAIVERS: dict[str, list[dict[str, Any]]] = yaml.safe_load((FOLDER / "waivers.yaml").read_text())
LEAST_INDEX = 86

# What systemd says of our units, from 0 (has nothing) to 10 (has everything). What is left of it:
EXPOSURE = {
    "application.service": 1.1,  # the network, and its own system's libraries
    "uds-alerts.service": 1.5,  # the network
    "uds-backup.service": 2.3,  # the network, and every file, as root who is the database's
    "uds-backup-store@.service": 1.3,  # root, whose backups are
    "uds-changes.service": 2.0,  # secret files, and the kernel's firewall
    "uds-integrity.service": 1.3,  # every file of root's
}

# Unpacked and not installed: the server is judged as it is.
_IN_A_FOLDER = """
cd "$(mktemp -d /root/judge.XXXX)"
trap 'rm -rf "$PWD"' EXIT
log=$PWD/log
exec 3>&1 >"$log" 2>&1
trap 'tail -n 20 "$log" >&3' ERR
"""

# Of AIDE both judges want to see what the first night leaves. Lynis isn't asked about USB, which no server in a cloud
# has, and the clock, which is a container's host's.
_LYNIS = r"""
systemctl start uds-integrity
apt-get -q download lynis
dpkg-deb -x lynis_*.deb .
printf '%s\n' skip-test=USB-3000 skip-test=TIME-3104 >> etc/lynis/default.prf
cd usr/share/lynis
../../sbin/lynis audit system --quick --no-colors --profile ../../../etc/lynis/default.prf \
    --plugindir ../../../etc/lynis/plugins --logfile "$PWD/log" --report-file "$PWD/report"
cat report >&3
"""

# The content is the newest that Debian has: an old one knows nothing of a new system. Most of its rules aren't for
# containers, which it knows by a file of podman's and by the kernel's package that isn't there: it sees neither.
_OPENSCAP = r"""
systemctl start uds-integrity
mkdir -p archives/partial lists/partial root
apt-get -q -y --no-install-recommends -o Dir::Cache::Archives="$PWD/archives" --download-only install openscap-scanner
awk '$1 == "deb" { print "deb [check-valid-until=no]", $2, "sid main"; exit }' /etc/apt/sources.list > sources
newest="-o Dir::Etc::SourceList=$PWD/sources -o Dir::Etc::SourceParts=- -o Dir::State::Lists=$PWD/lists"
apt-get -q $newest update
(cd archives && apt-get -q $newest download ssg-debian)
for package in archives/*.deb; do dpkg-deb -x "$package" root; done
umount /run/.containerenv || true
rm -f /run/.containerenv
cp /var/lib/dpkg/status .
printf '%s\n' '' 'Package: linux-base' 'Status: install ok installed' 'Architecture: all' 'Version: 1' >> status
shared=$PWD/root/usr/share
export LD_LIBRARY_PATH=$(echo "$PWD"/root/usr/lib/*-linux-gnu) OSCAP_SCHEMA_PATH=$shared/openscap/schemas
export OSCAP_CPE_PATH=$shared/openscap/cpe OSCAP_XSLT_PATH=$shared/openscap/xsl
# It ends with 2 when a rule isn't kept.
unshare --mount sh -c 'mount --bind status /var/lib/dpkg/status && exec "$@"' oscap \
    root/usr/bin/oscap xccdf eval --progress --profile cis_level1_server \
    $shared/xml/scap/ssg/content/ssg-debian13-ds.xml > results || [ $? = 2 ]
cat results >&3
"""

OF_THE_FILES = "decided by the servers' own files, which are the same on every cloud"

pytestmark = one_stack(OF_THE_FILES)


@pytest.fixture(scope="module")
def up(up_with_backups: Rehearsal) -> Rehearsal:
    """All roles are judged."""
    return up_with_backups


def on_every_server(ask: Callable[[str], str]) -> dict[str, str]:
    """What each of the servers answers; all are asked at once."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(SERVERS, pool.map(ask, SERVERS), strict=True))


def run(up: Rehearsal, script: str, server: str) -> str:
    """What the script prints, as root on the server's console."""
    argv = ["bash", "-c", f"set -eE\n{script}"]
    done = up.realm().power.exec(up.machine(server).number, argv, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_waived(judge: str, found: Mapping[str, Findings]) -> None:
    """Every finding has a waiver, and every waiver its finding."""
    new, gone = {}, {}
    for server, findings in found.items():
        waivers = [waiver for waiver in WAIVERS[judge] if server in waiver.get("servers", SERVERS)]
        waived = {name for waiver in waivers for name in waiver["findings"]}
        certain = {name for waiver in waivers if "of" not in waiver for name in waiver["findings"]}
        new[server] = {name: words for name, words in findings.items() if name not in waived}
        gone[server] = sorted(certain - findings.keys())
    assert not any(new.values()), f"{judge} found, and nobody waived:\n{json.dumps(new, indent=1)}"
    assert not any(gone.values()), f"waived, and {judge} finds it no more: {gone}"


def test_every_waiver_has_its_reason() -> None:
    for waiver in (waiver for waivers in WAIVERS.values() for waiver in waivers):
        assert waiver.keys() <= {"findings", "why", "servers", "of"}, waiver
        assert waiver["findings"]
        assert len(waiver["why"]) > 20, waiver
        assert set(waiver.get("servers", SERVERS)) <= set(SERVERS), waiver


def lynis(report: str) -> Findings:
    """The suggestions and warnings in Lynis's report: test, and what of the thing that it tests."""
    found = {}
    for line in re.findall(r"^(?:suggestion|warning)\[\]=(.*)$", report, re.M):
        test, words, details, *_ = line.split("|")
        option = details.split()[0] if test == "SSH-7408" else ""
        found[f"{test} {option}".strip()] = f"{words} ({details})"
    return found


def test_lynis(up: Rehearsal) -> None:
    reports = on_every_server(partial(run, up, _IN_A_FOLDER + _LYNIS))
    index = {server: int(re.findall(r"^hardening_index=(\d+)$", text, re.M)[0]) for server, text in reports.items()}
    assert_waived("lynis", {server: lynis(report) for server, report in reports.items()})
    assert min(index.values()) >= LEAST_INDEX, index


def from_app(up: Rehearsal) -> tuple[str, ...]:
    """What lets a program of this host see the others as the first application server does."""
    return "ip", "netns", "exec", up.realm().network.namespace(up.machine("app-1").number)


@pytest.mark.parametrize("server", SERVERS)
def test_ssh_audit(up: Rehearsal, server: str) -> None:
    """It finds nothing: no waivers."""
    program = [sys.executable, "-m", "ssh_audit.ssh_audit", "--skip-rate-test", "-j"]
    if server == "app-1":
        program = [*program, up.outputs()["servers"][server]["publicIp"]]
    else:
        program = [*from_app(up), *program, up.private_address(server)]
    done = podman.run(program, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    offer = json.loads(done.stdout)
    # The key of the first contact was of another type.
    assert [key["algorithm"] for key in offer["key"]] == ["ssh-ed25519"]
    found = [
        entry
        for kind in ("kex", "key", "enc", "mac")
        for entry in offer[kind]
        if entry["notes"].keys() & {"fail", "warn"}
    ]
    assert found == []


def sslyze(address: str, port: int, start: Sequence[str] = (), *options: str) -> Findings:
    """Where a server's TLS is weaker than Mozilla's intermediate profile."""
    program = [*start, os.environ.get("UV", "uv"), "run", "--quiet", "--frozen", "--script", str(FOLDER / "tls.py")]
    issues: Findings = json.loads(podman.run([*program, *options, address, str(port)], timeout=300).stdout)
    return issues


def test_sslyze(up: Rehearsal) -> None:
    """The application as the world sees it, and the database as the application does."""
    public = up.outputs()["servers"]["app-1"]["publicIp"]
    found = {
        "app-1": sslyze(public, 443),
        "db-1": sslyze(up.private_address("db-1"), 3306, from_app(up), "--mysql"),
    }
    assert_waived("sslyze", found)


def openscap(progress: str) -> Findings:
    """The rules that aren't kept."""
    results = dict(line.rpartition(":")[::2] for line in progress.splitlines() if ":" in line)
    assert len(results) > 300
    return {
        rule.removeprefix("xccdf_org.ssgproject.content_rule_"): result
        for rule, result in results.items()
        if result in {"fail", "error", "unknown"}
    }


@pytest.mark.nightly("the newest content may ask for more than yesterday, whatever changed here")
def test_openscap(up: Rehearsal) -> None:
    results = on_every_server(partial(run, up, _IN_A_FOLDER + _OPENSCAP))
    assert_waived("openscap", {server: openscap(result) for server, result in results.items()})


def test_systemd(up: Rehearsal) -> None:
    """Each line of a unit that confines it is missed as soon as it isn't there."""
    names = "find /etc/systemd/system -maxdepth 1 -type f -name '*.service' -printf '%f\\n'"
    told = on_every_server(
        partial(run, up, f"systemd-analyze security --no-pager $({names} | sed 's/@/@x/')")  # an instance of a template
    )
    levels = {
        unit.replace("@x", "@"): float(level)
        for text in told.values()
        for unit, level in re.findall(r"Overall exposure level for (\S+): ([\d.]+)", text)
    }
    assert levels == EXPOSURE
