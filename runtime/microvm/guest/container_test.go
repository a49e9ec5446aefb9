package guest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
)

// outcome runs a session to its end.
func outcome(t *testing.T, session *client.Session) (wire.Exit, string, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), host.Patience(30*time.Second))
	defer cancel()
	var stdout, stderr bytes.Buffer
	exit, err := session.Run(ctx, client.IO{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatalf("%v; stdout %q, stderr %q", err, stdout.String(), stderr.String())
	}
	return exit, stdout.String(), stderr.String()
}

// eventually waits for something that takes a moment.
var eventually = testutil.Eventually

// TestExits: how a container ends is reported as it is, with all of its output before that.
func TestExits(t *testing.T) {
	m := guesttest.Start(t)
	for _, tc := range []struct {
		name, script   string
		code, signal   int
		stdout, stderr string
	}{
		{"zero", "echo out; echo err >&2", 0, 0, "out\n", "err\n"},
		{"code", "exit 7", 7, 0, "", ""},
		{"killed", "sleep 100", 137, 9, "", ""},
		{"more than a pipe holds", "seq 100000 | tail -n 1; yes | head -c 300000", 0, 0, "100000\n" + strings.Repeat("y\n", 150000), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			request := guesttest.Container(t, "a", nil, "/bin/sh", "-c", tc.script)
			session := m.Run(t, request)
			if tc.signal != 0 {
				if err := m.Signal(t.Context(), "a", "", syscall.Signal(tc.signal)); err != nil {
					t.Fatal(err)
				}
			}
			exit, stdout, stderr := outcome(t, session)
			if exit.Code != tc.code || exit.Signal != tc.signal || exit.OOM || stdout != tc.stdout || stderr != tc.stderr {
				t.Errorf("%+v, stdout %d bytes %.40q, stderr %q", exit, len(stdout), stdout, stderr)
			}
			eventually(t, "removed", func() bool { return m.Containers(t) == "" })
		})
	}
}

// TestEnvironment looks at a container from inside.
func TestEnvironment(t *testing.T) {
	m := guesttest.Start(t)
	session := m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", `hostname; id -u; grep 0: /proc/self/cgroup; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; echo $$$$; cat /proc/1/oom_score_adj; ls /proc/self/fd | wc -l; touch /sys/x 2>&1; grep -c ' / / ' /proc/self/mountinfo`))
	exit, stdout, stderr := outcome(t, session)
	want := "web\n0\n0::/\nNoNewPrivs:\t0\nSeccomp:\t2\n1\n1000\n4\ntouch: /sys/x: Read-only file system\n1\n"
	if exit.Code != 0 || stdout != want {
		t.Errorf("%+v, stdout\n%s\nwant\n%s\nstderr %s", exit, stdout, want, stderr)
	}
}

// TestSignals: a signal reaches the first process, and a container that has ended has none.
func TestSignals(t *testing.T) {
	m := guesttest.Start(t)
	session := m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", `trap 'echo hup' HUP; trap 'echo term; exit 3' TERM; echo ready; while true; do sleep 0.05; done`))
	var stdout lineBuffer
	type result struct {
		exit wire.Exit
		err  error
	}
	done := make(chan result, 1)
	go func() {
		exit, err := session.Run(t.Context(), client.IO{Stdout: &stdout})
		done <- result{exit, err}
	}()
	eventually(t, "ready", func() bool { return stdout.String() == "ready\n" })
	if err := m.Signal(t.Context(), "a", "another", syscall.SIGTERM); wire.CodeOf(err) != wire.CodeContainerNotFound {
		t.Errorf("signal to another attempt: %v", err)
	}
	for _, step := range []struct {
		line   string
		signal syscall.Signal
	}{{"ready\n", syscall.SIGHUP}, {"ready\nhup\n", syscall.SIGTERM}} {
		eventually(t, step.line, func() bool { return stdout.String() == step.line })
		if err := m.Signal(t.Context(), "a", "", step.signal); err != nil {
			t.Fatal(err)
		}
	}
	if r := <-done; r.err != nil || r.exit.Code != 3 || r.exit.Signal != 0 || stdout.String() != "ready\nhup\nterm\n" {
		t.Errorf("%+v, %q", r, stdout.String())
	}
	if err := m.Signal(t.Context(), "b", "", syscall.SIGTERM); wire.CodeOf(err) != wire.CodeContainerNotFound {
		t.Errorf("signal to nobody: %v", err)
	}
}

// TestLife goes through the states of a container, as others than its owner see them.
func TestLife(t *testing.T) {
	m := guesttest.Start(t)
	ctx := t.Context()
	request := guesttest.Container(t, "a", nil, "/bin/sh", "-c", "exit 5")
	session, err := m.Create(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if got := statsOf(t, m.Client); len(got) != 1 || got[0].Container != "a" || m.Containers(t) != "a" {
		t.Errorf("the container was created, and there are %+v", got)
	}
	if _, err := m.Exec(ctx, wire.Exec{Container: "a", Args: []string{"true"}}); wire.CodeOf(err) != wire.CodeContainerNotRunning {
		t.Errorf("a process before the start: %v", err)
	}
	if _, err := m.Create(ctx, request); wire.CodeOf(err) != wire.CodeInvalidRequest {
		t.Errorf("created twice: %v", err)
	}
	if err := m.Start(ctx, "a", "other"); wire.CodeOf(err) != wire.CodeContainerNotFound {
		t.Errorf("start of another attempt: %v", err)
	}
	if err := m.Start(ctx, "a", request.ID); err != nil {
		t.Fatal(err)
	}
	// Nobody reads the owner's stream: the end is known all the same.
	eventually(t, "the end", func() bool { return hasEnded(t, m.Client, "a") })
	if err := m.Start(ctx, "a", request.ID); wire.CodeOf(err) != wire.CodeContainerNotRunning {
		t.Errorf("started twice: %v", err)
	}
	if err := m.Signal(ctx, "a", "", syscall.SIGTERM); wire.CodeOf(err) != wire.CodeContainerNotRunning {
		t.Errorf("signal after the end: %v", err)
	}
	if exit, _, _ := outcome(t, session); exit.Code != 5 {
		t.Errorf("its end is %+v, want code 5", exit)
	}
	// The next attempt takes the name as soon as the owner has let go.
	session.Close()
	next := guesttest.Container(t, "a", nil, "/bin/true")
	again := m.Run(t, next)
	if exit, _, _ := outcome(t, again); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
}

// TestOwnerGone: a container lives by its connection.
func TestOwnerGone(t *testing.T) {
	m := guesttest.Start(t)
	session := m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "trap '' TERM HUP; sleep 1000 & sleep 1000"))
	if got := m.Containers(t); got != "a" {
		t.Fatalf("containers %q", got)
	}
	session.Close()
	eventually(t, "gone", func() bool { return len(statsOf(t, m.Client)) == 0 })
	if got := m.Containers(t); got != "" {
		t.Errorf("cgroups are left: %q", got)
	}
	if mounts, err := os.ReadFile("/proc/" + itoa(m.PID) + "/mountinfo"); err != nil || strings.Contains(string(mounts), "/containers/") {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
}

// TestForeignOutput: a container ends, and is removed, although another one of the pod keeps its
// output open, or fills it. What it has written itself comes all the same.
func TestForeignOutput(t *testing.T) {
	for name, then := range map[string]string{"keeps": "exec sleep 1000", "fills": "exec yes >&3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it takes seconds, and does little
			m := guesttest.Start(t)
			if err := m.Configure(t.Context(), wire.Configure{SharePID: true}); err != nil {
				t.Fatal(err)
			}
			start := func(suffix string) *client.Session {
				t.Helper()
				session := m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "echo own; exec sleep 432"+suffix))
				find := "exec 3>/proc/$(ps | grep '[s]leep 432" + suffix + "' | awk '{print $1}')/fd/1; echo kept; "
				holder := m.Run(t, guesttest.Container(t, "b"+suffix, nil, "/bin/sh", "-c", find+then))
				var said lineBuffer
				go holder.Run(t.Context(), client.IO{Stdout: &said, Stderr: &said})
				eventually(t, "the output is kept", func() bool { return said.String() == "kept\n" })
				return session
			}
			session := start("1")
			go func() {
				time.Sleep(100 * time.Millisecond)
				_ = m.Signal(t.Context(), "a", "", syscall.SIGKILL)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), host.Patience(10*time.Second))
			defer cancel()
			output := &beginning{}
			if exit, err := session.Run(ctx, client.IO{Stdout: output}); err != nil || exit.Signal != 9 || string(output.data) != "own\n" {
				t.Errorf("%+v %v, %q", exit, err, output.data)
			}
			// The same when the host hangs up.
			start("2").Close()
			eventually(t, "removed", func() bool { return !strings.Contains(m.Containers(t), "a") })
		})
	}
}

// beginning keeps the first line that is written, of a few bytes. It takes its time, so that who
// writes without end is always ahead.
type beginning struct{ data []byte }

func (b *beginning) Write(data []byte) (int, error) {
	time.Sleep(time.Millisecond)
	b.data = append(b.data, data[:min(len(data), 4-len(b.data))]...)
	return len(data), nil
}

// TestStartFails: what cannot be run is reported with the reason and the shell's exit code, and
// nothing is left.
func TestStartFails(t *testing.T) {
	m := guesttest.Start(t)
	for _, tc := range []struct {
		command, message string
		exit             int
	}{{"/bin/none", "/bin/none", 127}, {"/bin/notexec", "ermission denied|not executable", 126}} { // crun 1.8; later ones
		request := guesttest.Container(t, "a", nil, tc.command)
		session, err := m.Create(t.Context(), request)
		if err == nil {
			err = m.Start(t.Context(), "a", request.ID)
			session.Close()
		}
		failed, ok := errors.AsType[*wire.Error](err)
		if !ok || failed.Code != wire.CodeExecFailed || failed.Exit != tc.exit || !regexp.MustCompile(tc.message).MatchString(failed.Message) {
			t.Errorf("%s: %v", tc.command, err)
		}
		eventually(t, "gone", func() bool { return m.Containers(t) == "" })
	}
	for file, want := range map[string]wire.Code{"none": wire.CodeInvalidRequest, "root": wire.CodeInternal} { // a directory is no image
		broken := guesttest.Container(t, "a", nil, "/bin/true")
		broken.Rootfs.File = file
		if _, err := m.Create(t.Context(), broken); wire.CodeOf(err) != want || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
	if list := statsOf(t, m.Client); len(list) != 0 {
		t.Errorf("there are %+v, want none", list)
	}
}

// TestPowerOffWhileCreating: a container that is just being made does not delay the VM's end.
func TestPowerOffWhileCreating(t *testing.T) {
	for i := range 15 {
		m := guesttest.Start(t)
		created := make(chan *client.Session, 1)
		go func() {
			session, _ := m.Create(t.Context(), guesttest.Container(t, "a", nil, "/bin/sleep", "1000")) // or not, as it comes
			created <- session
		}()
		time.Sleep(time.Duration(i) * 700 * time.Microsecond)
		begin := time.Now()
		if err := m.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the VM's end", func() bool { _, err := m.Ping(t.Context()); return errors.Is(err, client.ErrGone) })
		if took := time.Since(begin); took > host.Patience(3*time.Second) {
			t.Errorf("in creation %d the end took %s", i, took)
		}
		if session := <-created; session != nil {
			session.Close()
		}
	}
}

// statsOf are the containers that there are, and what they use.
func statsOf(t *testing.T, m *client.Client) []wire.ContainerStats {
	t.Helper()
	stats, err := m.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stats.Containers
}

// hasEnded says whether there is a container whose first process has ended.
func hasEnded(t *testing.T, m *client.Client, name string) bool {
	return wire.CodeOf(m.Signal(t.Context(), name, "", syscall.SIGCONT)) == wire.CodeContainerNotRunning
}
