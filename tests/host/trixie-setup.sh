set -eu
# podman: a pids limit cannot be set where the machine has no pids controller for the host.
mkdir -p "$1/etc/containers"
cat > "$1/etc/containers/containers.conf" <<'CONF'
[containers]
pids_limit = 0
CONF
# Machines get an initramfs of our own.
rm -f "$1"/boot/initrd.img-* "$1"/initrd.img* "$1"/vmlinuz "$1"/vmlinuz.old
# Nothing of Debian's own upkeep runs on a test host.
rm -rf "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"
mkdir -p "$1/var/cache/apt/archives/partial" "$1/var/lib/apt/lists/partial"
