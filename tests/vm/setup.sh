set -eu
# Debian's own upkeep, and what waits for hardware, has no part in a test.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-firstboot.service \
	systemd-timesyncd.service systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service systemd-resolved.service \
	getty@tty1.service serial-getty@ttyS0.service getty-static.service systemd-pstore.service systemd-hwdb-update.service ldconfig.service \
	systemd-update-utmp.service systemd-update-utmp-runlevel.service modprobe@drm.service modprobe@efi_pstore.service dev-hugepages.mount \
	systemd-random-seed.service systemd-update-done.service systemd-journal-catalog-update.service systemd-boot-random-seed.service \
	nftables.service tmp.mount; do # a test finds its files in /tmp
	ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
echo magikvm > "$1/etc/hostname"
printf '127.0.0.1 localhost magikvm\n::1 localhost magikvm\n' > "$1/etc/hosts"
# One machine ID for all: a missing one would make each boot a first boot.
echo 6d6167696b706f6400000000766d0001 > "$1/etc/machine-id"
: > "$1/etc/fstab"
mkdir -p "$1/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\nRuntimeMaxUse=400M\n' > "$1/etc/systemd/journald.conf.d/test.conf"
passwd --root "$1" --delete root
# The kernel stays: machines in the machine boot it.
rm -f "$1"/boot/initrd.img-* "$1"/boot/System.map-* "$1"/boot/config-* "$1"/initrd.img* "$1"/vmlinuz.old
rm -rf "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"
mkdir -p "$1/var/cache/apt/archives/partial" "$1/var/lib/apt/lists/partial"
