package wasmform

import "testing"

// FuzzFormOf: what is said to be a module has a module's header.
func FuzzFormOf(f *testing.F) {
	f.Add([]byte("\x00asm\x01\x00\x00\x00"))
	f.Add([]byte("\x00asm\x0d\x00\x01\x00"))
	f.Add([]byte("\x00asm\x02\x00\x00\x00"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if form := FormOf(data); (form == Module) != (len(data) >= 8 && string(data[:8]) == "\x00asm\x01\x00\x00\x00") {
			t.Errorf("%q: %v", data, form)
		}
		if (Check(data) == nil) != (FormOf(data) == Module) {
			t.Errorf("Check and FormOf disagree about %q", data)
		}
	})
}
