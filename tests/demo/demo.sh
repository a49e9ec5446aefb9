#!/bin/bash
# Shows magikpod on a host where it is installed: `make demo` runs this. $1 is the directory with web.yaml, web.tar (the image) and web (its program).
# It stops at the first step that does not do what it should, and leaves the host as it was.
set -euo pipefail
cd "$1"

. ./common.sh

show magikpodctl version
expect pod-containers magikpodctl classes
before=$(world)

expect localhost/web:1 magikpodctl image load --tag localhost/web:1 web.tar
show magikpodctl image list

show magikpodctl validate -f web.yaml
expect default/web magikpodctl run -f web.yaml --wait ready --timeout 60s
expect Running magikpodctl list
show magikpodctl status web
expect magikpod-default-web-server.service systemctl status --no-pager --lines=0 magikpod-default-web.slice
expect 67108864 systemctl show --property=MemoryMax magikpod-default-web-server.service

ip=$(magikpodctl get web -o yaml | sed -n 's/^ *podIP: *//p' | tr -d '"')
[ -n "$ip" ] || fail 'the pod has no address'
expect 'hello from web' ./web fetch "http://$ip:8080/"
expect 'hello from web' ./web fetch http://127.0.0.1:18080/
expect 'hello from a configMap' magikpodctl exec -c server web -- /web cat /etc/web/greeting

# The client fetches every two seconds; its lines come to the journal with the pod's fields.
for _ in $(seq 50); do
	journalctl --quiet MAGIKPOD_POD=web MAGIKPOD_CONTAINER=client --grep 'hello from web' >/dev/null 2>&1 && break
	sleep 0.2
done
expect 'fetched http://localhost:8080/: hello from web' journalctl --no-pager --quiet --output=short-precise MAGIKPOD_POD=web
expect 'hello from web' magikpodctl logs -c client --tail 3 web

pid=$(systemctl show --property=MainPID --value magikpod-default-web-server.service)
daemon=$(systemctl show --property=MainPID --value magikpodd.service)
printf '\n\033[1m# kill -9 the daemon (process %s)\033[0m\n' "$daemon"
kill -9 "$daemon"
expect 'hello from web' ./web fetch http://127.0.0.1:18080/
expect Running magikpodctl list
[ "$(systemctl show --property=MainPID --value magikpod-default-web-server.service)" = "$pid" ] || fail 'the server was restarted'
[ "$(systemctl show --property=MainPID --value magikpodd.service)" != "$daemon" ] || fail 'the daemon was not killed'
echo "the server is process $pid, as before"

show magikpodctl stop web
show magikpodctl list
show magikpodctl delete web
show magikpodctl image remove localhost/web:1

nothing_left "$before"
