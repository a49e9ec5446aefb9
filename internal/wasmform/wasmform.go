// Package wasmform knows a WebAssembly module by its first bytes.
package wasmform

import (
	"bytes"
	"encoding/binary"

	"github.com/magikrun/magikpod/internal/errkind"
)

// MaxModuleBytes is how large a module may be, as in other runtimes for such images.
const MaxModuleBytes = 256 << 20

// Form is what the first bytes of a file say that it is.
type Form int

// The forms.
const (
	NotWasm Form = iota
	Module
	Component
	// OtherVersion is WebAssembly of a version that nobody knows here.
	OtherVersion
)

// HeaderBytes is how many bytes [FormOf] looks at.
const HeaderBytes = 8

// FormOf knows a module or a component by the header: the magic number, a 16-bit version and a
// 16-bit layer (WebAssembly core specification 5.5.16; component-model, Binary.md: layer 1 is a
// component).
func FormOf(data []byte) Form {
	if len(data) < HeaderBytes || !bytes.Equal(data[:4], []byte("\x00asm")) {
		return NotWasm
	}
	version, layer := binary.LittleEndian.Uint16(data[4:]), binary.LittleEndian.Uint16(data[6:])
	switch {
	case layer == 0 && version == 1:
		return Module
	case layer == 1:
		return Component
	}
	return OtherVersion
}

// Check refuses what is no module.
func Check(data []byte) error {
	if len(data) > MaxModuleBytes {
		return errkind.Errorf(errkind.Exhausted, "it has more than %d bytes", MaxModuleBytes)
	}
	switch FormOf(data) {
	case Module:
		return nil
	case Component:
		return errkind.Errorf(errkind.Unsupported, "it is a WebAssembly component, and only modules of WASI preview 1 (wasip1) are supported; build it for wasm32-wasip1")
	case OtherVersion:
		return errkind.Errorf(errkind.Unsupported, "it is WebAssembly of another version than 1")
	}
	return errkind.Errorf(errkind.Invalid, "it is no WebAssembly")
}
