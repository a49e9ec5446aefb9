#!/bin/bash
# Shows WebAssembly pods on a host where magikpod is installed: `make demo-wasm` runs this. $1 is the directory with wasm.yaml, hello.wasm and web (a program
# that fetches). It stops at the first step that does not do what it should, and leaves the host as it was.
set -euo pipefail
cd "$1"
. ./common.sh

expect pod-wasm magikpodctl classes
before=$(world)
expect 'hello: the container has no port' sh -c 'magikpodctl wasm run hello.wasm 2>&1 | sed "s/^[0-9/: ]*/hello: /"'

expect localhost/hello:1 magikpodctl image load --tag localhost/hello:1 hello.wasm
show magikpodctl validate -f wasm.yaml
expect default/hello magikpodctl run -f wasm.yaml --wait ready --timeout 60s
expect pod-wasm magikpodctl list -o wide
show magikpodctl status hello
expect magikwasm systemctl status --no-pager --lines=0 magikpod-default-hello.slice
expect 268435456 systemctl show --property=MemoryMax magikpod-default-hello-server.service
expect 'hello from WebAssembly in hello' ./web fetch http://127.0.0.1:18081/
expect served magikpodctl logs hello

printf '\n\033[1m# A module has no shell, and says so\033[0m\n'
if out=$(magikpodctl exec hello -- sh 2>&1); then fail 'there is one'; fi
printf '%s\n' "$out"
[[ $out == *'no second process'* ]] || fail 'that is not why'

pid=$(systemctl show --property=MainPID --value magikpod-default-hello-server.service)
printf '\n\033[1m# What the process may do: capabilities, system calls, privileges, mounts\033[0m\n'
grep -E '^(CapBnd|Seccomp|NoNewPrivs):' "/proc/$pid/status"
cut -d' ' -f5 "/proc/$pid/mountinfo"
show kill -9 "$pid"
for _ in $(seq 100); do ./web fetch http://127.0.0.1:18081/ >/dev/null 2>&1 && break || sleep 0.1; done
expect 'hello from WebAssembly in hello' ./web fetch http://127.0.0.1:18081/
expect ' 1 ' magikpodctl list

show magikpodctl delete hello
show magikpodctl image remove localhost/hello:1
nothing_left "$before"
