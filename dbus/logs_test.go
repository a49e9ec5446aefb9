package dbus

import (
	"context"
	"os"
	"testing"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/pod"
)

// unstarted is a backend whose containers are never started: their logs are waited for.
type unstarted struct {
	*fakepods.Backend
	asked chan struct{}
}

func (u *unstarted) Logs(ctx context.Context, _ pod.Ref, _ pod.LogOptions) (*os.File, error) {
	close(u.asked)
	<-ctx.Done()
	return nil, pod.WithKind(pod.Unavailable, ctx.Err())
}

// TestFollowEndsWithTheClient checks that a client which waits for the log of a container that is
// never started leaves nothing behind when it goes.
func TestFollowEndsWithTheClient(t *testing.T) {
	address := bustest.Start(t)
	backend := &unstarted{fakepods.New(), make(chan struct{})}
	defer backend.Close()
	s, err := Serve(t.Context(), backend, ServerOptions{Address: address, Authorizer: rule{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	path := runWeb(t, c)
	go func() { _, _ = c.Logs(context.Background(), path, pod.LogOptions{Follow: true, Tail: -1}) }()
	<-backend.asked
	if _, ok := s.Idle(); ok {
		t.Error("the server is idle while a client waits")
	}
	c.Close()
	waitIdle(t, s)
}
