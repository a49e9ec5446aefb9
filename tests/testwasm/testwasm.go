// Package testwasm makes the WebAssembly modules that tests run.
package testwasm

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

var (
	once  sync.Once
	built []byte
	out   []byte
	fail  error
)

// Guest returns the module of tests/testwasm/guest, built for wasip1 by the go command, once for each test program.
func Guest(t testing.TB) []byte {
	t.Helper()
	once.Do(func() {
		dir, err := os.MkdirTemp("", "testwasm-")
		if err != nil {
			fail = err
			return
		}
		defer os.RemoveAll(dir)
		_, file, _, _ := runtime.Caller(0)
		target := filepath.Join(dir, "guest.wasm")
		cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", target, ".")
		cmd.Dir = filepath.Join(filepath.Dir(file), "guest")
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
		if out, fail = cmd.CombinedOutput(); fail == nil {
			built, fail = os.ReadFile(target)
		}
	})
	if fail != nil {
		t.Fatalf("cannot build the guest: %v: %s", fail, out)
	}
	return built
}

// section makes a section of a module.
func section(id byte, body ...byte) []byte { return append([]byte{id, byte(len(body))}, body...) }

func name(text string) []byte { return append([]byte{byte(len(text))}, text...) }

// Function returns a module that exports one function of the given name, without parameters and results, with these instructions, and one page of
// memory.
func Function(export string, code ...byte) []byte {
	module := []byte("\x00asm\x01\x00\x00\x00")
	module = append(module, section(1, 1, 0x60, 0, 0)...) // type: () -> ()
	module = append(module, section(3, 1, 0)...)          // function 0 of type 0
	module = append(module, section(5, 1, 0, 1)...)       // memory: one page, no maximum
	exports := append([]byte{2}, name(export)...)
	exports = append(append(append(exports, 0, 0), name("memory")...), 2, 0)
	module = append(module, section(7, exports...)...)
	body := append(append([]byte{0}, code...), 0x0b) // no locals
	return append(module, section(10, append([]byte{1, byte(len(body))}, body...)...)...)
}

// Trap returns a module that traps at once.
func Trap() []byte { return Function("_start", 0x00) }

// Component returns the smallest component: the header alone.
func Component() []byte { return []byte("\x00asm\x0d\x00\x01\x00") }

// Import returns a module that imports a function from a module other than WASI's.
func Import(module, function string) []byte {
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = append(m, section(1, 1, 0x60, 0, 0)...)
	body := append([]byte{1}, name(module)...)
	body = append(append(body, name(function)...), 0, 0)
	return append(m, section(2, body...)...)
}
