package runtimetest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// exec runs a process in a container with stdin, and returns its status and output.
func (p *testPod) exec(container, stdin string, process runtime.Process) (status runtime.ExitStatus, stdout, stderr string) {
	p.Helper()
	dir := p.TempDir()
	file := func(name, content string) *os.File {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			p.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			p.Fatal(err)
		}
		return f
	}
	in, out, errs := file("stdin", stdin), file("stdout", ""), file("stderr", "")
	defer func() { in.Close(); out.Close(); errs.Close() }()
	process.Stdin, process.Stdout, process.Stderr = in, out, errs
	status, err := p.manager.Exec(p.ctx, p.ref, container, process)
	if err != nil {
		p.Fatalf("Exec %q: %v", process.Args, err)
	}
	read := func(f *os.File) string {
		data, err := os.ReadFile(f.Name())
		if err != nil {
			p.Fatal(err)
		}
		return string(data)
	}
	return status, read(out), read(errs)
}

func execError(p *testPod, container string) error {
	_, err := p.manager.Exec(p.ctx, p.ref, container, runtime.Process{Args: []string{"true"}})
	return err
}

func checkExec(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	p.create()
	p.runReady("main", 0)
	for _, tc := range []struct {
		args        []string
		stdin, want string
		code        int
	}{
		{args: []string{"true"}},
		{args: []string{"false"}, code: 1},
		{args: []string{"echo", "hello", "world"}, want: "hello world\n"},
		{args: []string{"cat"}, stdin: "some\x00bytes\n", want: "some\x00bytes\n"},
	} {
		status, stdout, stderr := p.exec("main", tc.stdin, runtime.Process{Args: tc.args})
		if status.Code != tc.code || status.Signal != 0 || stdout != tc.want || stderr != "" {
			h.Errorf("%q: %+v, stdout %q, stderr %q; want %d, %q", tc.args, status, stdout, stderr, tc.code, tc.want)
		}
	}
	// Without any of the three files.
	if status, err := h.manager.Exec(h.ctx, p.ref, "main", runtime.Process{Args: []string{"cat"}}); err != nil || status.Code != 0 {
		h.Errorf("without stdin: %+v, %v", status, err)
	}
	if status, err := h.manager.Exec(h.ctx, p.ref, "main", runtime.Process{Args: []string{"no-such-command"}}); err == nil && status.Code == 0 {
		h.Error("a command that does not exist succeeds")
	}
	if state := p.state("main"); state.Stage != pod.ContainerRunning {
		h.Errorf("the container is %+v", state)
	}
}

func checkExecNotRunning(h *suite) {
	p := h.newPod(map[string]program{"ended": exits(0), "never": obeys})
	h.kind("Exec without a sandbox", execError(p, "ended"), pod.NotFound)
	p.create()
	p.run("ended", 0)
	p.awaitExit("ended")
	h.kind("Exec in one that has ended", execError(p, "ended"), pod.Conflict)
	h.kind("Exec in one that was never started", execError(p, "never"), pod.NotFound)
	h.kind("Exec in one that does not exist", execError(p, "nobody"), pod.NotFound)
}

func checkExecTimeout(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	p.create()
	p.runReady("main", 0)
	sleep := []string{"sleep", "600"}
	if h.env.Behave == nil {
		sleep = []string{"sh", "-c", "echo $$ > " + sharedDir + "/pid; exec sleep 600"}
	}
	start := time.Now()
	status, err := h.manager.Exec(h.ctx, p.ref, "main", runtime.Process{Args: sleep, Timeout: 2 * time.Second})
	if err != nil || status.Code != 128+int(syscall.SIGKILL) || status.Signal != int(syscall.SIGKILL) {
		h.Errorf("after its timeout: %+v, %v; want it killed", status, err)
	}
	if took := time.Since(start); took < 1800*time.Millisecond || took > patience {
		h.Errorf("a timeout of 2 s took %v", took)
	}
	if h.env.Behave == nil {
		status, _, stderr := p.exec("main", "", runtime.Process{Args: []string{"sh", "-c", "kill -0 $(cat " + sharedDir + "/pid)"}})
		if status.Code == 0 {
			h.Errorf("the process is still there after its timeout (%s)", stderr)
		}
	}
	ctx, cancel := context.WithTimeout(h.ctx, 500*time.Millisecond)
	defer cancel()
	start = time.Now()
	_, err = h.manager.Exec(ctx, p.ref, "main", runtime.Process{Args: []string{"sleep", "600"}})
	h.kind("Exec after the end of its context", err, pod.Unavailable)
	if took := time.Since(start); took > patience {
		h.Errorf("the end of the context took %v", took)
	}
	if state := p.state("main"); state.Stage != pod.ContainerRunning {
		h.Errorf("the container is %+v", state)
	}
}

// checkExecOptions: user, working directory, environment, and both outputs.
func checkExecOptions(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	p.create()
	p.runReady("main", 0)
	process := runtime.Process{
		Args: []string{"sh", "-c", "pwd; id -u; id -g; echo $NAME-$EXTRA; echo oops >&2; exit 9"},
		User: "1000:2000", WorkingDir: sharedDir, Env: []string{"EXTRA=more", "ATTEMPT=x"},
	}
	status, stdout, stderr := p.exec("main", "", process)
	if want := sharedDir + "\n1000\n2000\nmain-more\n"; status.Code != 9 || stdout != want || stderr != "oops\n" {
		h.Errorf("%+v, stdout %q, stderr %q; want 9, %q, oops", status, stdout, stderr, want)
	}
	status, _, _ = p.exec("main", "", runtime.Process{Args: []string{"sh", "-c", "kill -USR1 $$"}})
	if want := (runtime.ExitStatus{Code: 128 + int(syscall.SIGUSR1), Signal: int(syscall.SIGUSR1)}); status != want && status.Code != want.Code {
		h.Errorf("killed by a signal: %+v, want %+v", status, want)
	}
}

// checkExecTerminal: the process has a terminal, whose size follows Resize.
func checkExecTerminal(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	p.create()
	p.runReady("main", 0)
	sizes := make(chan runtime.WinSize, 1)
	sizes <- runtime.WinSize{Rows: 41, Cols: 123}
	stdin, input, err := os.Pipe()
	if err != nil {
		h.Fatal(err)
	}
	output, stdout, err := os.Pipe()
	if err != nil {
		h.Fatal(err)
	}
	defer func() { stdin.Close(); input.Close(); output.Close(); stdout.Close() }()
	text := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(io.LimitReader(output, 1<<20))
		text <- string(data)
	}()
	if _, err := io.WriteString(input, "typed\n"); err != nil {
		h.Fatal(err)
	}
	const script = `test -t 0 && test -t 1 && read line && echo got-$line
n=0; until [ "$(stty size)" = "41 123" ]; do n=$((n+1)); [ $n -gt 300 ] && exit 1; sleep 0.1; done; exit 9`
	status, err := h.manager.Exec(h.ctx, p.ref, "main", runtime.Process{
		Args: []string{"sh", "-c", script}, TTY: true, Stdin: stdin, Stdout: stdout, Resize: sizes, Timeout: patience,
	})
	stdout.Close()
	got := <-text
	if err != nil || status.Code != 9 || !strings.Contains(got, "got-typed") {
		h.Errorf("%+v, %v, output %q; want 9 and got-typed", status, err, got)
	}
}

// checkEnvironment: the last variable of a name wins, HOSTNAME is added, and so is what the image has.
func checkEnvironment(h *suite) {
	p := h.newPod(map[string]program{"main": waits(`printf '%s\n' "$NAME" "$ATTEMPT" "$HOSTNAME" > ` + sharedDir + `/env; env > ` + sharedDir + `/all`)})
	p.create()
	p.runReady("main", 5)
	data, err := os.ReadFile(filepath.Join(p.dir, "env"))
	if want := fmt.Sprintf("main\n5\n%s\n", p.network.Hostname); err != nil || string(data) != want {
		h.Errorf("got %q, %v; want %q", data, err, want)
	}
	all, err := os.ReadFile(filepath.Join(p.dir, "all"))
	h.none("environment", err)
	lines := "\n" + string(all)
	for _, variable := range h.env.Image.Config.Env {
		if !strings.HasPrefix(variable, "PATH=") && !strings.Contains(lines, "\n"+variable+"\n") {
			h.Errorf("%s of the image is missing in %q", variable, all)
		}
	}
}
