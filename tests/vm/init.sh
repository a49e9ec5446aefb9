#!/bin/busybox sh
# The first process of a test machine: puts its root file system together and hands over to systemd. It panics the kernel when something fails.
set -e
B=/bin/busybox
$B mount -t devtmpfs dev /dev
$B mount -t proc proc /proc
for module in /modules/*.ko; do $B insmod "$module"; done
$B mount -t tmpfs -o mode=0755,size=75% tmpfs /rw
$B mkdir -p /rw/lower /rw/upper /rw/work
$B mount -t erofs -o ro /dev/vda /rw/lower
$B mount -t overlay -o lowerdir=/rw/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root
$B cp -a /base/. /root/
# Not busybox's tar, which reads all of the disk after the end of the archive.
$B chroot /root /usr/bin/tar --no-overwrite-dir --keep-directory-symlink -C / -xf - </dev/vdb
# The upper layers of containers cannot lie on an overlay.
$B mkdir -p /root/var/lib/magikpod
if [ -b /dev/vdc ]; then
	$B mkdir -p /root/disk
	$B mount -t ext4 /dev/vdc /root/disk
	$B mkdir -p /root/disk/magikpod /root/disk/etc
	$B chmod 0700 /root/disk/magikpod
	$B mount -o bind /root/disk/magikpod /root/var/lib/magikpod
	$B mkdir -p /root/etc/magikpod
	$B mount -o bind /root/disk/etc /root/etc/magikpod
else
	$B mount -t tmpfs -o mode=0700 magikpod /root/var/lib/magikpod
fi
$B umount /proc
$B umount /dev
exec $B switch_root /root /usr/lib/systemd/systemd
