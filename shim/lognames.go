package shim

import (
	"path/filepath"
	"strconv"
	"strings"
)

// The names that logs are written under, for the relay and for whoever reads them (package logs).

// The fields of a line in the journal. Anybody can send them there: the relay's entries are those
// with _UID=0.
const (
	FieldNamespace = "MAGIKPOD_NAMESPACE"
	FieldPod       = "MAGIKPOD_POD"
	FieldPodUID    = "MAGIKPOD_POD_UID"
	FieldContainer = "MAGIKPOD_CONTAINER"
	FieldAttempt   = "MAGIKPOD_RESTART"
	FieldStream    = "MAGIKPOD_STREAM"
	FieldPartial   = "CONTAINER_PARTIAL_MESSAGE" // "true": more of the same line follows
)

// A line of the CRI log format (Kubernetes, "kubelet-cri-logging") is TIME STREAM TAG TEXT.
const (
	CRITime    = "2006-01-02T15:04:05.000000000Z07:00"
	CRIPartial = "P" // more of the same line follows
	CRIFull    = "F"
)

// CRIPath is the log file of an attempt in the pod's log directory.
func CRIPath(dir, container string, attempt int) string {
	return filepath.Join(dir, container, strconv.Itoa(attempt)+".log")
}

// CRIRotated is the nth older part of a log file: 1 is the newest of them, 0 the file itself.
func CRIRotated(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// The streams, in the journal and in CRI log files.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// FIFODir is the directory of the FIFOs in a pod's directory. The names in it are
// NAME.ATTEMPT.stdout, NAME.ATTEMPT.stderr, and NAME.ATTEMPT.end, an empty file that says that the
// container has ended. What begins with a dot is not ready yet, or is the .NAME.ATTEMPT.path of an
// attempt whose log file is another one than that of [CRIPath]: its path in LogDir.
const (
	FIFODir   = "log"
	streamEnd = "end"
	pathEnd   = "path"
)

// logName is a parsed name.
type logName struct {
	container string
	attempt   int
	stream    string
}

func (n logName) String() string {
	return n.container + "." + strconv.Itoa(n.attempt) + "." + n.stream
}

// parseLogName is strict: a name that it accepts is the one that String makes.
func parseLogName(name string) (logName, bool) {
	parts := strings.Split(name, ".")
	if len(parts) != 3 || parts[0] == "" {
		return logName{}, false
	}
	attempt, err := strconv.Atoi(parts[1])
	if err != nil || attempt < 0 {
		return logName{}, false
	}
	switch parts[2] {
	case Stdout, Stderr, streamEnd:
	default:
		return logName{}, false
	}
	n := logName{container: parts[0], attempt: attempt, stream: parts[2]}
	return n, n.String() == name
}
