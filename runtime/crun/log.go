package crun

import (
	"bytes"
	"cmp"
	"encoding/json"
	"strings"

	"github.com/magikrun/magikpod/internal/atomicfile"
)

// maxLogBytes bounds what is read of a log.
const maxLogBytes = 4 << 20

// LastLogError is the message of the last error in an OCI runtime's JSON log; empty when there is none. crun and runc write msg, youki fields.message.
func LastLogError(path string) string {
	data, err := atomicfile.Read(path, maxLogBytes)
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
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
