package dbus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/pod"
)

// TestOwnerOfAJobThatEndsAtOnce checks that a client is told the end of its job even when that is just being told to others.
func TestOwnerOfAJobThatEndsAtOnce(t *testing.T) {
	p := newPump(nil)
	p.notify(pod.Notice{Kind: pod.NoticeJobRemoved, Job: pod.JobInfo{ID: 7, State: "done"}})
	p.queue = nil // the end is being told, to nobody in particular
	owner := p.owner(7)
	p.setOwner(7, ":1.1")
	p.disown(7, owner)
	if len(p.queue) != 1 || p.queue[0].Job.ID != 7 || p.owner(7) != ":1.1" {
		t.Errorf("the queue is %+v, the owner %q", p.queue, p.owner(7))
	}
	p.disown(7, ":1.1")
	if len(p.owners) != 0 {
		t.Errorf("owners are left: %v", p.owners)
	}
}

// meeting is a daemon whose deletions meet with an error, of which everybody has heard before the client knows the job.
type meeting struct {
	*fakepods.Backend
	notify func(pod.Notice)
	heard  chan struct{}
}

var met = pod.JobInfo{ID: 99, Kind: "delete", State: "running", Err: pod.Errorf(pod.Internal, "cannot remove the pod: read-only file system")}

func (m *meeting) Subscribe(notify func(pod.Notice)) func() {
	m.notify = notify
	return m.Backend.Subscribe(notify)
}

func (m *meeting) Delete(context.Context, pod.Ref, pod.StopOptions) (uint32, error) {
	m.notify(pod.Notice{Kind: pod.NoticeJobNew, Job: met})
	<-m.heard
	return met.ID, nil
}

func (m *meeting) Job(id uint32) (pod.JobInfo, bool) { return met, id == met.ID }

// TestOwnerOfAJobThatMeetsAnError checks that a client is told what its job has met with, which may be the last news for long: when that was told to others
// before it could know the job, and when it is told together with the job.
func TestOwnerOfAJobThatMeetsAnError(t *testing.T) {
	backend := &meeting{Backend: fakepods.New(), heard: make(chan struct{}, 1)}
	address := bustest.Start(t)
	s, err := Serve(t.Context(), backend, ServerOptions{Address: address, Authorizer: rule{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); backend.Close() })
	dial := func() *Client {
		c, err := Dial(address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	watcher, c := dial(), dial()
	watcher.OnSignal(func(s Signal) {
		if s.Name == "JobNew" && s.Body[0] == JobPath(met.ID) {
			backend.heard <- struct{}{}
		}
	})
	if err := watcher.Subscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	hears := func(c *Client, job godbus.ObjectPath) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := c.Wait(ctx, job, func(info pod.JobInfo) {
			if info.Err != nil && strings.Contains(info.Err.Error(), "read-only") {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("nothing was heard of the error: %v", err)
		}
	}
	job, err := c.Delete(t.Context(), runWeb(t, c), pod.StopOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hears(c, job)

	together := met
	together.ID++
	s.pump.setOwner(together.ID, c.conn.Names()[0])
	s.pump.notify(pod.Notice{Kind: pod.NoticeJobNew, Job: together})
	hears(c, JobPath(together.ID))
}
