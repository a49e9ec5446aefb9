package crun

import (
	"bytes"
	"cmp"
	"encoding/json"
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

// Outcome is how the process of an exec has ended, by the status and the log of the OCI runtime that has waited for it. reason, when not empty, is why it was not run.
func Outcome(status unix.WaitStatus, log string) (code, signal int, reason string) {
	if status == 0 {
		return 0, 0, ""
	}
	if reason := LastError(log); reason != "" {
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

// NotRunCode is the exit code of a command that could not be run: [ExitNotFound] when there is none of that name, else [ExitNotExecutable].
func NotRunCode(reason string) int {
	reason = strings.ToLower(reason)
	if strings.Contains(reason, "not found") || strings.Contains(reason, "no such file") {
		return ExitNotFound
	}
	return ExitNotExecutable
}

// maxLog is how much of an OCI runtime's log is read, from its end.
const maxLog = 64 << 10

// LastError is the message of the last error in an OCI runtime's JSON log; empty when there is none. crun and runc write msg, youki fields.message.
func LastError(log string) string {
	lines := bytes.Split(bytes.TrimSpace(ReadEnd(log, maxLog)), []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		var entry struct {
			Level, Msg string
			Fields     struct{ Message string }
		}
		if json.Unmarshal(lines[i], &entry) != nil || !strings.EqualFold(entry.Level, "error") {
			continue
		}
		if text := strings.TrimSpace(cmp.Or(entry.Msg, entry.Fields.Message)); text != "" {
			return text
		}
	}
	return ""
}

// ReadEnd is the end of a file, at most limit bytes; empty when it cannot be read, or is no regular one. Only its content may be the container's.
func ReadEnd(path string, limit int64) []byte {
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	data := make([]byte, min(info.Size(), limit))
	n, _ := f.ReadAt(data, info.Size()-int64(len(data)))
	return data[:n]
}

// OwnOOMScore is this process's oom_score_adj, which its children have too: `exec` of an OCI runtime leaves it alone.
func OwnOOMScore() int {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	score, _ := strconv.Atoi(strings.TrimSpace(string(data))) // the kernel's own format
	return score
}
