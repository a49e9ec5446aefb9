package crun

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"os"
	"strings"
	"time"
)

// maxLogBytes is how much of an OCI runtime's log is read, from its end.
const maxLogBytes = 64 << 10

// LastLogError is the message of the last error in an OCI runtime's JSON log; empty when there is
// none. crun and runc write msg, youki fields.message.
func LastLogError(log string) string {
	lines := bytes.Split(bytes.TrimSpace(ReadEnd(log, maxLogBytes)), []byte("\n"))
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

// LogError adds an error to an OCI runtime's log, as crun and runc do.
func LogError(w io.Writer, message string) error {
	entry := struct {
		Msg   string    `json:"msg"`
		Level string    `json:"level"`
		Time  time.Time `json:"time"`
	}{message, "error", time.Now().UTC()}
	line, err := json.Marshal(entry)
	if err == nil {
		_, err = w.Write(append(line, '\n'))
	}
	return err
}

// ReadEnd is the end of a file, at most limit bytes; empty when it cannot be read, or is no regular
// one. Only its content may be the container's.
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
