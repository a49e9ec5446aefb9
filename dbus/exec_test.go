package dbus

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// strict refuses to read and to exec once it is set.
type strict struct{ atomic.Bool }

func (s *strict) Check(_ context.Context, _ string, action Action, _ bool) error {
	if s.Load() && (action == ActionExec || action == ActionRead) {
		return errors.New("not any more")
	}
	return nil
}

// TestExecIsAJob checks what others see of an exec, and what only its owner may do with it.
func TestExecIsAJob(t *testing.T) {
	auth := &strict{}
	s, _, c, address := serve(t, auth)
	path := runWeb(t, c)
	in, out := testPipe(t)
	_, errOut := testPipe(t)
	var job godbus.ObjectPath
	args := []any{"", []string{"cat"}, properties{}, godbus.UnixFD(in.Fd()), godbus.UnixFD(out.Fd()), godbus.UnixFD(errOut.Fd())}
	if err := fromCall(c.Conn().Object(BusName, path).Call(PodInterface+".Exec", 0, args...), &job); err != nil {
		t.Fatal(err)
	}
	if want := contract.JobPath(pod.FirstExecJob); job != want {
		t.Errorf("the first exec is %s, want %s", job, want)
	}
	other, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	var rows []struct {
		ID          uint32
		Kind, State string
		Path        godbus.ObjectPath
	}
	if err := fromCall(other.Conn().Object(BusName, ManagerPath).Call(ManagerInterface+".ListJobs", 0), &rows); err != nil || len(rows) != 1 || rows[0].Kind != "exec" || rows[0].State != "running" || rows[0].Path != job {
		t.Errorf("the list of jobs is %+v, %v; want the exec, which runs", rows, err)
	}
	cancel := func(c *client.Client) pod.Kind {
		return pod.KindOf(fromCall(c.Conn().Object(BusName, job).Call(JobInterface+".Cancel", 0)))
	}
	look := func(c *client.Client) pod.Kind {
		var p properties
		return pod.KindOf(fromCall(c.Conn().Object(BusName, job).Call(propertiesInterface+".GetAll", 0, JobInterface), &p))
	}
	resize := func(c *client.Client) pod.Kind {
		return pod.KindOf(fromCall(c.Conn().Object(BusName, job).Call(JobInterface+".ResizeTerminal", 0, uint16(24), uint16(80))))
	}
	auth.Store(true)
	for name, got := range map[string][2]pod.Kind{
		"cancel by others":                 {cancel(other), pod.Denied},
		"look by others":                   {look(other), pod.Denied},
		"resize by others":                 {resize(other), pod.NotFound},
		"cancel by its owner":              {cancel(c), pod.Conflict}, // the fake daemon cancels nothing
		"look by its owner":                {look(c), ""},
		"resize by its owner, no terminal": {resize(c), pod.Conflict},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %q, want %q", name, got[0], got[1])
		}
	}
	c.Close() // ends the exec
	waitIdle(t, s)
}

// TestNobodyToWatch: what is done for a client that had left before it was watched ends.
func TestNobodyToWatch(t *testing.T) {
	s, _, _, _ := serve(t, nil)
	ctx, release := s.whileThere(t.Context(), ":1.987654321")
	defer release()
	<-ctx.Done()
	waitIdle(t, s)
}
