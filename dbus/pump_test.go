package dbus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/internal/jobowner"
	"github.com/magikrun/magikpod/pod"
)

// atOnce is a daemon whose deletions have ended, and everybody has heard it, before the client
// knows the job.
type atOnce struct{ *meeting }

func (a atOnce) Delete(ctx context.Context, _ pod.Ref, _ pod.StopOptions) (uint32, error) {
	job := pod.JobInfo{ID: 7, Kind: "delete", State: "running", Owner: jobowner.Of(ctx)}
	a.notify(pod.Notice{Kind: pod.NoticeJobNew, Job: job})
	job.State, job.Output = string(pod.JobDone), []string{"default/web"}
	a.notify(pod.Notice{Kind: pod.NoticeJobRemoved, Job: job})
	<-a.heard
	return job.ID, nil
}

// TestOwnerOfAJobThatEndsAtOnce checks that a client hears the end of its job even when others have
// heard it before the client could know the job.
func TestOwnerOfAJobThatEndsAtOnce(t *testing.T) {
	s, c := meetingServer(t, "JobRemoved", contract.JobPath(7), func(m *meeting) Backend { return atOnce{m} })
	job, err := c.Delete(t.Context(), runWeb(t, c), pod.StopOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if info, err := c.Wait(ctx, job, nil); err != nil || !slices.Equal(info.Output, []string{"default/web"}) {
		t.Errorf("the job ended with %+v, %v; want the output default/web", info, err)
	}
	if info, ok := s.job(7); !ok || info.State != string(pod.JobDone) {
		t.Errorf("the ended job is %+v, %v; want it to be readable for a while", info, ok)
	}
}

// meeting is a daemon whose deletions meet with an error, of which everybody has heard before the
// client knows the job.
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

func (m *meeting) Delete(ctx context.Context, _ pod.Ref, _ pod.StopOptions) (uint32, error) {
	job := met
	job.Owner = jobowner.Of(ctx)
	m.notify(pod.Notice{Kind: pod.NoticeJobNew, Job: job})
	<-m.heard
	return job.ID, nil
}

func (m *meeting) Job(id uint32) (pod.JobInfo, bool) { return met, id == met.ID }

// meetingServer serves a meeting daemon, which goes on when a subscriber has heard the signal about
// the job. It returns another client.
func meetingServer(t *testing.T, signal string, job godbus.ObjectPath, of func(*meeting) Backend) (*Server, *client.Client) {
	t.Helper()
	m := &meeting{Backend: fakepods.New(), heard: make(chan struct{}, 1)}
	address := bustest.Start(t)
	s, err := Serve(t.Context(), of(m), ServerOptions{Address: address, Authorizer: rule{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); m.Backend.Close() })
	dial := func() *client.Client {
		c, err := client.Dial(address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	watcher, c := dial(), dial()
	watcher.OnSignal(func(s client.Signal) {
		if s.Name == signal && s.Body[0] == job {
			m.heard <- struct{}{}
		}
	})
	if err := watcher.Subscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, c
}

// TestOwnerOfAJobThatMeetsAnError checks that a client hears what its job has met with, which may
// be the last news for long: when others have heard it before the client could know the job, and
// when it is reported together with the job.
func TestOwnerOfAJobThatMeetsAnError(t *testing.T) {
	s, c := meetingServer(t, "JobNew", contract.JobPath(met.ID), func(m *meeting) Backend { return m })
	hears := func(c *client.Client, job godbus.ObjectPath) {
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
	together.Owner = c.Conn().Names()[0]
	s.pump.notify(pod.Notice{Kind: pod.NoticeJobNew, Job: together})
	hears(c, contract.JobPath(together.ID))
}
