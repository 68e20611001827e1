#!/bin/bash
# Makes the application what data/ and files/ say: account, configuration, certificate, unit and release. What the
# application doesn't survive is taken back, all of it: a release and its configuration belong together.
readonly BASE=/usr/local/application
readonly RELEASES=$BASE/releases
readonly UNIT=/etc/systemd/system/application.service
readonly HTTPS_PORT=3003
# Seconds until an application that has been started must be well.
readonly PATIENCE=60
# What the running application was started with, and the path that it answered on.
readonly STARTED=/var/lib/uds/application
# A folder of root's beside the application's, so that a file can be made and then moved there in one step.
readonly NEW=$BASE/.new
readonly MANAGED=("$UNIT" "$BASE/config/config-production.json" "$BASE/config/database-ca.pem"
    "$BASE/ssl/certificate.pem" "$BASE/ssl/private-key.pem" "$BASE/current")

restart=
problem=

# A locked account without home, shell or password (guide, 4.1).
make_account() {
    if ! id -u application >/dev/null 2>&1; then
        useradd -r -U -M -d /nonexistent -s /bin/false -c "the application" application
        say "added: the account application"
    fi
    if [ "$(getent passwd application | cut -d: -f7)" != /bin/false ]; then
        usermod -s /bin/false application
        say "changed: the account's shell"
    fi
    case $(getent shadow application | cut -d: -f2) in
        '!'* | '*'*) ;;
        *)
            usermod -p '!' application
            say "locked: the account"
            ;;
    esac
    if [ "$(id -Gn application)" != application ]; then
        usermod -g application -G '' application
        say "changed: the account's groups"
    fi
}

# $1 is a folder of owner and group $2 with mode $3.
folder() {
    [ "$(stat -c '%F %U:%G %a' "$1" 2>/dev/null)" != "directory $2 $3" ] || return 0
    if [ -L "$1" ] || [ ! -d "$1" ]; then
        rm -f "$1"
    fi
    install -d -o "${2%:*}" -g "${2#*:}" -m "$3" "$1"
    say "changed: $1"
}

# Puts data/$1 at $2, for the application alone to read (guide, 4.2 and 4.5). The folder around it is the application's,
# who could put a link there at any moment: so nothing is written through it.
place() {
    [ -e "data/$1" ] || return 0
    local is
    is=$(stat -c '%F %a %U:%G' "$2" 2>/dev/null || true)
    if [[ $is == "regular file "* ]] && cmp -s "data/$1" "$2"; then
        [ "$is" != "regular file 400 application:application" ] || return 0
    else
        restart=yes
    fi
    install -o application -g application -m 0400 "data/$1" "$NEW/$1"
    put "$NEW/$1" "$2"
    say "changed: $2"
}

# Moves $1 to $2, whatever is there.
put() {
    if [ -d "$2" ] && [ ! -L "$2" ]; then
        rm -rf "$2"
    fi
    mv -fT "$1" "$2"
}

# One value for a tree: names, permissions, owners, links and contents.
fingerprint() { tar --create --sort=name --mtime=@0 --numeric-owner -C "$1" . | sha256sum; }

is_whole() { [ -f "$1" ] && [ "$(sha256sum < "$1")" = "$(< data/release.sha256)  -" ]; }

# Has the release as it was delivered below $RELEASES: its files are root's, and the application may only read them.
unpack() {
    local archive=$RELEASES/$release.tar tree=$RELEASES/$release upload
    upload=$(< data/upload)
    if ! is_whole "$archive"; then
        if [ ! -e "$upload" ]; then
            say "The release $release is not on this server: deliver it again with pulumi up --replace, and the URN of" \
                "the resource that ends in -application-release."
            exit 1
        fi
        # Checked where only root can change it.
        cp "$upload" "$NEW/archive"
        if ! is_whole "$NEW/archive"; then
            say "The release $release did not arrive as it was sent: deliver it again with pulumi up --replace, and the" \
                "URN of the resource that ends in -application-release."
            exit 1
        fi
        put "$NEW/archive" "$archive"
    fi
    if [ -d "$tree" ] && [ ! -L "$tree" ] && [ -e "$tree.sum" ] && cmp -s "$tree.sum" <(fingerprint "$tree"); then
        return
    fi
    mkdir "$NEW/tree"
    tar --extract --same-permissions --no-same-owner -f "$archive" -C "$NEW/tree"
    chmod 0750 "$NEW/tree"
    chgrp -hR application "$NEW/tree"
    fingerprint "$NEW/tree" > "$NEW/sum"
    # On the disk before it has its name: a power cut leaves no release with holes.
    sync -f "$NEW/tree"
    put "$NEW/tree" "$tree"
    put "$NEW/sum" "$tree.sum"
    restart=yes
    say "unpacked: release $release"
}

# Into before/, by their numbers in $MANAGED: 0 is the unit.
save() {
    local i
    mkdir before
    for i in "${!MANAGED[@]}"; do
        if [ -e "${MANAGED[i]}" ] || [ -L "${MANAGED[i]}" ]; then
            cp -a "${MANAGED[i]}" "before/$i"
        fi
    done
}

restore() {
    local i
    for i in "${!MANAGED[@]}"; do
        if [ -e "before/$i" ] || [ -L "before/$i" ]; then
            cp -a "before/$i" "$NEW/restored"
            put "$NEW/restored" "${MANAGED[i]}"
        else
            rm -f "${MANAGED[i]}"
        fi
    done
    record_files
}

# The unit as it is in files/, and nothing beside it that changes it.
install_unit() {
    local extra
    cmp -s "files$UNIT" "$UNIT" || restart=yes
    install_files
    for extra in {/etc/systemd/system,/etc/systemd/system.control,/run/systemd/system,/run/systemd/system.control}; do
        if [ -e "$extra/application.service.d" ]; then
            rm -r "$extra/application.service.d"
            restart=yes
            say "removed: $extra/application.service.d"
        fi
    done
    # systemd looks at the times of the files.
    systemctl daemon-reload
    if [ "$(systemctl is-enabled application 2>/dev/null)" != enabled ]; then
        systemctl enable -q application
        say "enabled: application.service"
    fi
}

link() {
    [ "$(readlink "$BASE/current")" != "releases/$release" ] || return 0
    ln -s "releases/$release" "$NEW/current"
    put "$NEW/current" "$BASE/current"
    restart=yes
    say "current: release $release"
}

# Waits until the application answers on $1 with its own certificate; if it doesn't, `problem` says why.
is_well() {
    local until=$((SECONDS + PATIENCE))
    while ! problem=$(python3 -I data/health.py "$HTTPS_PORT" "$BASE/ssl/certificate.pem" "$1" 2>&1); do
        if [ "$(systemctl show -p NRestarts --value application)" != 0 ] || ! systemctl is-active -q application; then
            problem="it ended by itself"
            return 1
        fi
        if [ "$SECONDS" -ge "$until" ]; then
            problem="after $PATIENCE seconds, ${problem##*$'\n'}"
            return 1
        fi
        sleep 0.2
    done
}

start() {
    since=$(date +%s.%N)
    if ! systemctl restart application 2>/dev/null; then
        problem="it can't be started"
        return 1
    fi
    is_well "$1"
}

# Reached by every way out of the switch but the good one.
take_back() {
    trap - EXIT
    set +e
    say "Release $release with this configuration is taken back: ${problem:-this script ended early}."
    if [ -n "${since:-}" ]; then
        say "The application's last words:"
        # Our own questions may be most of it.
        journalctl -q -u application --since "@$since" -n 500 -o cat --no-pager | uniq | tail -n 20 | sed 's/^/    /'
    fi
    local old
    if [ -e before/0 ]; then
        restore
        systemctl daemon-reload
        old=$(readlink "$BASE/current")
        if start "$(cat "$STARTED/health-path" || cat data/health-path)"; then
            say "Release ${old##*/} runs as before."
        else
            say "Release ${old##*/} is back in its place, but is not well either: $problem."
        fi
    else
        systemctl disable -q --now application
        restore
        systemctl daemon-reload
        systemctl reset-failed application 2>/dev/null
        say "There was none before it: the application is stopped."
    fi
    tidy
    exit 1
}

# The three last releases stay, the running one among them.
tidy() {
    local running name
    running=$(readlink "$BASE/current" || true)
    while read -r name; do
        rm -rf "${RELEASES:?}/$name" "$RELEASES/$name.tar" "$RELEASES/$name.sum"
        say "removed: release $name"
    done < <(find "$RELEASES" -mindepth 1 -maxdepth 1 -type d ! -name "${running##*/}" -printf '%T@ %f\n' |
        sort -rn | tail -n +3 | cut -d' ' -f2)
    # What a killed run had not given its tree yet.
    for name in "$RELEASES"/*.tar "$RELEASES"/*.sum; do
        [ -d "${name%.*}" ] || rm -f "$name"
    done
    rm -rf "$NEW" "$(dirname "$(< data/upload)")"/uds-release-*.tar
}

# A release that the settings don't name any more. A unit that somebody else made stays.
remove_service() {
    grep -qs '^# Made by pulumi up ' "$UNIT" || return 0
    systemctl disable -q --now application
    rm -f "$UNIT" "$BASE/current"
    systemctl daemon-reload
    rm -rf "$STARTED"
    say "removed: application.service, since the settings name no release"
}

make_account
folder "$BASE" root:application 750
folder "$RELEASES" root:application 750
folder "$BASE/config" application:application 700
folder "$BASE/ssl" application:application 700
rm -rf "$NEW"
mkdir -m 0700 "$NEW"

if [ ! -e data/release ]; then
    remove_service
    record_files
    place config-production.json "$BASE/config/config-production.json"
    place database-ca.pem "$BASE/config/database-ca.pem"
    place certificate.pem "$BASE/ssl/certificate.pem"
    place private-key.pem "$BASE/ssl/private-key.pem"
    rm -rf "$NEW"
    exit 0
fi

release=$(< data/release)
unpack
save
trap take_back EXIT
place config-production.json "$BASE/config/config-production.json"
place database-ca.pem "$BASE/config/database-ca.pem"
place certificate.pem "$BASE/ssl/certificate.pem"
place private-key.pem "$BASE/ssl/private-key.pem"
install_unit
link
# A run that was killed has put all in its place, and restarted nothing.
wanted=$(cat "files$UNIT" data/{config-production.json,database-ca.pem,certificate.pem,private-key.pem,release} | sha256sum)
if [ "$(cat "$STARTED/with" 2>/dev/null)" != "$wanted" ] || ! systemctl is-active -q application; then
    restart=yes
fi
if [ -n "$restart" ]; then
    start "$(< data/health-path)" || exit 1
    say "restarted: application.service"
fi
trap - EXIT
install -d -m 0700 "$STARTED"
printf '%s\n' "$wanted" > "$STARTED/with"
cp data/health-path "$STARTED/health-path"
touch "$RELEASES/$release"
tidy
