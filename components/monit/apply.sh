#!/bin/bash
# Alerts and watching: programs, units and monit's files from files/, and the configuration with its secrets from data/.
readonly CONFIG=/etc/uds/alerts.json

# On a file that it doesn't understand monit doesn't start, and nobody would be told of anything. It wants the programs
# that it starts to be there: they are installed before.
install_checked() {
    local complaints
    mv files/etc/monit candidate
    install_files
    sed "s:^include /etc/monit:include $PWD/candidate:" candidate/monitrc > candidate.rc
    if ! complaints=$(monit -t -c "$PWD/candidate.rc" 2>&1); then
        say "monit refuses the new files; the old ones stay:"
        say "${complaints//$PWD\/candidate/\/etc\/monit}"
        exit 1
    fi
    mv candidate files/etc/monit
    install_files
}

# What an earlier run watched, and this one doesn't.
remove_old_watches() {
    local file
    for file in /etc/monit/conf.d/*; do
        if [ -f "$file" ] && [ ! -e "files$file" ]; then
            rm "$file"
            say "removed: $file"
        fi
    done
}

install_configuration() {
    if [ "$(stat -c '%a %U' "$CONFIG" 2>/dev/null)" != '600 root' ] || ! cmp -s data/alerts.json "$CONFIG"; then
        install -m 0600 data/alerts.json "$CONFIG.new"
        mv -f "$CONFIG.new" "$CONFIG"
        say "changed: $CONFIG"
    fi
}

# What a unit was started with last. A file that is newer was put back, whatever the unit may have read meanwhile.
digest_of() { cat "$@" | sha256sum; }

# Starts the unit $1, and again when one of the files that follow has changed since.
run_unit() {
    local unit=$1 memory=/var/lib/uds/started-$1
    shift
    systemctl is-enabled -q "$unit" || { systemctl enable -q "$unit"; say "$unit: enabled"; }
    if [ "$(cat "$memory" 2>/dev/null)" != "$(digest_of "$@")" ]; then
        systemctl restart "$unit"
        digest_of "$@" > "$memory"
        say "$unit: started with what is new"
    elif ! systemctl is-active -q "$unit"; then
        systemctl start "$unit"
        say "$unit: started"
    fi
}

install_checked
install_configuration
remove_old_watches
systemctl daemon-reload
run_unit uds-alerts.socket /etc/systemd/system/uds-alerts.socket
run_unit uds-alerts.service "$CONFIG" /etc/systemd/system/uds-alerts.{service,socket} /usr/local/lib/uds/alerts/*.py
run_unit uds-changes.service /etc/systemd/system/uds-changes.service /usr/local/lib/uds/alerts/*.py
run_unit uds-integrity.timer /etc/systemd/system/uds-integrity.timer
run_unit monit.service /etc/monit/monitrc /etc/monit/conf.d/* /etc/systemd/system/monit.service.d/uds.conf
