#!/bin/bash
# Makes the people in data/admins, and nobody else, admins of this server.
#
# What a person or PAM changes later is theirs: a password or a list of used codes is written when the stack's own is new,
# never compared or put back. So the fingerprint of what was written last is kept beside it.
readonly WRITTEN=/var/lib/uds/accounts

# Whether $1 (a name) was last written from the file $2; if not, the caller writes it and then calls `remember`.
is_new() { ! cmp -s <(sha256sum < "$2") "$WRITTEN/$1"; }
remember() { sha256sum < "$2" > "$WRITTEN/$1"; }

add_admin() {
    local name=$1 kept
    if ! id -u "$name" >/dev/null 2>&1; then
        if [ -d "/home/$name" ]; then
            # Of somebody who was removed. Who gets the name now may be another person, and needs a home that is theirs.
            kept=/home/$name.$(date -u +%Y%m%dT%H%M%SZ)
            mv "/home/$name" "$kept"
            say "set aside: $kept"
        fi
        useradd -m -U -s /bin/bash -c "admin" "$name"
        chmod 0700 "/home/$name"
        say "added: $name"
    fi
    usermod -a -G sudo,ssh-users,uds-admins "$name"
    if is_new "$name.password" "data/$name.password-hash"; then
        # On standard input: an argument could be read by others.
        printf '%s:%s\n' "$name" "$(< "data/$name.password-hash")" | chpasswd -e
        remember "$name.password" "data/$name.password-hash"
        say "password: $name"
    fi
    if is_new "$name.codes" "data/$name.one-time-codes"; then
        install -m 0400 "data/$name.one-time-codes" "/var/lib/google-authenticator/.$name"
        mv -f "/var/lib/google-authenticator/.$name" "/var/lib/google-authenticator/$name"
        remember "$name.codes" "data/$name.one-time-codes"
        say "one-time codes: $name"
    fi
}

# The keys go first, so that nobody comes back in between; then the sessions; then the account. The home folder stays for
# root: it may hold something that is needed.
remove_admin() {
    local name=$1 home manager
    rm -f "/etc/ssh/authorized_keys.d/$name" "/var/lib/google-authenticator/$name" "$WRITTEN/$name".*
    usermod -L -e 1 "$name"
    pkill -KILL -u "$name" || true
    # The person's systemd was among them; it would stay as a failed unit, and the server as "degraded".
    manager=user@$(id -u "$name").service
    systemctl stop "$manager"
    systemctl reset-failed "$manager" 2>/dev/null || true
    home=$(getent passwd "$name" | cut -d: -f6)
    userdel -f "$name"
    if [ -d "$home" ]; then
        chown -R root:root "$home"
        chmod 0700 "$home"
    fi
    say "removed: $name"
}

install -d -m 0700 "$WRITTEN"
getent group uds-admins >/dev/null || groupadd -r uds-admins
while read -r name; do
    grep -qxF "$name" data/admins || remove_admin "$name"
done < <(getent group uds-admins | cut -d: -f4 | tr , '\n' | sed '/^$/d')
while read -r name; do
    add_admin "$name"
done < data/admins
install_files
