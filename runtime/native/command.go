package native

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/magikrun/magikpod/internal/cgroup"
)

// freezeLimit bounds how long an exec may keep others frozen.
const freezeLimit = 30 * time.Second

// inRuntime says whether a process is still the OCI runtime, which has files of the host open until
// it executes the container's command. What has ended is not.
func (r *ociRuntime) inRuntime(pid int) bool {
	exe := "/proc/" + strconv.Itoa(pid) + "/exe"
	now, err := os.Stat(exe)
	if err != nil {
		return false
	}
	if link, _ := os.Readlink(exe); strings.HasPrefix(link, "/memfd:") { // a copy of itself (CVE-2019-5736)
		return true
	}
	program, err := os.Stat(r.path)
	return err == nil && os.SameFile(now, program)
}

// commandTime bounds how long a process that has nothing left to do as the OCI runtime may take to
// execute the container's command.
const commandTime = 10 * time.Second

// awaitCommand waits until such a process has executed the command, or has ended. False: it does
// neither.
func (r *ociRuntime) awaitCommand(pid int) bool {
	for begin := time.Now(); pid > 0 && r.inRuntime(pid); time.Sleep(200 * time.Microsecond) {
		if time.Since(begin) > commandTime {
			return false
		}
	}
	return true
}

// thawWhenEntered waits until the process of an exec is a container's: the OCI runtime has written
// its PID, and it has executed its command, or has ended.
func (x *execution) thawWhenEntered(runtimePID int, thaw func()) {
	if thaw == nil {
		return
	}
	defer thaw()
	for begin := time.Now(); time.Since(begin) < freezeLimit; time.Sleep(200 * time.Microsecond) {
		if _, err := os.Stat("/proc/" + strconv.Itoa(runtimePID) + "/exe"); err != nil {
			x.awaitCommands()
			return // it has ended
		}
		data, err := os.ReadFile(x.path(pidName))
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			if !x.kind.awaitCommand(pid) {
				break
			}
			return
		}
	}
	x.kill()
	x.awaitCommands()
}

// awaitCommands is awaitCommand for all processes of an exec: what was killed with the OCI runtime
// may take longer than that to go.
func (x *execution) awaitCommands() {
	pids, err := x.processes()
	for begin := time.Now(); err != nil && !cgroup.Gone(err) && time.Since(begin) < commandTime; time.Sleep(time.Millisecond) {
		pids, err = x.processes()
	}
	for _, pid := range pids {
		x.kind.awaitCommand(pid)
	}
}
