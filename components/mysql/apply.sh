#!/bin/bash
# Makes the database server what the stack says: files, certificate, settings, accounts and rights. Data is never touched.
# It restarts when what a start reads has changed, and never to find out whether that is any good.
readonly MEMORY=/var/lib/uds/mysql TLS=/etc/mysql/tls

if command -v mariadbd >/dev/null; then
    engine=mariadb other=mysql
elif command -v mysqld >/dev/null; then
    engine=mysql other=mariadb
else
    say "There is no database server here; /var/lib/uds/apt.log says why."
    exit 1
fi
readonly engine other
readonly config=/etc/mysql/$engine.conf.d/zz-hardening.cnf unit=/etc/systemd/system/$engine.service.d/hardening.conf
readonly pem_files=("$TLS"/{ca,server-cert,server-key}.pem)
changed_start='' changed_tls=''

# Makes $3 a folder of $2 (user:group) with the mode $1.
folder() {
    if [ "$(stat -L -c '%a %U:%G' "$3" 2>/dev/null)" != "$1 $2" ]; then
        install -d -m "$1" -o "${2%:*}" -g "${2#*:}" "$3"
        say "permissions: $3"
    fi
}

# Guide, 3.11.1.
data_folder() {
    local before
    before=$(stat -L -c '%a %U:%G' "$1" 2>/dev/null || true)
    folder 700 mysql:mysql "$1"
    # What is inside was open as long as the folder was.
    if [ "$before" != '700 mysql:mysql' ]; then
        chown -R mysql:mysql "$1/"
        chmod -R go-rwx "$1/"
    fi
}

lock_account() {
    if [ "$(getent passwd mysql | cut -d: -f7)" != /bin/false ]; then
        usermod -s /bin/false mysql
        say "login shell of mysql: /bin/false"
    fi
}

# So that a start that fails can be taken back.
keep_old_files() {
    local file
    mkdir previous
    for file in "$config" "$unit" "${pem_files[@]}"; do
        [ -e "$file" ] || continue
        # Not by --parents, with which Debian 12's cp fails.
        mkdir -p "previous${file%/*}"
        cp -a "$file" "previous$file"
    done
}

put_back() {
    local file
    for file in "$config" "$unit" "${pem_files[@]}"; do
        if [ -e "previous$file" ]; then cp -a "previous$file" "$file"; else rm -f "$file"; fi
    done
    record_files
    systemctl daemon-reload
}

install_tls() {
    local file new
    folder 750 root:mysql "$TLS"
    for file in "${pem_files[@]}"; do
        new=data/${file##*/}
        cmp -s "$new" "$file" || changed_tls=yes
        if [ "$(stat -c '%a %U:%G' "$file" 2>/dev/null)" != '640 root:mysql' ] || ! cmp -s "$new" "$file"; then
            install -m 0640 -o root -g mysql "$new" "$file.new"
            mv -f "$file.new" "$file"
            say "changed: $file"
        fi
    done
}

install_settings() {
    cmp -s "files$config" "$config" && cmp -s "files$unit" "$unit" || changed_start=yes
    rm -rf "files/etc/mysql/$other.conf.d" "files/etc/systemd/system/$other.service.d"
    install_files
}

# What it complains of, if the server would not start with these settings.
validate() {
    if [ "$engine" = mysql ]; then
        mysqld --user=mysql --validate-config 2>&1
    else
        { mariadbd --user=mysql --help --verbose >/dev/null; } 2>&1
    fi
}

# A unit's run has an id of its own.
run_id() { systemctl show -p InvocationID --value "$engine"; }

digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
remember_start() { printf '%s %s\n' "$(digest "$config" "$unit")" "$(run_id)" > "$MEMORY/start"; }
remember_tls() { digest "${pem_files[@]}" > "$MEMORY/tls"; }

# A file that was wrong and is right again has done no harm, unless the server started meanwhile.
started_with_it() {
    local known run
    [ -e "$MEMORY/start" ] || return 1
    read -r known run < "$MEMORY/start"
    [ "$known" = "$(digest "$config" "$unit")" ] && { [ -z "$changed_start" ] || [ "$run" = "$(run_id)" ]; }
}
loaded_tls() { [ -z "$changed_tls" ] && [ "$(cat "$MEMORY/tls" 2>/dev/null)" = "$(digest "${pem_files[@]}")" ]; }

# MySQL writes to a file, MariaDB to the journal.
error_log() {
    journalctl -q -o cat _SYSTEMD_INVOCATION_ID="$(run_id)" 2>/dev/null
    tail -c "+$((log_size + 1))" /var/log/mysql/error.log 2>/dev/null
}

refused() {
    put_back
    say "$engine: refuses the new settings or certificate; the old ones are back."
    grep -i error <<< "$1" | tail -n 5 || true
}

restart() {
    local complaints log_size
    if ! complaints=$(validate); then
        refused "$complaints"
        exit 1
    fi
    systemctl daemon-reload
    log_size=$(stat -c %s /var/log/mysql/error.log 2>/dev/null || echo 0)
    if ! systemctl restart "$engine" 2>/dev/null; then
        complaints=$(error_log || true)
        refused "$complaints"
        systemctl reset-failed "$engine"
        systemctl restart "$engine"
        exit 1
    fi
    remember_start
    remember_tls
    # They are in use now.
    changed_tls=''
    say "$engine: restarted"
}

# Connections that are open stay so.
reload_tls() {
    local complaints statement='FLUSH SSL'
    [ "$engine" = mariadb ] || statement='ALTER INSTANCE RELOAD TLS'
    if ! complaints=$(as_root "$statement"); then
        refused "$complaints"
        exit 1
    fi
    remember_tls
    say "$engine: certificate loaded"
}

as_root() { "$engine" --no-defaults --protocol=socket --user=root -e "$1" 2>&1; }

# Somebody gave root a password, or removed it. Only a start can let root in again.
let_root_in() {
    local statements=/etc/mysql/root.sql setting=${config%/*}/zzz-root.cnf how='VIA unix_socket'
    [ "$engine" = mariadb ] || how='WITH auth_socket'
    install -m 0640 -g mysql /dev/stdin "$statements" <<END
CREATE USER IF NOT EXISTS 'root'@'localhost';
ALTER USER 'root'@'localhost' IDENTIFIED $how;
GRANT ALL PRIVILEGES ON *.* TO 'root'@'localhost' WITH GRANT OPTION;
END
    install -m 0644 /dev/stdin "$setting" <<< $'[mysqld]\ninit_file = '"$statements"
    systemctl restart "$engine" || true
    rm -f "$statements" "$setting"
    systemctl is-active -q "$engine" || systemctl start "$engine"
    remember_start
    say "root: could not log in, and can again ($engine: restarted)"
}

reconcile() { python3 -I -B data/reconcile.py data/desired.json "$config" "$MEMORY/accounts.json"; }

install -d -m 0700 "$MEMORY"
lock_account
data_folder /var/lib/mysql
data_folder /var/lib/mysql-files
[ "$engine" = mariadb ] || data_folder /var/lib/mysql-keyring
keep_old_files
install_tls
install_settings
systemctl is-enabled -q "$engine" || { systemctl enable -q "$engine"; say "$engine: enabled"; }
if ! started_with_it; then
    restart
elif ! systemctl is-active -q "$engine"; then
    systemctl start "$engine"
    say "$engine: started"
fi
# Fails for other reasons as well, which come out below.
[[ ! $(as_root 'SELECT 1') =~ ERROR\ (1045|1698) ]] || let_root_in
loaded_tls || reload_tls
reconcile && exit 0
# 3: a setting that only a start can set.
[ $? = 3 ] || exit 1
restart
reconcile && exit 0
say "$engine: something else overrides $config"
exit 1
