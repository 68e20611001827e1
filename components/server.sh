#!/bin/bash
# Applies the server's own tree: right after the first boot, and again whenever it changes. data/digest names the tree.
wait_for_first_boot() {
    local _
    for _ in $(seq 600); do
        [ -s /var/lib/uds/first-boot ] && return
        # cloud-init ended without running ours: its own log says why.
        if [ -e /run/cloud-init/result.json ]; then
            sleep 2
            [ -s /var/lib/uds/first-boot ] && return
            say "The first boot did not run:"
            cat /run/cloud-init/result.json
            cloud-init status --long 2>/dev/null || true
            exit 1
        fi
        sleep 1
    done
    say "The first boot did not end in ten minutes."
    exit 1
}

# Broken rules or a broken sshd_config must never take the place of good ones.
check_files() {
    [ ! -e files/etc/iptables/rules.v4 ] || ! command -v iptables-restore >/dev/null || {
        iptables-restore --test files/etc/iptables/rules.v4
        ip6tables-restore --test files/etc/iptables/rules.v6
    }
    local file
    for file in files/etc/sudoers.d/*; do
        visudo -cqf "$file"
    done
    # A configuration of its own, with the host key that every server has.
    for file in files/etc/ssh/sshd_config.d/*; do
        sshd -t -f "$file"
    done
}

# Served beside the lasting key until that one has proved the server: this script's own connection just did.
remove_bootstrap_key() {
    rm -f /etc/ssh/sshd_config.d/00-bootstrap.conf
    [ ! -e /etc/ssh/bootstrap_host_key ] || {
        rm /etc/ssh/bootstrap_host_key
        say "host key: the server's own alone"
    }
}

wait_for_first_boot
check_files
install_files
remove_bootstrap_key
if ! /usr/local/sbin/uds-harden; then
    say "Hardening failed. What the first boot had said:"
    tail -n 20 /var/lib/uds/first-boot.log
    exit 1
fi
cp data/digest /var/lib/uds/hardened
