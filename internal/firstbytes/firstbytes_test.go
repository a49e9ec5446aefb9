package firstbytes

import (
	"fmt"
	"testing"
)

func TestWriter(t *testing.T) {
	w := &Writer{Max: 5}
	for _, text := range []string{"abc", "", "def", "ghi"} {
		if n, err := fmt.Fprint(w, text); n != len(text) || err != nil {
			t.Errorf("%q: wrote %d bytes, %v", text, n, err)
		}
	}
	if w.String() != "abcde" {
		t.Errorf("kept %q, want the first five bytes", w)
	}
}
