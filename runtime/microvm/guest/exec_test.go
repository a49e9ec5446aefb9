package guest_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
)

// TestExec: the process has the container's namespaces, cgroup and confinement, and the
// environment, directory and user that were asked for.
func TestExec(t *testing.T) {
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "cd /tmp; hostname > x; sleep 1000"))
	exec := func(request wire.Exec, files client.IO) (wire.Exit, error) {
		request.Container = "a"
		session, err := m.Exec(t.Context(), request)
		if err != nil {
			return wire.Exit{}, err
		}
		ctx, cancel := context.WithTimeout(t.Context(), host.Patience(30*time.Second))
		defer cancel()
		return session.Run(ctx, files)
	}
	for _, tc := range []struct {
		name           string
		request        wire.Exec
		stdin          string
		code, signal   int
		stdout, stderr string
	}{
		{name: "output", request: wire.Exec{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 4"}}, code: 4, stdout: "out\n", stderr: "err\n"},
		{name: "input", request: wire.Exec{Args: []string{"cat"}, Stdin: true}, stdin: strings.Repeat("x", 300000), stdout: strings.Repeat("x", 300000)},
		{name: "no input", request: wire.Exec{Args: []string{"cat"}}},
		{name: "killed", request: wire.Exec{Args: []string{"sh", "-c", "kill -9 $$"}}, code: 137, signal: 9},
		{name: "environment", request: wire.Exec{Args: []string{"sh", "-c", "echo $A $PWD $PATH"}, Env: []string{"A=1", "A=2"}, Cwd: "/etc"}, stdout: "2 /etc /bin\n"},
		{name: "user", request: wire.Exec{Args: []string{"sh", "-c", "id; echo $HOME"}, User: "web"}, stdout: "uid=101(web) gid=102(web) groups=102(web),103(logs)\n/var/web\n"},
		{name: "in the cgroup", request: wire.Exec{Args: []string{"sh", "-c", "grep 0:: /proc/self/cgroup | cut -c1-9; cat /proc/self/oom_score_adj; grep Seccomp: /proc/self/status; cat /proc/1/cmdline | tr '\\0' ' '"}},
			stdout: "0::/exec-\n1000\nSeccomp:\t2\nsleep 1000 "},
		{name: "background", request: wire.Exec{Args: []string{"sh", "-c", "sleep 1000 & echo started"}}, stdout: "started\n"},
		{name: "not found", request: wire.Exec{Args: []string{"none"}}, code: 127},
		{name: "not executable", request: wire.Exec{Args: []string{"/bin/notexec"}}, code: 126},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			files := client.IO{Stdout: &stdout, Stderr: &stderr}
			if tc.request.Stdin {
				files.Stdin = fileOf(t, tc.stdin)
			}
			exit, err := exec(tc.request, files)
			if tc.code == 126 || tc.code == 127 { // crun says why, here and there
				tc.stderr = exit.Error + "\n"
			}
			if err != nil || exit.Code != tc.code || exit.Signal != tc.signal || stdout.String() != tc.stdout || stderr.String() != tc.stderr || exit.TimedOut {
				t.Errorf("%+v %v; stdout %d bytes %.200q, stderr %q", exit, err, stdout.Len(), stdout.String(), stderr.String())
			}
		})
	}
	for _, tc := range []struct {
		name    string
		request wire.Exec
		code    wire.Code
	}{
		{"no container", wire.Exec{Container: "b", Args: []string{"true"}}, wire.CodeContainerNotFound},
		{"no user", wire.Exec{Container: "a", Args: []string{"true"}, User: "nobody"}, wire.CodeExecFailed},
		{"no command", wire.Exec{Container: "a"}, wire.CodeInvalidRequest},
	} {
		if _, err := m.Exec(t.Context(), tc.request); wire.CodeOf(err) != tc.code {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// fileOf is a pipe with text in it.
func fileOf(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		_, _ = w.WriteString(text)
		w.Close()
	}()
	return r
}

// TestExecTerminal: a terminal of the size that was asked for, resized, with job control, whose
// input ends with the host's.
func TestExecTerminal(t *testing.T) {
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sleep", "1000"))
	session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"sh"}, TTY: true, Stdin: true, Size: &wire.Size{Rows: 20, Cols: 50}})
	if err != nil {
		t.Fatal(err)
	}
	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer typed.Close()
	sizes := make(chan wire.Size)
	var output lineBuffer
	type result struct {
		exit wire.Exit
		err  error
	}
	done := make(chan result, 1)
	go func() {
		exit, err := session.Run(t.Context(), client.IO{Stdin: in, Stdout: &output, Resize: sizes})
		done <- result{exit, err}
	}()
	say := func(text, want string) {
		t.Helper()
		if _, err := typed.WriteString(text); err != nil {
			t.Fatal(err)
		}
		eventually(t, want, func() bool { return strings.Contains(output.String(), want) })
	}
	say("tty; stty size; echo $TERM\n", "20 50\r\nxterm\r\n")
	sizes <- wire.Size{Rows: 33, Cols: 99}
	say("sleep 0.1; stty size\n", "33 99\r\n")
	say("sleep 1000\n", "sleep 1000\r\n")
	time.Sleep(100 * time.Millisecond)
	say("\x03echo in$((40+2))terrupted\n", "in42terrupted\r\n")
	say("exit 9\n", "")
	if r := <-done; r.err != nil || r.exit.Code != 9 {
		t.Errorf("%+v; output %q", r, output.String())
	}
	// A command that ends at once: its output is not lost, nor is the reason when there is none.
	for range 5 {
		session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"echo", "quick"}, TTY: true})
		if err != nil {
			t.Fatal(err)
		}
		if exit, stdout, _ := outcome(t, session); exit.Code != 0 || stdout != "quick\r\n" {
			t.Errorf("%+v %q", exit, stdout)
		}
	}
	if session, err = m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"none"}, TTY: true}); err != nil {
		t.Fatal(err)
	}
	if exit, _, _ := outcome(t, session); exit.Code != 127 || exit.Error == "" {
		t.Errorf("%+v", exit)
	}
	// The end of the input ends a program that reads.
	if session, err = m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"cat"}, TTY: true, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	exit, err := session.Run(t.Context(), client.IO{Stdin: fileOf(t, "text\n")})
	if err != nil || exit.Code != 0 {
		t.Errorf("%+v %v", exit, err)
	}
}

// TestExecEnds: the time is over, or the host hangs up: all that the process has started is killed,
// and nothing else.
func TestExecEnds(t *testing.T) {
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sleep", "1000"))
	tree := []string{"sh", "-c", "trap '' TERM; (sleep 2000 & sleep 2000) & sleep 2000"}
	processes := func() int {
		session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"sh", "-c", "ps | grep -c '[s]leep 2000'"}})
		if err != nil {
			t.Fatal(err)
		}
		_, stdout, _ := outcome(t, session)
		n := 0
		for _, c := range strings.TrimSpace(stdout) {
			n = 10*n + int(c-'0')
		}
		return n
	}
	session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: tree, Timeout: 500})
	if err != nil {
		t.Fatal(err)
	}
	if exit, _, _ := outcome(t, session); !exit.TimedOut || exit.Code != 137 || exit.Signal != 9 {
		t.Errorf("%+v", exit)
	}
	eventually(t, "all killed after the timeout", func() bool { return processes() == 0 })
	for _, stdin := range []bool{false, true} {
		session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: tree, Stdin: stdin})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "all started", func() bool { return processes() >= 3 })
		ctx, cancel := context.WithCancelCause(t.Context())
		because := errors.New("the caller does not want it any more")
		files := client.IO{}
		if stdin {
			// More than the process takes: the agent must see the end of the connection although it
			// waits for the process.
			files.Stdin = fileOf(t, strings.Repeat("x", 1<<20))
		}
		go func() {
			time.Sleep(300 * time.Millisecond)
			cancel(because)
		}()
		if _, err := session.Run(ctx, files); !errors.Is(err, because) {
			t.Errorf("%v", err)
		}
		eventually(t, "all killed after the connection's end", func() bool { return processes() == 0 })
	}
	if hasEnded(t, m.Client, "a") {
		t.Error("the container has ended with its exec")
	}
}

// TestExecAbandoned: a host that hangs up before it has been answered wants no process.
func TestExecAbandoned(t *testing.T) {
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sleep", "1000"))
	line, err := wire.EncodeRequest(&wire.Exec{Container: "a", Args: []string{"sh", "-c", "trap '' PIPE; while :; do sleep 3; done"}})
	if err != nil {
		t.Fatal(err)
	}
	const many = 20
	for range many {
		conn, err := net.Dial("unix", m.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(line); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	// The name of a process's cgroup is its number: all have been started when it is greater than
	// theirs.
	eventually(t, "all started and killed", func() bool {
		session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"sh", "-c", "grep -o 'exec-[0-9]*$' /proc/self/cgroup | cut -c6-; ps | grep -c '[s]leep 3$'"}})
		if err != nil {
			t.Fatal(err)
		}
		_, stdout, _ := outcome(t, session)
		number, processes, _ := strings.Cut(stdout, "\n")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("%q: %v", stdout, err)
		}
		return n > many && processes == "0\n"
	})
}

// TestExecCgroups: what processes leave behind keeps their cgroups only for as long as it lives.
func TestExecCgroups(t *testing.T) {
	t.Parallel() // it takes seconds, and does nothing
	m := guesttest.Start(t)
	m.Run(t, guesttest.Container(t, "a", nil, "/bin/sleep", "1000"))
	cgroups := func() int {
		t.Helper()
		names, err := filepath.Glob(m.Cgroup + "/a/exec-*")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	run := func(script string) {
		t.Helper()
		session, err := m.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"sh", "-c", script}})
		if err != nil {
			t.Fatal(err)
		}
		if exit, _, stderr := outcome(t, session); exit.Code != 0 {
			t.Fatalf("%+v, %q", exit, stderr)
		}
	}
	const many = 5
	for range many {
		run("sleep 2000 >/dev/null 2>&1 </dev/null &")
	}
	if n := cgroups(); n != many {
		t.Errorf("%d cgroups for %d processes in the background", n, many)
	}
	// Longer than a cgroup's removal waits for killed processes.
	time.Sleep(6 * time.Second)
	run("for p in $(ps | grep '[s]leep 2000' | awk '{print $1}'); do kill -9 $p; done")
	eventually(t, "removed", func() bool {
		run("true")
		return cgroups() <= 1 // the last one's may just be going
	})
}
