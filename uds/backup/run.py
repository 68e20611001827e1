"""A backup out of turn."""

from uds.backup.catalogue import Backup
from uds.backup.places import Place
from uds.backup.restore import stored
from uds.backup.servers import DATABASE, Servers
from uds.stack import OperatorError

_UNIT = "uds-backup.service"

# Waits until the run has ended; one that is going on already is waited for as well.
_START = f"""
before=$(systemctl show -p InvocationID --value {_UNIT})
systemctl start {_UNIT} && exit 0
journalctl -q --sync
run=$(systemctl show -p InvocationID --value {_UNIT})
systemctl show -p Result,ExecMainStatus {_UNIT} | paste -s -d ' '
[ "$run" = "$before" ] || journalctl -q -o cat -n 20 _SYSTEMD_INVOCATION_ID="$run"
exit 1
"""


def now(servers: Servers, place: Place) -> Backup:
    """Make a backup and return it, as this place has it.

    Raises:
        OperatorError: it failed, with the words of the run; or something of it didn't arrive.
    """
    before = {backup.id for backup in stored(place)}
    status, text = servers.run(DATABASE, "sh", "-c", _START)
    if status:
        raise OperatorError(f"The backup failed.\n{text.strip()}")
    made = [backup for backup in stored(place) if backup.id not in before]
    if not made:
        raise OperatorError("The run ended well, but brought no new backup: see `uds backup list`.")
    return made[0].checked()
