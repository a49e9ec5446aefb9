package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/units"
)

// capture is a pipe whose other end is read in the background.
type capture struct {
	w    *os.File
	done chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
}

func newCapture(t *testing.T) *capture {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &capture{w: w, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer r.Close()
		chunk := make([]byte, 4096)
		for {
			n, err := r.Read(chunk)
			c.mu.Lock()
			c.buf.Write(chunk[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return c
}

// text closes the writing end and returns all that came.
func (c *capture) text() string {
	c.w.Close()
	<-c.done
	return c.buf.String()
}

// sofar waits until what came contains want.
func (c *capture) sofar(t *testing.T, want string) {
	t.Helper()
	text := ""
	for range 1000 {
		c.mu.Lock()
		text = c.buf.String()
		c.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("got %q, want %q in it", text, want)
}

// execute runs a process in container a and returns what it wrote.
func (w *world) execute(t *testing.T, p pod.Ref, process runtime.Process) (out, errOut string, status runtime.ExitStatus, err error) {
	t.Helper()
	stdout, stderr := newCapture(t), newCapture(t)
	process.Stdout, process.Stderr = stdout.w, stderr.w
	status, err = w.Exec(t.Context(), p, "a", process)
	return stdout.text(), stderr.text(), status, err
}

func shell(script string) runtime.Process { return runtime.Process{Args: []string{"sh", "-c", script}} }

func TestExec(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		// The daemon's own score must not be the process's.
		old := crun.OwnOOMScore()
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("123"), 0); err != nil {
			t.Fatal(err)
		}
		defer os.WriteFile("/proc/self/oom_score_adj", []byte(fmt.Sprint(old)), 0)
		p := w.pod("exec", "sleep 1000")
		w.up(p)
		user := shell("id -u; id -g; id -G; echo $HOME")
		user.User = "app"
		byNumber := shell("id -u; id -g; echo $HOME")
		byNumber.User = "4000:4001"
		long := shell("echo ${#A} ${#B}") // more than a pipe holds
		long.Env = []string{"A=" + strings.Repeat("a", 100_000), "B=" + strings.Repeat("b", 100_000)}
		env := shell("echo $A $B; pwd")
		env.Env, env.WorkingDir = []string{"A=1", "B=2", "A=3"}, "/tmp"
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if out, _, _, _ := w.execute(t, pod.RefOf(p), shell("cat /proc/1/comm")); out == "sleep\n" {
				break // the container's shell has become what it is to become
			}
		}
		for name, tc := range map[string]struct {
			p         runtime.Process
			out, err  string
			code, sig int
		}{
			"status":    {shell("echo out; echo err >&2; exit 42"), "out\n", "err\n", 42, 0},
			"success":   {runtime.Process{Args: []string{"hostname"}}, "exec\n", "", 0, 0},
			"signal":    {shell("kill -9 $$"), "", "", 137, 9},
			"user":      {user, "1000\n1000\n1000 2000\n/home/app\n", "", 0, 0},
			"number":    {byNumber, "4000\n4001\n/\n", "", 0, 0},
			"env":       {env, "3 2\n/tmp\n", "", 0, 0},
			"long":      {long, "100000 100000\n", "", 0, 0},
			"score":     {shell("cat /proc/self/oom_score_adj"), "1000\n", "", 0, 0},
			"no stdin":  {shell("cat; echo end"), "end\n", "", 0, 0},
			"processes": {shell("cat /proc/1/cmdline"), "sleep\x001000\x00", "", 0, 0},
			"big":       {shell("head -c 1000000 /dev/zero | tr '\\0' x | wc -c"), "1000000\n", "", 0, 0},
		} {
			out, errOut, status, err := w.execute(t, pod.RefOf(p), tc.p)
			if err != nil || out != tc.out || errOut != tc.err || status.Code != tc.code || status.Signal != tc.sig {
				t.Errorf("%s: %q, %q, %+v, %v", name, out, errOut, status, err)
			}
		}
	})
}

func TestExecErrors(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("execerr", "sleep 1000", "true")
		w.up(p)
		w.await(p, "b", pod.ContainerExited)
		bad := shell("true")
		bad.User = "nobody-like-that"
		for name, tc := range map[string]struct {
			container string
			p         runtime.Process
			kind      pod.Kind
			want      string
			code      int
		}{
			"ended":          {"b", shell("true"), pod.Conflict, "it does not run (exited)", 0},
			"missing":        {"c", shell("true"), pod.NotFound, "it does not exist", 0},
			"no command":     {"a", runtime.Process{}, pod.Invalid, "no command specified", 0},
			"not found":      {"a", runtime.Process{Args: []string{"no-such-command"}}, pod.Invalid, "no-such-command", 127},
			"no file":        {"a", runtime.Process{Args: []string{"/no/such/file"}}, pod.Invalid, "/no/such/file", 127},
			"not executable": {"a", runtime.Process{Args: []string{"/etc/passwd"}}, pod.Invalid, "", 126},
			"directory":      {"a", runtime.Process{Args: []string{"/etc"}}, pod.Invalid, "", 126},
			"no user":        {"a", bad, pod.Invalid, "nobody-like-that", 0},
			"bad env":        {"a", runtime.Process{Args: []string{"true"}, Env: []string{"x"}}, pod.Invalid, "NAME=VALUE", 0},
			"NUL":            {"a", shell("echo \x00"), pod.Invalid, "NUL", 0},
			"bad dir":        {"a", runtime.Process{Args: []string{"true"}, WorkingDir: "tmp"}, pod.Invalid, "not absolute", 0},
		} {
			status, err := w.Exec(t.Context(), pod.RefOf(p), tc.container, tc.p)
			if pod.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err), tc.want) || status.Code != tc.code {
				t.Errorf("%s: %+v, %v (%s)", name, status, err, pod.KindOf(err))
			}
		}
		entries, err := filepath.Glob(filepath.Join(w.runDir(p.UID), "c/a/exec-*"))
		if err != nil || len(entries) > 0 {
			t.Errorf("files are left: %v", entries)
		}
	})
}

// TestExecNoFiles checks that a process without files has nothing of the host's, which it could
// change, and that its output does not stop it.
func TestExecNoFiles(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("execnofiles", "sleep 1000")
		w.up(p)
		before, err := os.Stat(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		script := `for i in 0 1 2; do chmod 0 /proc/self/fd/$i; done; head -c 1000000 /dev/zero; cat; `
		if w.oci != "runc" { // which copies by itself, and waits for whoever has its pipes
			script += "sleep 1000 & "
		}
		script += "exit 5"
		status, err := w.Exec(t.Context(), pod.RefOf(p), "a", runtime.Process{Args: []string{"sh", "-c", script}})
		after, statErr := os.Stat(os.DevNull)
		if statErr != nil || after.Mode() != before.Mode() {
			os.Chmod(os.DevNull, before.Mode())
			t.Errorf("a container has made the host's %s %v, %v", os.DevNull, after.Mode(), statErr)
		}
		if err != nil || status.Code != 5 {
			t.Errorf("%+v, %v", status, err)
		}
	})
}

// TestExecStdin checks that the process reads what it is given, to the end.
func TestExecStdin(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("execstdin", "sleep 1000")
		w.up(p)
		r, stdin, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		go func() {
			io.WriteString(stdin, strings.Repeat("0123456789abcdef", 1<<16))
			stdin.Close()
		}()
		process := shell("wc -c")
		process.Stdin = r
		if out, _, status, err := w.execute(t, pod.RefOf(p), process); err != nil || out != "1048576\n" || status.Code != 0 {
			t.Errorf("%q, %+v, %v", out, status, err)
		}
	})
}

// TestExecEnd checks that a timeout and a cancelled context end all that the process has started.
func TestExecEnd(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("execend", "sleep 1000")
		w.up(p)
		for i, end := range []string{"timeout", "cancel"} {
			marker := fmt.Sprint(77000 + i)
			process := shell("trap '' TERM; setsid sleep " + marker + " & sleep " + marker)
			ctx, cancel := context.WithCancel(t.Context())
			if end == "timeout" {
				process.Timeout = 500 * time.Millisecond
			} else {
				time.AfterFunc(500*time.Millisecond, cancel)
			}
			begin := time.Now()
			status, err := w.Exec(ctx, pod.RefOf(p), "a", process)
			cancel()
			want := pod.Kind("")
			if end == "cancel" {
				want = pod.Unavailable
			}
			if took := time.Since(begin); pod.KindOf(err) != want || status.Code != 137 || took < 400*time.Millisecond || took > 20*time.Second {
				t.Errorf("%s: after %s %+v, %v", end, took, status, err)
			}
			for deadline := time.Now().Add(10 * time.Second); runs("sleep\x00" + marker + "\x00"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: a process is left", end)
				}
			}
		}
		if c := w.state(p).Containers["a"]; c.Stage != pod.ContainerRunning {
			t.Errorf("%+v", c)
		}
		for range 10 { // killed in the middle of whatever it is doing
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			_, _ = w.Exec(ctx, pod.RefOf(p), "a", shell("while :; do :; done"))
			cancel()
		}
		state, _ := w.units.State(units.ContainerService(p.Namespace, p.Name, "a"))
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			var left []string
			for _, pattern := range []string{"/exec-*", "/*/exec-*"} {
				found, err := filepath.Glob(cgroup.Root() + state.ControlGroup + pattern)
				if err != nil {
					t.Fatal(err)
				}
				left = append(left, found...)
			}
			if len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("cgroups are left: %q", left)
			}
		}
	})
}

// TestExecTerminal checks that the process has a terminal of its own, with job control, whose size
// can be changed.
func TestExecTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("exectty", "sleep 1000")
		w.up(p)
		r, stdin, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer stdin.Close()
		out := newCapture(t)
		resize := make(chan runtime.WinSize, 1)
		resize <- runtime.WinSize{Rows: 33, Cols: 101}
		process := runtime.Process{Args: []string{"sh"}, TTY: true, Stdin: r, Stdout: out.w, Resize: resize}
		type result struct {
			status runtime.ExitStatus
			err    error
		}
		ended := make(chan result, 1)
		go func() {
			status, err := w.Exec(t.Context(), pod.RefOf(p), "a", process)
			ended <- result{status, err}
		}()
		say := func(line, want string) {
			t.Helper()
			io.WriteString(stdin, line+"\n")
			out.sofar(t, want)
		}
		say("tty; echo T=$TERM", "/dev/pts/0\r\nT=xterm\r\n")
		say("stty size", "33 101\r\n")
		resize <- runtime.WinSize{Rows: 44, Cols: 111}
		for i := 0; ; i++ { // the size is passed on by a signal
			marker := fmt.Sprintf("<%d>", i)
			say("stty size; echo '<''"+fmt.Sprint(i)+">'", marker)
			out.mu.Lock()
			got := strings.Contains(out.buf.String(), "44 111\r\n")
			out.mu.Unlock()
			if got {
				break
			}
			if i == 100 {
				t.Fatal("the size does not change")
			}
			time.Sleep(50 * time.Millisecond)
		}
		io.WriteString(stdin, "sleep 88123\n")
		for i := 0; !runs("sleep\x0088123\x00"); i++ {
			if i == 1000 {
				t.Fatal("no sleep")
			}
			time.Sleep(10 * time.Millisecond)
		}
		say("\x03", "^C") // the terminal's own echo
		say("echo sta''tus $?", "status 130")
		say("seq 1 5000; exit 12", "\r\n4999\r\n")
		got := <-ended
		text := out.text()
		if got.err != nil || got.status.Code != 12 || !strings.HasSuffix(text, "\r\n4999\r\n5000\r\n") {
			t.Errorf("%+v, output ends with %q", got, text[max(len(text)-60, 0):])
		}
	})
}

// TestExecTerminalEnds checks that nothing hangs: a reader that does not read, input that does not
// end, and a cancelled context.
func TestExecTerminalEnds(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("exectty2", "sleep 1000")
		w.up(p)
		quietRead, neverWritten, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		neverRead, quietWrite, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []*os.File{quietRead, neverWritten, neverRead, quietWrite} {
			defer f.Close()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		process := runtime.Process{Args: []string{"sh", "-c", "while :; do echo 0123456789; done"}, TTY: true, Stdin: quietRead, Stdout: quietWrite}
		begin := time.Now()
		status, err := w.Exec(ctx, pod.RefOf(p), "a", process)
		if took := time.Since(begin); pod.KindOf(err) != pod.Unavailable || status.Code != 137 || took > 20*time.Second {
			t.Errorf("after %s: %+v, %v", took, status, err)
		}
		// The end of the input ends the shell.
		r, stdin, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		out := newCapture(t)
		go func() {
			defer stdin.Close()
			io.WriteString(stdin, "echo do''ne\n")
			for range 1000 { // the shell waits for input
				out.mu.Lock()
				text := out.buf.String()
				out.mu.Unlock()
				if strings.Contains(text, "\r\ndone\r\n") {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(100 * time.Millisecond)
		}()
		status, err = w.Exec(t.Context(), pod.RefOf(p), "a", runtime.Process{Args: []string{"sh"}, TTY: true, Stdin: r, Stdout: out.w})
		if text := out.text(); err != nil || status.Code != 0 || !strings.Contains(text, "\r\ndone\r\n") {
			t.Errorf("%+v, %v, %q", status, err, text)
		}
	})
}
