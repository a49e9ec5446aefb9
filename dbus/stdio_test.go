package dbus

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/podapi"
	"github.com/magikrun/magikpod/pod"
)

// testPipe makes a pipe that is closed with the test.
func testPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

// rawExec has a process run with these very files, which are closed here.
func rawExec(c *client.Client, path godbus.ObjectPath, files [3]*os.File, argv ...string) (int, error) {
	args := []any{"", argv, properties{}}
	for _, f := range files {
		args = append(args, godbus.UnixFD(f.Fd()))
	}
	var job godbus.ObjectPath
	err := fromCall(c.Conn().Object(BusName, path).Call(PodInterface+".Exec", 0, args...), &job)
	closeAll(files[:])
	if err != nil {
		return 0, err
	}
	info, err := c.Wait(context.Background(), job, nil)
	if info.ExitStatus == nil {
		return -1, err
	}
	return *info.ExitStatus, err
}

func fromCall(call *godbus.Call, results ...any) error {
	if call.Err != nil {
		return contract.FromBus(call.Err)
	}
	return call.Store(results...)
}

// TestExecHasPipesOfOurs checks that nothing of the client's reaches a process, not even a pipe.
func TestExecHasPipesOfOurs(t *testing.T) {
	s, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	in, inW := testPipe(t)
	outR, out := testPipe(t)
	errR, errW := testPipe(t)
	var mine []string
	for _, f := range []*os.File{in, out, errW} {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		mine = append(mine, strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10))
	}
	go func() { _, _ = io.WriteString(inW, "hello\n"); _ = inW.Close() }()
	code, err := rawExec(c, path, [3]*os.File{in, out, errW}, "sh", "-c", "cat; stat -L -c '%F %i' /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2; echo oops >&2; exit 3")
	text, _ := io.ReadAll(outR)
	errText, _ := io.ReadAll(errR)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if err != nil || code != 3 || string(errText) != "oops\n" || len(lines) != 4 || lines[0] != "hello" {
		t.Fatalf("%d, %v, %q, %q", code, err, text, errText)
	}
	for _, line := range lines[1:] {
		inode, ok := strings.CutPrefix(line, "fifo ")
		if !ok || slices.Contains(mine, inode) {
			t.Errorf("the process has %q; mine are %v", line, mine)
		}
	}
	waitIdle(t, s)
}

// TestExecRefusesFiles checks what is not taken from any client.
func TestExecRefusesFiles(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(name string, flags int) func() *os.File {
		return func() *os.File {
			fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
			if err != nil {
				t.Fatal(err)
			}
			return os.NewFile(uintptr(fd), name)
		}
	}
	pipe := func(end int) func() *os.File {
		return func() *os.File {
			ends := [2]*os.File{}
			ends[0], ends[1] = testPipe(t)
			_ = ends[1-end].Close()
			return ends[end]
		}
	}
	socket := func() *os.File {
		fds, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fds[1])
		return os.NewFile(uintptr(fds[0]), "socket")
	}
	for name, test := range map[string]struct {
		in, out func() *os.File
		want    string // "" is taken
	}{
		"file in":        {open(file, unix.O_RDWR), pipe(1), "standard input is a regular file"},
		"file out":       {pipe(0), open(file, unix.O_WRONLY), "standard output is a regular file"},
		"directory":      {open(dir, unix.O_RDONLY), pipe(1), "standard input is a directory"},
		"device":         {open("/dev/zero", unix.O_RDONLY), pipe(1), "standard input is a terminal or another device"},
		"terminal":       {pipe(0), open("/dev/ptmx", unix.O_RDWR), "standard output is a terminal or another device"},
		"socket in":      {socket, pipe(1), "standard input is a socket"},
		"socket out":     {pipe(0), socket, "standard output is a socket"},
		"both ways in":   {open(fifo, unix.O_RDWR), pipe(1), "standard input: it is not open for reading alone"},
		"both ways out":  {pipe(0), open(fifo, unix.O_RDWR), "standard output: it is not open for writing alone"},
		"only named in":  {open(fifo, unix.O_PATH), pipe(1), "standard input: it is not open for reading alone"},
		"only named out": {pipe(0), open(fifo, unix.O_PATH), "standard output: it is not open for writing alone"},
		"wrong end in":   {pipe(1), pipe(1), "standard input: it is not open for reading alone"},
		"wrong end out":  {pipe(0), pipe(0), "standard output: it is not open for writing alone"},
		"null":           {open(os.DevNull, unix.O_RDONLY), open(os.DevNull, unix.O_RDWR), ""},
		"nobody":         {pipe(0), pipe(1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := 0
			for n := range 20 {
				if n == 1 {
					before = openFiles(t)
				}
				code, err := rawExec(c, path, [3]*os.File{test.in(), test.out(), pipe(1)()}, "true")
				if test.want == "" && (err != nil || code != 0) || test.want != "" && (pod.KindOf(err) != pod.Invalid || !strings.Contains(fmt.Sprint(err), test.want)) {
					t.Fatalf("%d, %v; want %q", code, err, test.want)
				}
			}
			for deadline := time.Now().Add(10 * time.Second); openFiles(t) > before+10; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d files are open, %d were", openFiles(t), before)
				}
			}
		})
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "secret" {
		t.Errorf("%q, %v", data, err)
	}
}

// TestExecLeftBehind checks that a process that outlives the command neither holds up the end nor
// has anything of the client's.
func TestExecLeftBehind(t *testing.T) {
	s, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	outR, out := testPipe(t)
	heard := filepath.Join(t.TempDir(), "heard")
	script := `(trap '' PIPE; read x; echo "input $?" >` + heard + `; sleep 1; echo late && echo written >>` + heard + `; echo end >>` + heard + `) & head -c 60000 /dev/zero; exit 4`
	p := client.Process{Args: []string{"sh", "-c", script}, Stdin: nil, Stdout: out, Stderr: nil}
	inR, _ := testPipe(t)
	p.Stdin = inR // nobody writes to it, and it does not end
	started := make(chan struct{})
	var text []byte
	go func() {
		defer close(started)
		time.Sleep(300 * time.Millisecond) // slower than the command
		text, _ = io.ReadAll(outR)
	}()
	code, err := c.Exec(t.Context(), path, "c", p, podapi.WinSize{})
	_ = out.Close()
	<-started
	if err != nil || code != 4 || len(text) != 60000 {
		t.Errorf("%d, %v, %d bytes", code, err, len(text))
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		data, _ := os.ReadFile(heard)
		if strings.HasSuffix(string(data), "end\n") {
			if string(data) != "input 1\nend\n" {
				t.Errorf("what was left behind says %q", data)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("what was left behind says only %q", data)
		}
	}
	waitIdle(t, s)
}

// TestArchiveOfNobody checks that a pipe that never ends, and one that nobody reads, hold nothing
// when the client has gone.
func TestArchiveOfNobody(t *testing.T) {
	s, _, _, address := serve(t, rule{})
	r, _ := testPipe(t)
	_, w := testPipe(t)
	if _, err := unix.Write(int(w.Fd()), make([]byte, 65536)); err != nil { // full
		t.Fatal(err)
	}
	before := 0
	for n := range 10 {
		if n == 1 {
			before = openFiles(t)
		}
		other, err := client.Dial(address)
		if err != nil {
			t.Fatal(err)
		}
		other.Conn().Object(BusName, ManagerPath).Go(ManagerInterface+".LoadImage", 0, nil, godbus.UnixFD(r.Fd()))
		other.Conn().Object(BusName, ManagerPath).Go(ManagerInterface+".SaveImage", 0, nil, []string{"localhost/a:1"}, godbus.UnixFD(w.Fd()))
		time.Sleep(20 * time.Millisecond)
		other.Close()
		waitIdle(t, s)
	}
	for deadline := time.Now().Add(10 * time.Second); openFiles(t) > before+5; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d files are open, %d were", openFiles(t), before)
		}
	}
}

// TestLogsAreReadOnly checks what a reader of logs gets.
func TestLogsAreReadOnly(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	logs, err := c.Logs(t.Context(), runWeb(t, c), pod.LogOptions{Tail: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	if info, err := logs.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 || checkMode(logs, os.O_RDONLY) != nil {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
