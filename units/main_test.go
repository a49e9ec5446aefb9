package units

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/magikrun/magikpod/pod"
)

// The test binary is a service's program when its first argument is this.
const asHelper = "units-test-helper"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == asHelper {
		if err := help(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// help is what the services of the tests run.
func help(verb string, args []string) error {
	switch verb {
	case "launch":
		return launch(args)
	case "sleep":
		time.Sleep(time.Hour)
	case "ignore": // SIGTERM; READY once that is so
		signal.Ignore(syscall.SIGTERM)
		if err := notify("READY=1"); err != nil {
			return err
		}
		time.Sleep(time.Hour)
	default:
		return fmt.Errorf("cannot help with %q", verb)
	}
	return nil
}

// launch does what magikshim launch does. A first program makes the container's process, which
// waits, and exits: like that the process is a child of systemd before it is announced as the main
// process. Then it may go on, and the unit is ready.
func launch(args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	create := exec.Command("/bin/sh", append([]string{"-c", `(read go <&3; exec 3<&- 4>&-; exec "$@") & echo $! >&4`, "sh"}, args...)...)
	create.Stdout, create.Stderr = os.Stdout, os.Stderr
	pid, err := outputOf(create, r)
	if err != nil {
		return err
	}
	if err := notify("MAINPID=" + pid); err != nil {
		return err
	}
	if err := barrier(); err != nil {
		return err
	}
	if _, err := w.WriteString("go\n"); err != nil {
		return err
	}
	return notify("READY=1")
}

// outputOf runs cmd with the descriptors wait (3) and a pipe (4), and returns what comes out of that.
func outputOf(cmd *exec.Cmd, wait *os.File) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{wait, w}
	err = cmd.Run()
	w.Close()
	if err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, err := r.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

func notify(state string) error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

// barrier waits until systemd has read what was sent before.
func barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) {
		sendErr = syscall.Sendmsg(int(fd), []byte("BARRIER=1"), syscall.UnixRights(int(w.Fd())), nil, 0)
	}); err != nil || sendErr != nil {
		return fmt.Errorf("cannot send: %v, %v", err, sendErr)
	}
	w.Close()
	_, _ = r.Read(make([]byte, 1))
	return nil
}

// connect skips the test where systemd cannot be talked to.
func connect(t testing.TB) *Manager {
	t.Helper()
	if comm, _ := os.ReadFile("/proc/1/comm"); strings.TrimSpace(string(comm)) != "systemd" {
		t.Skip("PID 1 is not systemd (try: go build -o .cache/magikhost ./tests/host/magikhost && go test -exec \"$PWD/.cache/magikhost run --here --\" ./units)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m, err := Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.sliceIdle = 10 * time.Millisecond
	t.Cleanup(func() { m.Close() })
	return m
}

// testPod has a main container and the given sidecars.
func testPod(name string, sidecars ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "unitstest", Name: name}}
	always := corev1.ContainerRestartPolicyAlways
	for _, s := range sidecars {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: s, RestartPolicy: &always})
	}
	p.Spec.Containers = []corev1.Container{{Name: "main"}}
	return p
}

// sandbox is a pod whose pause unit runs; when the test ends it must leave no unit.
type sandbox struct {
	*Manager
	pod   *corev1.Pod
	names PodNames
}

func startSandbox(t testing.TB, m *Manager, p *corev1.Pod) *sandbox {
	t.Helper()
	s := &sandbox{Manager: m, pod: p, names: Names(p.Namespace, p.Name)}
	t.Cleanup(func() { s.remove(t) })
	props := PauseProps(PauseUnit{Namespace: p.Namespace, Pod: p.Name, Names: s.names, Argv: helper(t, "sleep")})
	mustStart(t, m, s.names.Pause, props, PodSlices(p, PodLimits(p))...)
	return s
}

func (s *sandbox) remove(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	job, err := s.Stop(ctx, s.names.Slice)
	if err == nil {
		err = job.Wait(ctx)
	}
	if err != nil {
		t.Errorf("stop of the slice: %v", err)
	}
	s.mu.Lock()
	var tracked []string
	for name := range s.units {
		if strings.HasPrefix(name, podBase(s.pod.Namespace, s.pod.Name)+"-") {
			tracked = append(tracked, name)
		}
	}
	s.mu.Unlock()
	for _, name := range append(tracked, s.names.Slice) {
		if err := s.Release(ctx, name); err != nil {
			t.Error(err)
		}
	}
	noUnits(t, s.pod.Namespace)
}

// noUnits waits for systemd to unload what is dead.
func noUnits(t testing.TB, namespace string) {
	t.Helper()
	bus, err := sd.NewSystemConnectionContext(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	var left []string
	for range 200 {
		left = nil
		list, err := bus.ListUnitsByPatternsContext(context.Background(), nil, []string{"magikpod*"})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list {
			left = append(left, u.Name+" "+u.LoadState+" "+u.ActiveState)
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("units are left:\n%s", strings.Join(left, "\n"))
}

func helper(t testing.TB, args ...string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{self, asHelper}, args...)
}

// fifo makes a FIFO that has a reader.
func fifo(t testing.TB) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// container starts a container of the pod whose first process is argv.
func (s *sandbox) container(t testing.TB, name string, change func(*ContainerUnit), argv ...string) (unit string, err error) {
	t.Helper()
	unit = ContainerService(s.pod.Namespace, s.pod.Name, name)
	c := s.find(name)
	u := ContainerUnit{Pod: s.pod, Container: c, Names: s.names, Argv: helper(t, append([]string{"launch"}, argv...)...), Grace: 30 * time.Second}
	if pod.Sidecar(c) {
		u.StopAfter = []string{"main"}
	}
	if change != nil {
		change(&u)
	}
	job, err := s.StartTransient(t.Context(), unit, ContainerProps(u))
	if err != nil {
		return unit, err
	}
	return unit, job.Wait(t.Context())
}

func (s *sandbox) find(name string) *corev1.Container {
	for _, list := range [][]corev1.Container{s.pod.Spec.InitContainers, s.pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	panic("no container " + name)
}

func mustStart(t testing.TB, m *Manager, unit string, props []Property, aux ...Aux) {
	t.Helper()
	job, err := m.StartTransient(t.Context(), unit, props, aux...)
	if err == nil {
		err = job.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until the state of a unit is as wanted.
func await(t testing.TB, m *Manager, unit string, wanted func(State) bool) State {
	t.Helper()
	var s State
	for range 3000 {
		s, _ = m.State(unit)
		if wanted(s) {
			return s
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("unit %s is %+v", unit, s)
	return s
}
