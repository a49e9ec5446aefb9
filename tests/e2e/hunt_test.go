package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// hunt looks at all processes that it sees, again and again, for a way out of the pod: a path to
// the file marker of the host, a program of the host that can be written to, or the memory of a
// process with more capabilities than its own, or a file of magikpod's or of the system's that a
// process of either has open. What it finds is a line "found ..." of standard output, the first of
// its kind. A line "looked N" every second tells that N processes were looked at that it has not
// started.
func hunt(marker string) error {
	h := &hunter{marker: marker, found: map[string]bool{}, seen: map[string]bool{}}
	own, err := capabilities("/proc/self")
	if err != nil {
		return err
	}
	h.own = own
	fmt.Println("begun")
	for said := time.Now(); ; {
		list, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, entry := range list {
			if pid, err := strconv.Atoi(entry.Name()); err == nil && pid != os.Getpid() {
				h.look("/proc/" + entry.Name())
			}
		}
		if time.Since(said) > time.Second {
			said = time.Now()
			fmt.Println("looked", len(h.seen))
		}
	}
}

type hunter struct {
	marker string
	own    uint64 // capabilities
	found  map[string]bool
	seen   map[string]bool // processes
}

func (h *hunter) say(kind, format string, args ...any) {
	if !h.found[kind] {
		h.found[kind] = true
		fmt.Println("found " + kind + ": " + fmt.Sprintf(format, args...))
	}
}

// look looks at one process. It may end, or execute something else, at any moment.
func (h *hunter) look(proc string) {
	name := func() string {
		comm, _ := os.ReadFile(proc + "/comm")
		exe, _ := os.Readlink(proc + "/exe")
		return strings.TrimSpace(string(comm)) + " " + exe
	}
	h.seen[proc] = true
	const up = "/../../../../../../../.."
	for _, way := range []string{"root", "cwd", "cwd" + up} {
		if _, err := os.Stat(proc + "/" + way + h.marker); err == nil {
			h.say(way, "the host's file system, of %s", name())
		}
	}
	if more, err := capabilities(proc); err == nil && more&^h.own != 0 {
		if f, err := os.OpenFile(proc+"/mem", os.O_RDWR, 0); err == nil { // the memory of that moment, also when it executes something else now
			if again, err := capabilities(proc); err == nil && again&^h.own != 0 {
				h.say("powers", "capabilities %x, of %s", again, name())
			}
			f.Close()
		}
	}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, entry := range fds {
		fd := proc + "/fd/" + entry.Name()
		if _, err := os.Stat(fd + up + h.marker); err == nil {
			h.say("descriptor", "a directory of the host, of %s", name())
		}
		if info, err := os.Stat(fd); err == nil && info.Mode().IsRegular() {
			if link, err := os.Readlink(fd); err == nil && (strings.Contains(link, "/magikpod/") || strings.HasPrefix(link, "/usr/")) {
				h.say("file", "%s, of %s", link, name())
			}
		}
	}
	if f, err := os.OpenFile(proc+"/exe", os.O_WRONLY, 0); err == nil {
		f.Close()
		h.say("program", "it can be written to, of %s", name())
	}
}

// capabilities are those that a process may have in effect.
func capabilities(proc string) (uint64, error) {
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "CapPrm:\t"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return 0, fs.ErrNotExist
}
