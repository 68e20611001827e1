"""The operating system: what was put there, updates, time, and nothing that failed (guide, 3.2)."""

import hashlib
from fnmatch import fnmatchcase

from uds.verify.check import HARDENING, Problems, check
from uds.verify.server import Server

# Of the database's two engines, the other one's files are not installed.
_ENGINES = {"mariadb": "/mysql.", "mysql": "/mariadb."}


@check("3.2", "Every file is as the stack put it there", "uds apply STACK {server} CAPABILITY, which the problem names")
def files_as_delivered(server: Server) -> Problems:
    """Contents, owner and permissions of every file of every capability."""
    wanted = {file.path: (capability, file) for capability, files in server.files.items() for file in files}
    if server.role == "db":
        engine = "mariadb" if server.host.exists("mariadbd") else "mysql"
        wanted = {path: value for path, value in wanted.items() if _ENGINES[engine] not in path}
    names = " ".join(f"'{path}'" for path in sorted(wanted))
    found = {}
    listed = server.read(f'for f in {names}; do [ -f "$f" ] && stat -c "%a %U" "$f" && sha256sum "$f"; done; true')
    lines = iter(listed.splitlines())
    for mode in lines:
        digest, _, path = next(lines).partition("  ")
        found[path] = f"{mode} {digest}"
    for path, (capability, file) in sorted(wanted.items()):
        is_so = f"{file.mode:o} root {hashlib.sha256(file.content.encode()).hexdigest()}"
        if path not in found:
            yield f"{path} is missing ({capability})"
        elif found[path] != is_so:
            what = "content" if found[path].rpartition(" ")[0] == is_so.rpartition(" ")[0] else "owner or permissions"
            yield f"{path}: its {what} changed ({capability})"


@check("3.2", "Security updates install themselves", HARDENING)
def updates_install_themselves(server: Server) -> Problems:
    """apt's effective settings, and the timers that start it."""
    settings = server.read("apt-config dump APT::Periodic")
    for name in ("Update-Package-Lists", "Unattended-Upgrade"):
        if f'APT::Periodic::{name} "1"' not in settings:
            yield f"APT::Periodic::{name} is not 1"
    for unit in ("apt-daily.timer", "apt-daily-upgrade.timer", "unattended-upgrades.service"):
        if not server.host.service(unit).is_enabled:
            yield f"{unit} is not enabled"
    for unit in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        if not server.host.service(unit).is_running:
            yield f"{unit} does not run"


@check(
    "3.2", "No security update waits for more than two days", "uds ssh STACK {server} --sudo -- unattended-upgrade -v"
)
def updates_are_installed(server: Server) -> Problems:
    """Only when the lists themselves are fresh does an empty answer mean something."""
    age = server.read("echo $(( $(date +%s) - $(stat -c %Y /var/lib/apt/lists) ))").strip()
    if int(age) > 2 * 86400:
        yield f"the package lists are {int(age) // 86400} days old"
    if server.host.file("/run/reboot-required").exists:
        age = server.read("echo $(( $(date +%s) - $(stat -c %Y /run/reboot-required) ))").strip()
        if int(age) > 2 * 86400:
            yield f"a reboot for updates is due for {int(age) // 86400} days"


@check("3.2", "The clock is kept", HARDENING)
def time_is_kept(server: Server) -> Problems:
    """One-time codes and logs need the time. In a container, the clock is the host's."""
    if not server.host.service("chrony").is_enabled:
        yield "chrony is not enabled"
    in_container = server.host.run("systemd-detect-virt --container").succeeded
    if not in_container and not server.host.service("chrony").is_running:
        yield "chrony does not run"


@check("3.2", "Nothing failed", "uds ssh STACK {server} --sudo -- systemctl --failed")
def nothing_failed(server: Server) -> Problems:
    """systemd's units, and our own first boot."""
    for line in server.read("systemctl list-units --failed --plain --no-legend").splitlines():
        yield f"{line.split()[0]} failed"
    if server.host.run("cat /var/lib/uds/first-boot").stdout != "ok\n":
        yield "the first boot did not succeed (/var/lib/uds/first-boot.log)"


@check("3.10", "The journal survives a reboot", HARDENING)
def journal_is_kept(server: Server) -> Problems:
    """journald writes to the disk only where this folder is."""
    machine = server.read("cat /etc/machine-id").strip()
    if not server.host.file(f"/var/log/journal/{machine}").is_directory:
        yield f"/var/log/journal/{machine} does not exist"


@check("3.2", "The kernel's network settings are in force", HARDENING)
def kernel_settings(server: Server) -> Problems:
    """The values of the hardened file, as the kernel has them now. Only the network's are a container's own."""
    in_container = server.host.run("systemd-detect-virt --container").succeeded
    wanted = {}
    for file in server.files.get("hardening", ()):
        if file.path.startswith("/etc/sysctl.d/"):
            for line in file.content.splitlines():
                name, equals, value = (part.strip() for part in line.lstrip("-").partition("="))
                if equals and not line.startswith(("#", ";")) and (name.startswith("net.") or not in_container):
                    wanted["/proc/sys/" + name.replace(".", "/")] = value
    # `*` stands for every interface; what this kernel doesn't have isn't there.
    listed = server.read(f"for f in {' '.join(wanted)}; do [ ! -e $f ] || echo $f $(cat $f); done")
    for path, _, found in (line.partition(" ") for line in listed.splitlines()):
        value = next(value for pattern, value in wanted.items() if fnmatchcase(path, pattern))
        if found != value:
            yield f"{path.removeprefix('/proc/sys/').replace('/', '.')} is {found}, not {value}"


@check("3.2", "Nobody sees the processes of others", HARDENING)
def processes_are_hidden(server: Server) -> Problems:
    """Now, and after the next boot. What others run has secrets in its arguments, whenever somebody is careless."""
    if "hidepid=invisible" not in server.read("findmnt -n -o OPTIONS /proc"):
        yield "/proc shows the processes of everybody to everybody"
    if "hidepid=invisible" not in server.read("findmnt --fstab -n -o OPTIONS /proc || true"):
        yield "/proc will show them after the next boot: /etc/fstab doesn't say hidepid=invisible"
