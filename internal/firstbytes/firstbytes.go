// Package firstbytes keeps the beginning of what a program writes, for an error that quotes it.
package firstbytes

// Writer keeps the first Max bytes that are written to it; the rest is dropped.
type Writer struct {
	Max  int
	kept []byte
}

// Write implements [io.Writer].
func (w *Writer) Write(p []byte) (int, error) {
	w.kept = append(w.kept, p[:min(len(p), w.Max-len(w.kept))]...)
	return len(p), nil
}

// String is what was kept.
func (w *Writer) String() string { return string(w.kept) }
