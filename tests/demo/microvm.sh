#!/bin/bash
# Shows a pod in a VM on a host where magikpod is installed: `make demo-microvm` runs this. $1 is the directory with web.yaml and web.tar.
# It stops at the first step that does not do what it should. The VMs are emulated: seconds become tenths of seconds where KVM runs guests.
set -euo pipefail
cd "$1"

. ./common.sh

cat >/etc/magikpod/magikpod.yaml <<END
microvm:
  accel: tcg
  memory: 128Mi
END
sed 's/^spec:$/spec:\n  runtimeClassName: pod-microvm-containers/' web.yaml >vm.yaml
expect 'pod-microvm-containers   true' magikpodctl classes
before=$(world)
expect localhost/web:1 magikpodctl image load --tag localhost/web:1 web.tar
time expect default/web magikpodctl run -f vm.yaml --wait ready --timeout 120s
expect pod-microvm-containers magikpodctl list -o wide
expect magikpod-default-web-vm.service systemctl status --no-pager --lines=0 magikpod-default-web.slice

expect 'hello from web' ./web fetch http://127.0.0.1:18080/
expect 'hello from a configMap' magikpodctl exec -c server web -- /web cat /etc/web/greeting
[ "$(magikpodctl exec -c server web -- /web cat /proc/sys/kernel/random/boot_id)" != "$(cat /proc/sys/kernel/random/boot_id)" ] || fail 'it is the kernel of the host'
echo 'the kernel is not that of the host'
show magikpodctl stats web

daemon=$(systemctl show --property=MainPID --value magikpodd.service)
printf '\n\033[1m# kill -9 the daemon (process %s)\033[0m\n' "$daemon"
kill -9 "$daemon"
expect 'hello from web' ./web fetch http://127.0.0.1:18080/
expect Running magikpodctl list

printf '\n\033[1m# kill -9 the VM\033[0m\n'
pkill -9 qemu-system
for _ in $(seq 600); do
	magikpodctl list | grep -q 'Running *[1-9]' && break
	sleep 0.1
done
show magikpodctl wait web --for ready --timeout 120s
expect 'hello from web' ./web fetch http://127.0.0.1:18080/
show magikpodctl delete web
if pgrep qemu-system; then fail 'a VM is left'; fi
nothing_left "$before"
