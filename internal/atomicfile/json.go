package atomicfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
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

// LoadConfig reads the configuration of a program, JSON of at most limit bytes, into config, a
// pointer. Unknown fields are errors: a file of another version is not understood by half.
func LoadConfig(path string, limit int64, config any) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return fmt.Errorf("cannot read configuration: %w", err)
	}
	if int64(len(data)) > limit {
		return fmt.Errorf("cannot read configuration %s: it has more than %d bytes", path, limit)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(config); err != nil {
		return fmt.Errorf("cannot read configuration %s: %w", path, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return fmt.Errorf("cannot read configuration %s: something follows the object", path)
	}
	return nil
}
