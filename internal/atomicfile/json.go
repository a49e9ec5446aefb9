package atomicfile

import "encoding/json"

// WriteJSON is [WriteNoSync] of v as JSON, for root alone.
func WriteJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteNoSync(path, data, 0o600)
}

// ReadJSON reads what WriteJSON has written, of at most limit bytes, into v. An error may be [Damaged].
func ReadJSON(path string, limit int64, v any) error {
	data, err := Read(path, limit)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
