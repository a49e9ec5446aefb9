# What the demos share.
fail() { printf '\ndemo: %s\n' "$*" >&2; exit 1; }

# show COMMAND...: print a command and run it.
show() { printf '\n\033[1m# %s\033[0m\n' "$*"; "$@"; }

# expect TEXT COMMAND...: show a command whose output must contain TEXT.
expect() {
	local want=$1 out
	shift
	printf '\n\033[1m# %s\033[0m\n' "$*"
	out=$("$@" 2>&1) || fail "it failed: $out"
	printf '%s\n' "$out"
	[[ $out == *"$want"* ]] || fail "its output has no \"$want\""
}

# What a pod makes in the kernel, in systemd and on disk, one thing a line. The slice of its namespace stays: it may carry limits.
world() {
	systemctl list-units --all --plain --no-legend 'magikpod-*-*' | awk '{ print "unit", $1 }'
	awk '/magikpod/ && !/ \/var\/lib\/magikpod / { print "mount", $5 }' /proc/self/mountinfo
	ip -o link show type veth | awk '{ print "link", $2 }'
	lsns -n -o TYPE,NS -t net | awk '{ print "namespace", $1, $2 }'
	find /sys/fs/cgroup -type d -path '*magikpod-*-*' -printf 'cgroup %p\n'
	find /run/magikpod/pods /var/lib/magikpod/pods -mindepth 1 -maxdepth 1 -printf 'directory %p\n' 2>/dev/null || :
	if nft list table inet magikpod 2>/dev/null | grep -q 1808; then echo 'firewall 1808x'; fi
}

# nothing_left BEFORE: the host is as it was.
nothing_left() {
	local after
	printf '\n\033[1m# What is left\033[0m\n'
	after=$(world)
	[ "$after" = "$1" ] || fail "something is left:
$(diff <(printf '%s\n' "$1") <(printf '%s\n' "$after") || :)"
	echo nothing
}
