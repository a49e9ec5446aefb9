package atomicfile

import (
	"encoding/json"
	"fmt"
)

// SaveJSON writes v as JSON, as [WriteNoSync] does: for what need not outlive the host's boot.
func SaveJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return WriteNoSync(path, data, 0o600)
}

// LoadJSON reads what SaveJSON has written, at most limit bytes.
func LoadJSON(path string, limit int64, v any) error {
	data, err := Read(path, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	return nil
}
