#!/bin/bash
# Puts an alert into the server's queue: how the unit ended that runs this afterwards (systemd says it in SERVICE_RESULT).
# $1 is what the unit does: backup, or store.
set -euo pipefail
# The store's standard output is who sent the file; it is none of theirs, and they must not have to wait.
exec < /dev/null >&2

case "$1 ${SERVICE_RESULT:-}" in
    'backup success') severity=info subject='Backup made' ;;
    backup*) severity=critical subject="Backup FAILED (${SERVICE_RESULT:-})" ;;
    'store success') exit 0 ;;
    *) severity=critical subject="A file of a backup was not taken (${SERVICE_RESULT:-})" ;;
esac
printf 'alert, %s: %s\n' "$severity" "$subject"
command -v uds-alert >/dev/null || exit 0
journalctl --sync
journalctl -q -o cat -n 20 "_SYSTEMD_INVOCATION_ID=$INVOCATION_ID" | tail -c 2000 |
    uds-alert --severity "$severity" "$subject"
