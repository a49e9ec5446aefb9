package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/magikrun/magikpod/pod"
)

// Everything at once on images that share layers: no call fails for another reason than that the
// image is (not) there, and at the end the store has what its images need and nothing else.
func TestConcurrent(t *testing.T) {
	reg := newRegistry(t)
	s := pullStore(t)
	base := tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: "p"})
	var archives [][]byte
	for i := range 3 {
		img := imageOf(t, base, tarOf(t, file{name: fmt.Sprintf("f%d", i), content: "x"}))
		archives = append(archives, dockerArchive(t, map[string]v1.Image{fmt.Sprintf("i%d:1", i): img}))
		reg.push(t, fmt.Sprintf("i%d:1", i), img)
	}
	ctx := context.Background()
	deadline := time.Now().Add(3 * time.Second)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for time.Now().Before(deadline) {
				n := r.IntN(3)
				local, remote := fmt.Sprintf("i%d:1", n), fmt.Sprintf("%s/i%d:1", reg.host, n)
				var err error
				switch r.IntN(8) {
				case 0, 1:
					_, err = s.Load(ctx, bytes.NewReader(archives[n]), LoadOptions{})
				case 2, 3:
					_, err = s.Pull(ctx, remote, PullOptions{Keychain: anonymous})
				case 4:
					err = s.Remove(ctx, local, nil)
				case 5:
					err = s.Remove(ctx, remote, nil)
				case 6:
					err = s.Save(ctx, []string{local}, io.Discard)
				case 7:
					if err = s.Tag(local, remote); err == nil {
						_, _, err = s.Inspect(remote)
						s.List()
						_, _ = s.Prune(ctx, nil)
					}
				}
				if err != nil && pod.KindOf(err) != pod.NotFound {
					t.Errorf("%v (%s)", err, pod.KindOf(err))
				}
			}
		})
	}
	wg.Wait()
	checkWhole(t, s)
	for _, info := range s.List() {
		if err := s.Remove(ctx, info.ID, nil); err != nil && pod.KindOf(err) != pod.NotFound {
			t.Error(err)
		}
	}
	wantEmpty(t, s)
}

// Close ends a Load whose source is held open by somebody who sends nothing, and a cancelled
// context does too.
func TestCloseEndsLoad(t *testing.T) {
	for name, end := range map[string]func(s *Store, cancel func()){"close": func(s *Store, _ func()) { s.Close() }, "cancel": func(_ *Store, cancel func()) { cancel() }} {
		s := newStore(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			_, err := s.Load(ctx, r, LoadOptions{Tag: "x"})
			done <- err
		}()
		if _, err := w.Write(tarOf(t, file{name: "f"})); err != nil {
			t.Fatal(err)
		}
		end(s, cancel)
		wantKind(t, <-done, pod.Unavailable, "cannot load archive")
		cancel()
		if got := contents(t, s); len(got) > 0 {
			t.Errorf("%s: left: %v", name, got)
		}
		w.Close()
		r.Close()
	}
}

// Two processes never have one store open; two loads of one image at once unpack it once.
func TestConcurrentLoadsShareWork(t *testing.T) {
	s := newStore(t)
	archive := tarOf(t, file{name: "f", content: "x"})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Tag: fmt.Sprintf("x:%d", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	checkWhole(t, s)
	if list := s.List(); len(list) != 1 || len(list[0].References) != 8 {
		t.Errorf("list: %+v", list)
	}
}
