#!/bin/bash
# Puts an alert into the server's queue: how the unit ended that started this one (systemd says which, MONITOR_*).
set -euo pipefail

journalctl --sync
said=$(journalctl -q -o cat -n 20 "_SYSTEMD_INVOCATION_ID=${MONITOR_INVOCATION_ID:-}" | tail -c 2000 || true)
case "${MONITOR_UNIT:-} ${MONITOR_SERVICE_RESULT:-}" in
    "uds-backup.service success") severity=info subject='Backup made, and on the backup server' ;;
    uds-backup.service*) severity=critical subject='Backup FAILED' ;;
    *) severity=critical subject='The backup server did not take a file' ;;
esac
printf '%s: %s\n' "$severity" "$subject"
if command -v uds-alert >/dev/null; then
    uds-alert --severity "$severity" "$subject" <<< "$said"
fi
