package crun

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The exit codes of a command that could not be executed, as shells have them.
const (
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

// Outcome is how the process of an exec has ended, by the status and the log of the OCI runtime
// that has waited for it. reason, when not empty, is why it was not run.
func Outcome(status unix.WaitStatus, log string) (code, signal int, reason string) {
	if status == 0 {
		return 0, 0, ""
	}
	if reason := LastLogError(log); reason != "" {
		return NotRunCode(reason), 0, reason
	}
	if status.Signaled() { // the OCI runtime itself, with the process
		return 128 + int(status.Signal()), int(status.Signal()), ""
	}
	// It ends with 128+n when the signal n has killed the process.
	if code = status.ExitStatus(); code > 128 && code <= 128+64 {
		signal = code - 128
	}
	return code, signal, ""
}

// NotRunCode is the exit code of a command that could not be run: [ExitNotFound] when there is none
// of that name, else [ExitNotExecutable].
func NotRunCode(reason string) int {
	reason = strings.ToLower(reason)
	if strings.Contains(reason, "not found") || strings.Contains(reason, "no such file") {
		return ExitNotFound
	}
	return ExitNotExecutable
}

// OwnOOMScore is this process's oom_score_adj, which its children have too: `exec` of an OCI
// runtime leaves it alone.
func OwnOOMScore() int {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	score, _ := strconv.Atoi(strings.TrimSpace(string(data))) // the kernel's own format
	return score
}
