#!/bin/bash
# Goes before every script that `remote.py` applies. The script runs as root in a folder of its own below /run, beside
# files/ (what to install, at the same place below /) and data/ (values, some of them secret).
set -euo pipefail
umask 077
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

# One line a change, and nothing where there is none. Never a value.
say() { printf '%s\n' "$*"; }

# Installs files/ where a file differs. Each is complete or absent at any moment, whatever happens to the script.
install_files() {
    local source target mode
    while IFS= read -r -d '' source; do
        target=/${source#files/}
        mode=$(stat -c %a "$source")
        if [ "$(stat -c '%a %U' "$target" 2>/dev/null)" != "$mode root" ] || ! cmp -s "$source" "$target"; then
            (umask 022 && mkdir -p "${target%/*}")
            install -m "$mode" -o root -g root "$source" "$target.new"
            mv -f "$target.new" "$target"
            say "changed: $target"
        fi
    done < <(find files -type f -print0 | sort -z)
    record_files
}

# Remembers the checksums of what is there of files/, for monit. Whatever takes a file back calls it again.
record_files() {
    local source file name sums=/var/lib/uds/checksums
    name=$(< name)
    mkdir -p "$sums" files
    find files -type f -print0 | sort -z | while IFS= read -r -d '' source; do
        file=/${source#files/}
        [ ! -e "$file" ] || sha256sum "$file"
    done > "$sums/.$name"
    mv "$sums/.$name" "$sums/$name"
}
