package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/tests/testwasm"
)

// cacheDir is one cache for all tests: compiling the guest takes most of the time.
var cacheDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "engine-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cacheDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

type outcomeOf struct {
	code        int
	err         error
	out, errOut string
}

// run runs a module to its end.
func run(t *testing.T, ctx context.Context, module []byte, o LoadOptions, config Config) outcomeOf {
	t.Helper()
	p, err := New(cacheDir).Load(ctx, module, o)
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	config.Stdout, config.Stderr = &out, &errOut
	code, err := p.Run(ctx, config)
	if closeErr := p.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	return outcomeOf{code, err, out.String(), errOut.String()}
}

// guest runs commands of the test guest.
func guest(t *testing.T, config Config, args ...string) outcomeOf {
	t.Helper()
	config.Args = append([]string{"guest"}, args...)
	return run(t, t.Context(), testwasm.Guest(t), LoadOptions{}, config)
}

func TestRun(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		args   string
		code   int
		out    string
		errOut string
	}{
		{"arguments", Config{}, "args one two", 0, "guest|args|one|two\n", ""},
		{"exit code 0", Config{}, "exit 0", 0, "", ""},
		{"exit code", Config{}, "exit 42", 42, "", ""},
		{"exit code that would become 0", Config{}, "exit 256", 255, "", ""},
		{"environment, the last of a name wins", Config{Env: []string{"A=1", "B=x=y", "A=2", "EMPTY="}}, "env", 0, "A=2\nB=x=y\nEMPTY=\n", ""},
		{"no environment", Config{}, "env", 0, "\n", ""},
		{"standard input", Config{Stdin: strings.NewReader("from outside")}, "stdin", 0, "from outside", ""},
		{"no standard input", Config{}, "stdin", 0, "", ""},
		{"both outputs", Config{}, "echo a -- echoerr b", 0, "a\n", "b\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := guest(t, tt.config, strings.Fields(tt.args)...)
			if got.err != nil || got.code != tt.code || got.out != tt.out || got.errOut != tt.errOut {
				t.Errorf("got %+v, want code %d, output %q, errors %q", got, tt.code, tt.out, tt.errOut)
			}
		})
	}
}

func TestEmptyArgument(t *testing.T) {
	if got := guest(t, Config{}, "args", "", "x", ""); got.err != nil || got.out != "guest|args||x|\n" {
		t.Errorf("got %+v", got)
	}
}

func TestClockIsTheHosts(t *testing.T) {
	before := time.Now()
	got := guest(t, Config{}, "time", "--", "sleep", "300", "--", "time")
	var first, last int64
	if _, err := fmt.Sscan(got.out, &first, &last); err != nil {
		t.Fatal(err)
	}
	if first < before.Unix() || last > time.Now().Unix() {
		t.Errorf("the guest's clock says %d and %d, and it is %s", first, last, before)
	}
	if took := time.Since(before); took < 300*time.Millisecond {
		t.Errorf("a sleep of 300 ms was over after %s", took)
	}
}

func TestTrap(t *testing.T) {
	got := run(t, t.Context(), testwasm.Trap(), LoadOptions{}, Config{Args: []string{"trap"}})
	if got.code != TrapCode || got.err == nil || !strings.Contains(got.err.Error(), "unreachable") {
		t.Errorf("got %+v", got)
	}
}

func TestEntry(t *testing.T) {
	module := testwasm.Function("other")
	if got := run(t, t.Context(), module, LoadOptions{}, Config{Args: []string{"x"}, Entry: "other"}); got.code != 0 || got.err != nil {
		t.Errorf("got %+v", got)
	}
	if got := run(t, t.Context(), module, LoadOptions{}, Config{Args: []string{"x"}}); errkind.KindOf(got.err) != errkind.Unsupported {
		t.Errorf("without _start: %+v", got)
	}
	got := run(t, t.Context(), testwasm.Function("_initialize"), LoadOptions{}, Config{Args: []string{"x"}})
	if errkind.KindOf(got.err) != errkind.Unsupported || !strings.Contains(got.err.Error(), "reactor") {
		t.Errorf("a reactor: %+v", got)
	}
	got = run(t, t.Context(), testwasm.Import("env", "abort"), LoadOptions{}, Config{Args: []string{"x"}})
	if errkind.KindOf(got.err) != errkind.Unsupported || !strings.Contains(got.err.Error(), "abort of env") {
		t.Errorf("a foreign import: %+v", got)
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		module []byte
		kind   errkind.Kind
		text   string
	}{
		{"component", testwasm.Component(), errkind.Unsupported, "component"},
		{"another version", []byte("\x00asm\x02\x00\x00\x00"), errkind.Unsupported, "version"},
		{"text", []byte("#!/bin/sh\n"), errkind.Invalid, "no WebAssembly"},
		{"nothing", nil, errkind.Invalid, "no WebAssembly"},
		{"broken module", append(testwasm.Trap(), 0xff, 0xff), errkind.Invalid, "cannot compile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(cacheDir).Load(t.Context(), tt.module, LoadOptions{})
			if errkind.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (%s), want %s with %q", err, errkind.KindOf(err), tt.kind, tt.text)
			}
			if err := New(cacheDir).Compile(t.Context(), tt.module); errkind.KindOf(err) != tt.kind {
				t.Errorf("Compile: %v", err)
			}
		})
	}
	if _, err := New("").Load(t.Context(), testwasm.Trap(), LoadOptions{MemoryBytes: 1000}); errkind.KindOf(err) != errkind.Invalid {
		t.Errorf("a limit of less than a page: %v", err)
	}
}

func TestMemoryLimit(t *testing.T) {
	config := Config{Args: []string{"guest", "alloc", "64"}}
	if got := run(t, t.Context(), testwasm.Guest(t), LoadOptions{MemoryBytes: 256 << 20}, config); got.code != 0 || got.out != "allocated 64\n" {
		t.Errorf("enough: %+v", got)
	}
	got := run(t, t.Context(), testwasm.Guest(t), LoadOptions{MemoryBytes: 32 << 20}, config)
	if got.code == 0 || strings.Contains(got.out, "allocated") || !strings.Contains(got.errOut, "out of memory") {
		t.Errorf("not enough: code %d, %v, %q", got.code, got.err, got.out)
	}
}

// TestStop: the end of the context ends every guest soon.
func TestStop(t *testing.T) {
	stdin, stdinWriter := io.Pipe()
	defer stdinWriter.Close()
	for _, tt := range []struct {
		name string
		args []string
		in   io.Reader
	}{
		{"sleeping", []string{"sleep", "3600000"}, nil}, {"computing", []string{"spin"}, nil}, {"reading", []string{"stdin"}, stdin},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := New(cacheDir).Load(t.Context(), testwasm.Guest(t), LoadOptions{Interruptible: true})
			if err != nil {
				t.Fatal(err)
			}
			why := errors.New("the test is over")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(300*time.Millisecond, func() { cancel(why) })
			begin := time.Now()
			code, err := p.Run(ctx, Config{Args: append([]string{"guest"}, tt.args...), Stdin: tt.in})
			if code != -1 || errkind.KindOf(err) != errkind.Unavailable || !errors.Is(err, why) {
				t.Errorf("got %d, %v", code, err)
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestDirs(t *testing.T) {
	read, write := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(read, "in"), []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("topsecret"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(read, "out")); err != nil {
		t.Fatal(err)
	}
	config := Config{Dirs: []Dir{{Host: read, Guest: "/ro"}, {Host: write, Guest: "/rw", Writable: true}}}
	got := guest(t, config, "read", "/ro/in", "--", "write", "/rw/file", "written")
	data, err := os.ReadFile(filepath.Join(write, "file"))
	if got.code != 0 || got.out != "data" || err != nil || string(data) != "written" {
		t.Errorf("got %+v, file %q, %v", got, data, err)
	}
	for _, args := range [][]string{{"write", "/ro/new", "x"}, {"write", "/ro/in", "x"}, {"symlink", "/ro/l", "/etc"}, {"read", "/etc/hostname"}, {"read", "/ro/out"}} {
		if got := guest(t, config, args...); got.code != 1 {
			t.Errorf("%q: %+v", args, got)
		}
	}
	// A guest that sees only read-only directories cannot leave them.
	got = guest(t, Config{Dirs: config.Dirs[:1]}, "escape", "/ro", secret)
	if strings.Contains(got.out, "ESCAPED") || !strings.Contains(got.out, "tried") {
		t.Errorf("got %+v", got)
	}
	if _, err := os.Stat(filepath.Join(read, "new")); err == nil {
		t.Error("a read-only directory was written to")
	}
}

func TestListeners(t *testing.T) {
	port := freePort(t)
	config := Config{Dirs: []Dir{{Host: t.TempDir(), Guest: "/d"}}, Listeners: []Listener{{Host: "127.0.0.1", Port: port}}}
	config.Args = []string{"guest", "serve", "4"} // after the directory, which is 3
	p, err := New(cacheDir).Load(t.Context(), testwasm.Guest(t), LoadOptions{Interruptible: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := p.Run(ctx, config); done <- err }()
	for _, word := range []string{"ping", "pong"} {
		if answer, want := ask(t, port, word), "hello from wasm: "+word; answer != want {
			t.Errorf("the guest answered %q, want %q", answer, want)
		}
	}
	cancel()
	if err := <-done; errkind.KindOf(err) != errkind.Unavailable {
		t.Errorf("the end: %v", err)
	}
}

// ask sends a word to a port, once it is open, and returns the answer.
func ask(t *testing.T, port int, word string) string {
	t.Helper()
	for range 200 {
		conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		answer := make([]byte, len("hello from wasm: ")+len(word))
		if _, err := io.WriteString(conn, word); err != nil {
			t.Error(err)
		}
		n, err := io.ReadFull(conn, answer)
		if err != nil {
			t.Error(err)
		}
		return string(answer[:n])
	}
	t.Error("the port was never opened")
	return ""
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestBadConfig(t *testing.T) {
	for name, config := range map[string]Config{
		"argument":    {Args: []string{"x", "a\x00b"}},
		"environment": {Args: []string{"x"}, Env: []string{"NOVALUE"}},
		"directory":   {Args: []string{"x"}, Dirs: []Dir{{Host: "/does/not/exist", Guest: "/"}}},
	} {
		if got := run(t, t.Context(), testwasm.Trap(), LoadOptions{}, config); got.code != -1 || got.err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestVersion: the cache is keyed by the version that is built in.
func TestVersion(t *testing.T) {
	data, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "github.com/tetratelabs/wazero v" + wazeroVersion + "\n"; !strings.Contains(string(data), want) {
		t.Errorf("go.mod does not have %q", want)
	}
}
