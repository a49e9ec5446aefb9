package daemon

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// TestPullCancelled checks that a pull belongs to those who wait for it: it goes on until the last
// one has left, and who comes then gets one of his own, also while the other is still being ended.
func TestPullCancelled(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		name := "registry.test/app:1"
		var ended []error
		w.images.pull = func(ctx context.Context, _ string) error {
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
				time.Sleep(5 * time.Second) // it takes its time to end
			}
			w.images.mu.Lock()
			defer w.images.mu.Unlock()
			ended = append(ended, ctx.Err())
			return ctx.Err()
		}
		want := func(what string, pulls int, ends ...error) {
			t.Helper()
			synctest.Wait()
			w.images.mu.Lock()
			defer w.images.mu.Unlock()
			if w.images.pulls != pulls || !slices.Equal(ended, ends) {
				t.Errorf("%s: %d pulls, ended %v", what, w.images.pulls, ended)
			}
		}
		first, err := w.d.PullImage(t.Context(), name, pod.PullOptions{Always: true})
		if err != nil {
			t.Fatal(err)
		}
		second, err := w.d.PullImage(t.Context(), name, pod.PullOptions{Always: true})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		for _, id := range []uint32{first, second} { // the pull goes on for the second, and ends with it
			if err := w.d.CancelJob(id); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			want("one has left", 1)
		}
		// Now it is being ended, and a pod needs the image.
		ref := w.mustRun(strings.Replace(manifest("web"), "localhost/app:1", name, 1))
		want("the image is there", 2, context.Canceled, nil)
		if got := events(w.get(ref)); slices.Contains(got, "Failed") {
			t.Errorf("events %q", got)
		}
	})
}

// TestPruneImages: an image without a name stays for as long as a pod uses it.
func TestPruneImages(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.images.present["localhost/old/used:1"], w.images.present["localhost/old/unused:1"] = true, true
		ref := w.mustRun(strings.Replace(manifest("web"), "localhost/app:1", "localhost/old/used:1", 1))
		for _, want := range []string{"localhost/old/unused:1", "", "localhost/old/used:1"} {
			if want == "localhost/old/used:1" {
				if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{})); err != nil {
					t.Fatal(err)
				}
			}
			var ids []string
			if want != "" {
				ids = []string{w.images.image(want).ID}
			}
			if got, err := w.d.PruneImages(t.Context()); err != nil || !slices.Equal(got, ids) {
				t.Errorf("pruned %q, %v; want %q", got, err, ids)
			}
		}
	})
}
