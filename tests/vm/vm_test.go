package vm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shellFrom runs a shell with commands on standard input.
func shellFrom(t *testing.T, m *VM, commands string) (int, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(name, []byte(commands), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	old := os.Stdin
	os.Stdin = in
	defer func() { os.Stdin = old }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return m.Shell(ctx, nil)
}

// TestWhole looks at all that package vm promises, in one VM.
func TestWhole(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from here\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	m := boot(t, Options{Files: []File{{dir, "/opt/deep/dir"}}})

	t.Run("status and output", func(t *testing.T) {
		r, err := m.Run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 7")
		if err != nil || r.Code != 7 || r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Errorf("got %+v, %v", r, err)
		}
		r, err = m.Run(t.Context(), "sh", "-c", "kill -9 $$")
		if err != nil || r.Code != 128+9 {
			t.Errorf("killed by a signal: got %+v, %v, want 137", r, err)
		}
		if _, err = m.Run(t.Context(), "/no/such/program"); err == nil {
			t.Error("a program that is missing was run")
		}
	})
	t.Run("controllers", func(t *testing.T) {
		have := strings.Fields(must(t, m, "cat", "/sys/fs/cgroup/cgroup.controllers"))
		for _, want := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
			if !strings.Contains(" "+strings.Join(have, " ")+" ", " "+want+" ") {
				t.Errorf("controllers are %q, want %s", have, want)
			}
		}
	})
	t.Run("files", func(t *testing.T) {
		if got := must(t, m, "stat", "-c", "%a %U", "/opt/deep/dir/file"); got != "640 root\n" {
			t.Errorf("the file has %q", got)
		}
		big := strings.Repeat("0123456789abcdef", 1<<16)
		if err := m.WriteFile(t.Context(), "/run/out/sub/big", big); err != nil {
			t.Fatal(err)
		}
		if err := m.Pull(t.Context(), "/run/out", dir); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "sub/big")); err != nil || string(got) != big {
			t.Errorf("a file of %d bytes came back with %d: %v", len(big), len(got), err)
		}
	})
	t.Run("files as they come", func(t *testing.T) { testFollow(t, m) })
	t.Run("clock", func(t *testing.T) {
		now, err := strconv.ParseInt(strings.TrimSpace(must(t, m, "date", "+%s")), 10, 64)
		if off := time.Since(time.Unix(now, 0)).Abs(); err != nil || off > 15*time.Second {
			t.Errorf("its clock is off by %v, %v", off, err)
		}
	})
	t.Run("live", func(t *testing.T) { testLive(t, m) })
	t.Run("shell without a terminal", func(t *testing.T) {
		for commands, want := range map[string]int{"": 0, "cd /run && exit 3\n": 3, "false": 1} {
			if code, err := shellFrom(t, m, commands); err != nil || code != want {
				t.Errorf("%q: status %d, %v, want %d", commands, code, err, want)
			}
		}
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
		defer cancel()
		if _, err := m.Run(ctx, "sleep", "98765"); err == nil || !strings.Contains(err.Error(), "enough") {
			t.Errorf("the end of the context: %v", err)
		}
		must(t, m, "sh", "-c", "while pgrep -f 'sleep 9876[5]'; do sleep 0.1; done")
	})
	if running(t) == "" {
		t.Error("QEMU does not run")
	}
	if err := m.PowerOff(t.Context()); err != nil {
		t.Error(err)
	}
	if left := running(t); left != "" {
		t.Errorf("QEMU still runs: %s", left)
	}
	if _, err := m.Run(t.Context(), "true"); err == nil {
		t.Error("a command ran in a VM that has ended")
	}
}

// testLive answers to what a command says while it runs.
func testLive(t *testing.T, m *VM) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	p, err := m.Start(t.Context(), Command{Argv: []string{"sh", "-c", "echo question; read answer; echo got $answer"}, Stdin: inR, Stdout: outW})
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("question\n"))
	if _, err := io.ReadFull(outR, line); err != nil || string(line) != "question\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if _, err := io.WriteString(inW, "yes\n"); err != nil {
		t.Fatal(err)
	}
	rest := make(chan string)
	go func() {
		var buf bytes.Buffer
		_, _ = buf.ReadFrom(outR)
		rest <- buf.String()
	}()
	code, err := p.Wait()
	_, _ = inW.Close(), outW.Close()
	if got := <-rest; code != 0 || err != nil || got != "got yes\n" {
		t.Errorf("got %q, %d, %v", got, code, err)
	}
}

// testFollow sees a file before its writer has ended, and what became of it.
func testFollow(t *testing.T, m *VM) {
	must(t, m, "mkdir", "/run/results")
	dir := t.TempDir()
	end, err := m.Follow(t.Context(), "/run/results", dir)
	if err != nil {
		t.Fatal(err)
	}
	must(t, m, "sh", "-c", "echo one >/run/results/file")
	path := filepath.Join(dir, "file")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if got, _ := os.ReadFile(path); string(got) == "one\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the file does not come")
		}
	}
	must(t, m, "sh", "-c", "echo two >>/run/results/file; echo late >/run/results/other")
	if err := end(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"file": "one\ntwo\n", "other": "late\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
}

// TestRestore: the second VM comes from the state that the first one has left, and a state that is
// damaged does no harm.
func TestRestore(t *testing.T) {
	boot(t, Options{}).Close() // saves the state, unless it is there
	began := time.Now()
	boot(t, Options{}).Close()
	t.Logf("restored in %.1f s", time.Since(began).Seconds())

	states, err := filepath.Glob("../../.cache/vmstate-*/" + stateFile)
	if err != nil || len(states) != 1 {
		t.Fatalf("the saved states are %q, %v, want one", states, err)
	}
	if err := os.Truncate(states[0], 1<<20); err != nil {
		t.Fatal(err)
	}
	must(t, boot(t, Options{}), "true")
	if _, err := os.Stat(states[0]); !os.IsNotExist(err) {
		t.Errorf("the damaged state is still there: %v", err)
	}
	must(t, boot(t, Options{}), "true") // saves it again
	if _, err := os.Stat(states[0]); err != nil {
		t.Error(err)
	}
}

// TestLimit: a VM ends when its time is up, whatever it does.
func TestLimit(t *testing.T) {
	needed(t)
	m, err := Boot(t.Context(), Options{Enable: true, Limit: 2 * time.Second})
	if err == nil {
		m.Close()
		t.Fatal("it booted in two seconds")
	}
	if !strings.Contains(err.Error(), "it ended while booting") {
		t.Error(err)
	}
	if left := running(t); left != "" {
		t.Errorf("QEMU still runs: %s", left)
	}
}

// running lists the VMs of this process.
func running(t *testing.T) string {
	t.Helper()
	var list []string
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("cannot list children: %v", err)
	}
	for _, task := range tasks {
		pids, _ := os.ReadFile(task) // a thread that has ended
		for _, pid := range strings.Fields(string(pids)) {
			if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); bytes.Contains(line, []byte("qemu")) {
				list = append(list, pid)
			}
		}
	}
	return strings.Join(list, " ")
}
