#!/bin/bash
# Makes the backup server take backups: an account that only adds, and root's program that keeps them.
readonly ACCOUNT=backup-push

make_account() {
    if ! id -u "$ACCOUNT" >/dev/null 2>&1; then
        useradd -r -d / -s /bin/sh -c "adds backups" "$ACCOUNT"
        say "added: $ACCOUNT"
    fi
    # No password, and not locked either, which sshd would refuse. A shell, which runs the forced command.
    if [ "$(getent shadow "$ACCOUNT" | cut -d: -f2)" != '*' ] ||
        [ "$(getent passwd "$ACCOUNT" | cut -d: -f6,7)" != /:/bin/sh ] ||
        [ "$(id -nG "$ACCOUNT" | tr ' ' '\n' | sort | tr '\n' ' ')" != "$ACCOUNT ssh-users " ]; then
        usermod -p '*' -d / -s /bin/sh -G ssh-users "$ACCOUNT"
        say "account: $ACCOUNT"
    fi
}

folder() {
    if [ "$(stat -c '%a %U:%G' "$1" 2>/dev/null)" != '700 root:root' ]; then
        install -d -m 0700 -o root -g root "$1"
        say "folder: $1"
    fi
}

start() {
    local changed=$1
    [ -z "$changed" ] || systemctl daemon-reload
    systemctl is-enabled -q uds-backup-store.socket || { systemctl enable -q uds-backup-store.socket; say "enabled"; }
    if ! systemctl is-active -q uds-backup-store.socket || [[ $changed == *uds-backup-store.socket* ]]; then
        systemctl restart uds-backup-store.socket
        say "uds-backup-store.socket: started"
    fi
}

make_account
folder /var/backups/uds
folder /var/lib/uds/backup
for file in files/etc/ssh/sshd_config.d/*; do
    sshd -t -f "$file"
done
changed=$(install_files)
[ -z "$changed" ] || say "$changed"
start "$changed"
# sshd, if it has to know.
/usr/local/sbin/uds-harden
