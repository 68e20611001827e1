"""What uds-harden installs where a package has alternatives: the real functions, with stand-ins for apt and dpkg."""

import os
import re
import subprocess
from pathlib import Path

import pytest

HARDEN = Path(__file__).parents[2] / "cloud-init/files/usr/local/sbin/uds-harden"

DPKG_QUERY = """#!/bin/sh
for name; do :; done
case " $INSTALLED " in *" $name "*) printf installed ;; *) exit 1 ;; esac
"""
APT_CACHE = """#!/bin/sh
[ -e "$FOLDER/updated" ] || exit 1
printf '%s:\\n  Installed: (none)\\n' "$2"
case " $ARCHIVE " in *" $2 "*) echo '  Candidate: 9.7.4-2' ;; *) echo '  Candidate: (none)' ;; esac
"""
APT_GET = """#!/bin/sh
case "$*" in *" update") touch "$FOLDER/updated" ;; *) echo "${*#* install }" > "$FOLDER/installed" ;; esac
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    for name, text in {
        "dpkg-query": DPKG_QUERY,
        "apt-cache": APT_CACHE,
        "apt-get": APT_GET,
        "debconf-set-selections": "#!/bin/sh\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def installed(server: Path, wanted: str, *, present: str = "", archive: str = "") -> str | None:
    """What apt-get is told to install; None if it isn't called."""
    (server / "packages").write_text(wanted)
    functions, found = re.subn(r"(?s)\nload_firewall\ninstall_packages\n.*", "\ninstall_packages\n", HARDEN.read_text())
    assert found == 1
    script = functions.replace("/etc/uds/packages", f"{server}/packages").replace("/var/lib/uds", str(server))
    environment = {
        "PATH": f"{server}:{os.environ['PATH']}",
        "FOLDER": str(server),
        "INSTALLED": present,
        "ARCHIVE": archive,
    }
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    said = server / "installed"
    return said.read_text().strip() if said.exists() else None


@pytest.mark.parametrize(
    ("present", "archive", "expected"),
    [
        ("", "chrony mysql-server mariadb-server", "chrony mysql-server"),
        ("", "chrony mariadb-server", "chrony mariadb-server"),
        # apt-get is to say that there is none.
        ("", "chrony", "chrony mysql-server"),
        ("chrony mariadb-server", "chrony mysql-server mariadb-server", None),
        ("chrony mysql-server", "", None),
        ("mariadb-server", "chrony mysql-server", "chrony"),
        ("chrony mysql-serve mysql-server-core", "mysql-server", "mysql-server"),
    ],
)
def test_the_first_that_the_archive_has_is_installed_and_any_is_enough(
    server: Path, present: str, archive: str, expected: str | None
) -> None:
    wanted = "chrony\nmysql-server|mariadb-server\n"
    assert installed(server, wanted, present=present, archive=archive) == expected
