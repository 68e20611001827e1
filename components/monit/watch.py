"""What monit watches, in monit's own language. A capability that wants to be watched makes its text with `program`."""

WATCH = "/usr/local/lib/uds/watch"


def program(name: str, command: str, *, cycles: int = 1) -> str:
    """A program that says what is wrong and ends with another status than 0; the alert has its words.

    `name` is one word. With more `cycles` (30 s each), what looks like a fault for a moment raises no alert.
    """
    return f'check program {name} with path "{command}"\n' + _alert(name, f"status != 0 for {cycles} cycles")


def https(name: str, port: int, path: str) -> str:
    """Something that must answer below 400 on HTTPS, on this server. Its certificate's name need not lead here."""
    return f"check host {name} with address 127.0.0.1\n" + _alert(
        name,
        f'failed port {port} protocol https request "{path}" with timeout 10 seconds'
        " with ssl options {verify: disable} for 2 cycles",
    )


def recent(name: str, path: str, *, hours: int) -> str:
    """A file that something touches again and again; it has half an hour to come into being."""
    return (
        f"check file {name} with path {path}\n"
        + _alert(name, "does not exist for 60 cycles")
        + _alert(name, f"timestamp > {hours} hours")
    )


def _alert(name: str, fault: str) -> str:
    # The alert's words are monit's own (see uds-alert); it knows no quotes inside this one.
    alert = "/usr/local/sbin/uds-alert --severity"
    return (
        f'    if {fault} then exec "{alert} critical Watch: {name} is not well"\n'
        f'        else if succeeded then exec "{alert} info Watch: {name} is well again"\n'
    )


def server() -> str:
    """What is watched on every server, whatever its role."""
    return "\n".join(
        (
            # A restart is no fault.
            program("ssh", f"{WATCH} ssh", cycles=2),
            program("clock", f"{WATCH} clock", cycles=2),
            program("disk", f"{WATCH} disk"),
            program("memory", f"{WATCH} memory", cycles=4),
            program("firewall", f"{WATCH} firewall"),
            # A run that changes files writes their checksums last.
            program("files", f"{WATCH} files", cycles=2),
            program("units", f"{WATCH} units"),
            program("reboot", f"{WATCH} reboot"),
            # Everybody's, whose alerts would otherwise just not come.
            program("alerts", f"{WATCH} alerts", cycles=2),
        )
    )


def certificate(name: str, path: str) -> str:
    """A certificate (PEM, the first in the file) that ends soon."""
    return program(name, f"{WATCH} certificate {path}")
