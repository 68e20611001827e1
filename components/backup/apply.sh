#!/bin/bash
# Makes the database server back itself up every night. The first backup is made at once: it proves the whole way.
folder() {
    if [ "$(stat -c '%a %U:%G' "$1" 2>/dev/null)" != '700 root:root' ]; then
        install -d -m 0700 -o root -g root "$1"
        say "folder: $1"
    fi
}

# Waits for a while only: a large database takes longer than this script may.
first_backup() {
    local _
    systemctl start --no-block uds-backup.service
    for _ in $(seq 600); do
        case $(systemctl show -p ActiveState --value uds-backup.service) in
            active | activating | reloading) sleep 0.2 ;;
            *) break ;;
        esac
    done
    if [ -e /var/lib/uds/backup/success ]; then
        say "backup: the first one is where it is kept"
    elif systemctl is-failed -q uds-backup.service; then
        say "The first backup failed:"
        journalctl -q -o cat -n 20 "_SYSTEMD_INVOCATION_ID=$(systemctl show -p InvocationID --value uds-backup.service)"
        exit 1
    else
        say "backup: the first one is on its way"
    fi
}

# Where backups are no longer wanted: nothing starts them, and there is no key that would add any.
remove() {
    local unit=/etc/systemd/system/uds-backup
    [ -e "$unit.timer" ] || return 0
    systemctl disable -q --now uds-backup.timer
    rm -rf "$unit".{timer,service} /usr/local/sbin/uds-backup{,-report} /etc/uds/backup /var/lib/uds/backup
    systemctl daemon-reload
    record_files
    say "backup: none any more. What had not been taken yet stays in /var/spool/uds-backup"
}

if [ ! -d files ]; then
    remove
    exit
fi
folder /var/spool/uds-backup
folder /var/lib/uds/backup
changed=$(install_files)
for file in known_hosts bucket.json; do
    if ! cmp -s "data/$file" "/etc/uds/backup/$file"; then
        install -m 0600 "data/$file" "/etc/uds/backup/$file"
        say "changed: /etc/uds/backup/$file"
    fi
done
[ -z "$changed" ] || { say "$changed"; systemctl daemon-reload; }
if ! systemctl is-enabled -q uds-backup.timer || ! systemctl is-active -q uds-backup.timer; then
    systemctl enable -q --now uds-backup.timer
    say "uds-backup.timer: every night"
elif [[ $changed == *uds-backup.timer* ]]; then
    systemctl restart uds-backup.timer
fi
[ -e /var/lib/uds/backup/success ] || first_backup
