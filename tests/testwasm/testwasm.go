// Package testwasm makes the WebAssembly modules that tests run.
package testwasm

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// envGuests names a directory with guests that `make guests` has built, for hosts without compilers.
const envGuests = "MAGIKPOD_GUESTS"

// guest is a module that is built once for each test program.
type guest struct {
	name    string
	command []string // TARGET is the module's path
	env     []string

	once  sync.Once
	built []byte
	err   error
}

var (
	wasip1   = []string{"GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0"}
	goGuest  = guest{name: "guest", command: []string{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", "TARGET", "./guest"}, env: wasip1}
	goBox    = guest{name: "busybox", command: []string{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", "TARGET", "./busybox"}, env: wasip1}
	preview1 = guest{name: "preview1", command: []string{"clang", "--target=wasm32-wasi", "-O2", "-Wall", "-Werror", "-o", "TARGET", "preview1/preview1.c"}}
	small    = guest{name: "small", command: []string{"clang", "--target=wasm32-wasi", "-O2", "-s", "-Wall", "-Werror", "-o", "TARGET", "small/small.c"}}
)

// Guest returns the module of tests/testwasm/guest.
func Guest(t testing.TB) []byte { return goGuest.get(t) }

// Busybox returns the module of tests/testwasm/busybox.
func Busybox(t testing.TB) []byte { return goBox.get(t) }

// Preview1 returns the module of tests/testwasm/preview1, which is C.
func Preview1(t testing.TB) []byte { return preview1.get(t) }

// Small returns the module of tests/testwasm/small, which is C and a few KiB.
func Small(t testing.TB) []byte { return small.get(t) }

func (g *guest) get(t testing.TB) []byte {
	t.Helper()
	g.once.Do(func() { g.built, g.err = g.make() })
	if g.err != nil {
		t.Fatalf("cannot build the guest %s: %v", g.name, g.err)
	}
	return g.built
}

func (g *guest) make() ([]byte, error) {
	if dir := os.Getenv(envGuests); dir != "" {
		return os.ReadFile(filepath.Join(dir, g.name+".wasm"))
	}
	dir, err := os.MkdirTemp("", "testwasm-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return g.build(filepath.Join(dir, g.name+".wasm"))
}

func (g *guest) build(target string) ([]byte, error) {
	argv := slices.Clone(g.command)
	argv[slices.Index(argv, "TARGET")] = target
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = filepath.Dir(file), append(os.Environ(), g.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(target)
}

// Build builds all guests into a directory, for hosts without compilers.
func Build(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, g := range []*guest{&goGuest, &goBox, &preview1, &small} {
		if _, err := g.build(filepath.Join(dir, g.name+".wasm")); err != nil {
			return fmt.Errorf("cannot build the guest %s: %w", g.name, err)
		}
	}
	return nil
}

// Applets are the commands of the busybox module.
var Applets = strings.Fields("sh true false echo env uptime sleep usleep seq cat wc touch rm mkdir ln ls httpd")

// Image writes a root file system like testimage's, with the busybox module, a link for each of its
// commands in /bin, a file /etc/passwd and a world-writable /tmp. More files (name, content) go to
// the root.
func Image(w io.Writer, busybox []byte, more map[string][]byte) error {
	t := tar.NewWriter(w)
	var errs []error
	add := func(name string, kind byte, mode int64, content []byte, link string) {
		h := &tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			errs = append(errs, err)
			return
		}
		_, err := t.Write(content)
		errs = append(errs, err)
	}
	for _, dir := range []string{"bin/", "etc/", "root/", "var/"} {
		add(dir, tar.TypeDir, 0o755, nil, "")
	}
	add("tmp/", tar.TypeDir, 0o1777, nil, "")
	add("bin/busybox", tar.TypeReg, 0o755, busybox, "")
	for _, applet := range Applets {
		add("bin/"+applet, tar.TypeSymlink, 0o777, nil, "busybox")
	}
	add("etc/passwd", tar.TypeReg, 0o644, []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"), "")
	for _, name := range slices.Sorted(maps.Keys(more)) {
		add(name, tar.TypeReg, 0o644, more[name], "")
	}
	return errors.Join(append(errs, t.Close())...)
}

// section makes a section of a module.
func section(id byte, body ...byte) []byte { return append([]byte{id, byte(len(body))}, body...) }

// Blocks returns a module whose function is n nested blocks: a few bytes when it is packed, and as
// many seconds of compilation as one likes.
func Blocks(n int) []byte {
	module := []byte("\x00asm\x01\x00\x00\x00")
	module = append(module, section(1, 1, 0x60, 0, 0)...)
	module = append(module, section(3, 1, 0)...)
	module = append(module, section(7, append(append([]byte{1}, name("_start")...), 0, 0)...)...)
	body := append([]byte{0}, bytes.Repeat([]byte{0x02, 0x40}, n)...) // block, of no type
	body = append(body, bytes.Repeat([]byte{0x0b}, n+1)...)
	code := append(binary.AppendUvarint([]byte{1}, uint64(len(body))), body...)
	return append(binary.AppendUvarint(append(module, 10), uint64(len(code))), code...)
}

// Extra returns the module with a custom section more: the same program with another digest.
func Extra(module []byte, text string) []byte {
	return append(module[:len(module):len(module)], section(0, append(name("extra"), text...)...)...)
}

func name(text string) []byte { return append([]byte{byte(len(text))}, text...) }

// Function returns a module that exports one function of the given name, without parameters and
// results, with these instructions, and one page of memory.
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

// Command returns a component that is a command of WASI 0.2: it exports wasi:cli/run, which does
// nothing and says that all went well, or that it did not. (Component-model, Binary.md.)
func Command(ok bool) []byte {
	result := byte(1) // result<_, _>: 0 is ok
	if ok {
		result = 0
	}
	core := []byte("\x00asm\x01\x00\x00\x00")
	core = append(core, section(1, 1, 0x60, 0, 1, 0x7f)...) // type: () -> i32
	core = append(core, section(3, 1, 0)...)
	core = append(core, section(7, append(append([]byte{1}, name("run")...), 0, 0)...)...)
	core = append(core, section(10, 1, 4, 0, 0x41, result, 0x0b)...) // i32.const
	c := append(Component(), section(1, core...)...)
	c = append(c, section(2, 1, 0, 0, 0)...)                                                  // core instance of it, without arguments
	c = append(c, section(7, 2, 0x6a, 0, 0, 0x40, 0, 0, 0)...)                                // types: result, () -> result
	c = append(c, section(6, append([]byte{1, 0, 0, 1, 0}, name("run")...)...)...)            // alias of the core function
	c = append(c, section(8, 1, 0, 0, 0, 0, 1)...)                                            // canon lift
	c = append(c, section(5, append(append([]byte{1, 1, 1, 0}, name("run")...), 1, 0)...)...) // instance with the function
	export := append(append([]byte{1, 0}, name("wasi:cli/run@0.2.0")...), 5, 0, 0)
	return append(c, section(11, export...)...)
}

// Memory returns a module whose memory begins with so many pages.
func Memory(pages uint64) []byte {
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = append(m, section(1, 1, 0x60, 0, 0)...)
	m = append(m, section(3, 1, 0)...)
	m = append(m, section(5, binary.AppendUvarint([]byte{1, 0}, pages)...)...)
	m = append(m, section(7, append(append([]byte{1}, name("_start")...), 0, 0)...)...)
	return append(m, section(10, 1, 2, 0, 0x0b)...)
}

// Import returns a module that imports a function from a module other than WASI's.
func Import(module, function string) []byte {
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = append(m, section(1, 1, 0x60, 0, 0)...)
	body := append([]byte{1}, name(module)...)
	body = append(append(body, name(function)...), 0, 0)
	return append(m, section(2, body...)...)
}
