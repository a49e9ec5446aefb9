package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
	runtimePkg "github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
)

// never is a pod that nobody starts again.
func never(name string) string {
	return manifest(name, "restartPolicy: Never", "containers: [{name: main, image: 'localhost/app:1', command: [run]}]")
}

// records reads all that the daemon has written of its pods.
func (w *world) records() map[string]string {
	w.t.Helper()
	files := map[string]string{}
	for _, dir := range []string{w.config.StateDir, w.config.RunDir} {
		err := filepath.WalkDir(filepath.Join(dir, "pods"), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			files[path] = string(data)
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return files
}

// onlyAdopted fails when the runtime was asked for anything but to adopt, and to say what it sees.
func (w *world) onlyAdopted() {
	w.t.Helper()
	for _, c := range w.fake.Calls() {
		if c.Method != "Adopt" && c.Method != "Observe" {
			w.t.Errorf("the runtime was called: %s", c)
		}
	}
}

// TestStartFails checks that a start which does not come through, whatever it was that failed,
// leaves pods and records as they are, and that the next start finds the same containers.
func TestStartFails(t *testing.T) {
	lost := pod.Errorf(pod.Unavailable, "the connection to systemd is lost")
	for name, fault := range map[string]func(n int32, end func()) error{ // n: how many pods were adopted
		"the bus is lost":            func(int32, func()) error { return lost },
		"the bus is lost in between": func(n int32, _ func()) error { return map[bool]error{n >= 2: lost}[true] },
		"the daemon is ended": func(n int32, end func()) error {
			if n < 2 {
				return nil
			}
			end()
			return context.Canceled
		},
		"the daemon is ended, and all succeed": func(n int32, end func()) error {
			if n == 2 {
				end()
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				refs := []pod.Ref{w.mustRun(never("a")), w.mustRun(manifest("b")), w.mustRun(never("c")), w.mustRun(manifest("d"))}
				synctest.Wait()
				w.d.Close()
				before := w.records()
				started := make(chan struct{})
				var n atomic.Int32
				w.next(func(c runtimetest.Call) error {
					if c.Method != "Adopt" || c.Done {
						return nil
					}
					<-started
					return fault(n.Add(1)-1, func() { w.d.cancel(errors.New("the daemon is ending")) })
				})
				w.start()
				close(started)
				time.Sleep(adoptPatience / 2)
				for _, ref := range refs {
					if d := w.get(ref); d.Phase != "Running" || d.Ready != 1 {
						t.Errorf("meanwhile the pod is %+v", d.Summary)
					}
				}
				w.d.Close()
				w.onlyAdopted()
				switch after := w.records(); {
				case len(after) != len(before):
					t.Errorf("records: %d, were %d", len(after), len(before))
				case name == "the bus is lost" && !maps.Equal(after, before):
					t.Error("records were written of pods that nobody has looked at")
				}
				if len(w.net.pods) != len(refs) {
					t.Errorf("%d networks are left", len(w.net.pods))
				}
				w.next(nil)
				w.start()
				for _, ref := range refs {
					if d := w.get(ref); d.Phase != "Running" || d.Ready != 1 || d.Restarts != 0 {
						t.Errorf("the pod is %+v", d.Summary)
					}
				}
				w.onlyAdopted()
			})
		})
	}
}

// TestAdoptedBehind checks that a daemon answers for its pods from their records while they are still
// to be adopted; and that a pod which somebody wants something of is not kept waiting by the others.
func TestAdoptedBehind(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var refs []pod.Ref
		for i := range 2 * maxAdoptions {
			refs = append(refs, w.mustRun(never("p"+strconv.Itoa(i))))
		}
		w.images.present["localhost/app:1"] = true
		proceed := make(chan struct{})
		var wanted sync.Map
		w.next(func(c runtimetest.Call) error {
			if _, ok := wanted.Load(c.Ref); c.Method == "Adopt" && !c.Done && !ok {
				<-proceed
			}
			return nil
		})
		w.start()
		synctest.Wait()
		if got := len(w.d.List()); got != len(refs) {
			t.Errorf("%d pods are listed, want %d", got, len(refs))
		}
		// Of all that have no turn yet.
		var late []pod.Ref
		for _, ref := range refs {
			if d := w.get(ref); d.Phase != "Running" || d.Ready != 1 || d.State != "Running" {
				t.Errorf("the pod is %+v", d.Summary)
			}
			if !slices.ContainsFunc(w.fake.Calls(), func(c runtimetest.Call) bool { return c.Ref == ref }) {
				late = append(late, ref)
			}
		}
		if len(late) != len(refs)-maxAdoptions {
			t.Fatalf("%d pods wait for their turn, want %d", len(late), len(refs)-maxAdoptions)
		}
		for _, ref := range late[:3] {
			wanted.Store(ref, true)
		}
		if _, err := w.job(w.exec(t.Context(), late[0], "", runtimePkg.Process{Args: []string{"true"}})); err != nil {
			t.Errorf("exec: %v", err)
		}
		if err := w.d.Kill(t.Context(), late[1], "", unix.SIGUSR1); err != nil {
			t.Errorf("kill: %v", err)
		}
		if _, err := w.job(w.d.Delete(t.Context(), late[2], pod.StopOptions{})); err != nil {
			t.Errorf("delete: %v", err)
		}
		// One that is not adopted is waited for.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.d.Kill(ctx, late[3], "", unix.SIGUSR1); pod.KindOf(err) != pod.Unavailable {
			t.Errorf("kill of a pod that cannot be adopted yet: %v; want Unavailable", err)
		}
		close(proceed)
		for _, ref := range slices.DeleteFunc(refs, func(r pod.Ref) bool { return r == late[2] }) {
			w.fake.Exit(ref, "main", 0)
			w.until(ref, "ended", func(d pod.Detail) bool { return d.Phase == "Succeeded" })
		}
	})
}

// TestAdoptAgain checks a runtime that cannot be reached for a moment, as while systemd executes
// itself anew.
func TestAdoptAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(never("a"))
		var n atomic.Int32
		w.next(func(c runtimetest.Call) error {
			if n.Add(1) <= 3 {
				return pod.Errorf(pod.Unavailable, "message recipient disconnected from message bus without replying")
			}
			return nil
		})
		w.start()
		if d := w.get(ref); d.Phase != "Running" || d.Ready != 1 {
			t.Errorf("the pod is %+v", d.Summary)
		}
		w.onlyAdopted()
	})
}

// TestNotAdopted checks a pod that cannot be adopted for a reason of its own: it is left alone
// until it can, all others go on, and it can be deleted.
func TestNotAdopted(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		inWorld(t, func(t *testing.T, w *world) {
			good, bad := w.mustRun(manifest("good")), w.mustRun(never("bad"))
			var failing atomic.Bool
			failing.Store(true)
			w.next(func(c runtimetest.Call) error {
				if c.Ref == bad && failing.Load() && c.Method != "DeleteSandbox" {
					return pod.Errorf(pod.Conflict, "what was noted of it is damaged")
				}
				return nil
			})
			w.start()
			w.fake.Exit(good, "main", 1)
			w.until(good, "restarted", func(d pod.Detail) bool { return d.Restarts == 1 && d.State == "Running" })
			w.fake.Exit(bad, "main", 0) // which nobody knows yet
			time.Sleep(5 * time.Minute)
			d := w.get(bad)
			if d.Phase != "Running" || !slices.Contains(events(d), "FailedAdopt") || slices.Contains(events(d), "Exited") {
				t.Errorf("the pod is %+v, %q", d.Summary, events(d))
			}
			for _, c := range w.fake.Calls() {
				if c.Ref == bad && c.Method != "Adopt" {
					t.Errorf("the runtime was called: %s", c)
				}
			}
			if !deleted {
				failing.Store(false)
				w.until(bad, "adopted", func(d pod.Detail) bool { return d.Phase == "Succeeded" })
				return
			}
			for _, ref := range []pod.Ref{good, bad} {
				failing.Store(ref == bad)
				id, err := w.d.Delete(t.Context(), ref, pod.StopOptions{})
				synctest.Wait()
				failing.Store(false) // but it is not asked any more
				if _, err := w.job(id, err); err != nil {
					t.Fatal(err)
				}
			}
			w.wantNothing()
		})
	}
}

// TestNotObserved checks that nothing is concluded, and nothing done, while the runtime cannot say
// what is true.
func TestNotObserved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref, run := w.mustRun(manifest("a")), w.mustRun(never("b"))
		var blind atomic.Bool
		fault := func(c runtimetest.Call) error {
			if blind.Load() {
				return pod.Errorf(pod.Unavailable, "the connection to systemd is lost")
			}
			return nil
		}
		w.next(fault)
		w.start()
		synctest.Wait()
		before := len(w.fake.Calls())
		blind.Store(true)
		w.fake.Exit(ref, "main", 1)
		w.fake.Exit(run, "main", 0)
		time.Sleep(5 * time.Minute)
		for _, c := range w.fake.Calls()[before:] {
			if c.Method != "Observe" {
				t.Errorf("the runtime was called: %s", c)
			}
		}
		if d := w.get(run); d.Phase != "Running" {
			t.Errorf("the pod is %+v", d.Summary)
		}
		blind.Store(false)
		w.until(ref, "restarted", func(d pod.Detail) bool { return d.Restarts == 1 && d.State == "Running" })
		w.until(run, "finished", func(d pod.Detail) bool { return d.Phase == "Succeeded" })
	})
}

// TestStartUnseen checks a start of which nobody knows how it went: it is no failure of the container's.
func TestStartUnseen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("a"))
		var blind atomic.Bool
		w.next(func(c runtimetest.Call) error {
			if c.Method == "RunContainer" && !c.Done {
				blind.Store(true)
			}
			if blind.Load() && (c.Method == "Observe" || c.Done) {
				return pod.Errorf(pod.Unavailable, "the connection to systemd is lost")
			}
			return nil
		})
		w.start()
		synctest.Wait()
		w.fake.Exit(ref, "main", 1)
		time.Sleep(time.Minute)
		if d := w.get(ref); slices.Contains(events(d), "Failed") {
			t.Errorf("%q", events(d))
		}
		blind.Store(false)
		w.next(nil)
		w.start()
		if d := w.get(ref); d.State != "Running" || d.Restarts != 1 || slices.Contains(events(d), "Failed") {
			t.Errorf("the pod is %+v, %q", d.Summary, events(d))
		}
	})
}

// TestSandboxNotOurs checks that a sandbox which could not be made is not removed: the runtime
// undoes what it has made, and the rest is not this pod's.
func TestSandboxNotOurs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fake.Fault = func(c runtimetest.Call) error {
			if c.Method == "CreateSandbox" {
				return pod.Errorf(pod.AlreadyExists, "units of that name run")
			}
			return nil
		}
		id, err := w.d.Run(t.Context(), []byte(manifest("a")), pod.RunOptions{})
		if _, err := w.job(id, err); pod.KindOf(err) != pod.AlreadyExists {
			t.Errorf("%v", err)
		}
		for _, c := range w.fake.Calls() {
			if c.Method == "DeleteSandbox" {
				t.Errorf("the runtime was called: %s", c)
			}
		}
		w.wantNothing()
	})
}

// TestDamagedRecords checks all sorts of things in the place of a record: the daemon starts, and
// does not wait for any of them. The pod goes on, its name is taken, and with its deletion all of
// it goes.
func TestDamagedRecords(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"garbage":   func(path string) error { return os.WriteFile(path, []byte("{]"), 0o600) },
		"FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"device":    func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(5, 0))) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"symlink":   func(path string) error { return os.Symlink("/dev/zero", path) },
		"socket": func(path string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Mknod(path, unix.S_IFSOCK|0o600, 0)
		},
		"huge": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				config := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n---\n"
				good, bad := w.mustRun(manifest("good")), w.mustRun(config+manifest("bad"))
				synctest.Wait()
				w.images.present["localhost/other:1"] = true
				w.next(nil)
				object := w.d.objects.path(objectKey{"configmaps", "default", "c"})
				for _, path := range []string{
					filepath.Join(w.config.podStateDir(string(bad.UID)), recordName), filepath.Join(w.config.podStateDir(string(bad.UID)), newestName),
					filepath.Join(w.config.podRunDir(string(bad.UID)), recordName), filepath.Join(filepath.Dir(object), "d.json"),
				} {
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
					if err := damage(path); err != nil {
						t.Fatal(err)
					}
				}
				w.start()
				if d := w.get(good); d.State != "Running" || d.Restarts != 0 {
					t.Errorf("the other pod is %+v", d.Summary)
				}
				if d := w.get(bad); d.Phase != "Unknown" || d.State != reasonDamaged || d.Ref != bad {
					t.Errorf("the pod is %+v", d.Summary)
				}
				w.onlyAdopted()
				if w.d.objects.get("configmaps", "default", "c") == nil || len(w.net.pods) != 2 {
					t.Error("what the pod has is gone")
				}
				if _, err := w.run(manifest("bad"), pod.RunOptions{}); pod.KindOf(err) != pod.AlreadyExists {
					t.Errorf("another pod of that name: %v", err)
				}
				if _, err := w.job(w.exec(t.Context(), bad, "", runtimePkg.Process{Args: []string{"true"}})); pod.KindOf(err) != pod.NotFound {
					t.Errorf("exec: %v; want NotFound", err)
				}
				if err := w.d.RemoveImage(t.Context(), "localhost/other:1", false); pod.KindOf(err) != pod.Conflict {
					t.Errorf("an image that it may use was removed: %v", err)
				}
				if _, err := w.d.Start(t.Context(), bad); pod.KindOf(err) != pod.Conflict {
					t.Errorf("start: %v", err)
				}
				// Also after one more start, when there is no record at all.
				w.crash()
				if d := w.get(bad); d.Phase != "Unknown" {
					t.Errorf("the pod is %+v", d.Summary)
				}
				if _, err := w.run(manifest("bad"), pod.RunOptions{Replace: true}); err != nil {
					t.Fatal(err)
				}
				if w.d.objects.get("configmaps", "default", "c") != nil {
					t.Error("what the pod had is still there")
				}
				for _, name := range []string{"good", "bad"} {
					if _, err := w.job(w.d.Delete(t.Context(), pod.Ref{Namespace: "default", Name: name}, pod.StopOptions{})); err != nil {
						t.Fatal(err)
					}
				}
				asides, err := filepath.Glob(filepath.Join(filepath.Dir(object), "d.json.bad-*"))
				if err != nil || len(asides) != 1 {
					t.Errorf("set aside: %q, %v", asides, err)
				}
				for _, path := range asides {
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
				}
				w.wantNothing()
			})
		})
	}
}

// TestUnreadableRecords checks that a record or an object which cannot be read now is not taken for
// a damaged one, let alone for none.
func TestUnreadableRecords(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		config := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n---\n"
		ref := w.mustRun(config + never("a"))
		synctest.Wait()
		w.next(nil)
		for _, dir := range []string{w.config.StateDir, w.config.RunDir} {
			err := filepath.WalkDir(filepath.Dir(dir), func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					err = os.Chmod(path, 0o777) // what is set aside could be
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for path := filepath.Dir(w.config.StateDir); path != os.TempDir(); path = filepath.Dir(path) {
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		object := w.d.objects.path(objectKey{"configmaps", "default", "c"})
		before := w.records()
		// asNobody starts a daemon that cannot read the files below a path.
		asNobody := func(unreadable string) (err error) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
				for _, path := range append(slices.Collect(maps.Keys(before)), object) {
					if err := os.Chmod(path, map[bool]os.FileMode{true: 0o600, false: 0o644}[strings.HasPrefix(path, unreadable)]); err != nil {
						t.Error(err)
					}
				}
				if err := unix.Setfsuid(65534); err != nil {
					t.Error(err)
				}
				err = w.tryStart(t.Context())
			}()
			<-done
			return err
		}
		inState := w.config.StateDir + "/pods"
		for _, unreadable := range []string{w.config.RunDir, w.config.StateDir, object, inState} {
			starts := unreadable == inState // the copy in memory will do
			w.next(nil)
			if err := asNobody(unreadable); starts != (err == nil) || err != nil && pod.KindOf(err) != pod.Unavailable {
				t.Errorf("without %s: %v", unreadable, err)
			}
			if starts {
				if d := w.get(ref); d.Phase != "Running" || d.Ready != 1 {
					t.Errorf("without %s the pod is %+v", unreadable, d.Summary)
				}
			}
			w.onlyAdopted()
			for path, was := range before {
				if now, err := os.ReadFile(path); err != nil || !starts && string(now) != was {
					t.Errorf("without %s: %s was changed or moved", unreadable, path)
				}
			}
		}
		w.next(nil)
		w.start()
		if d := w.get(ref); d.Phase != "Running" || d.Ready != 1 || w.d.objects.get("configmaps", "default", "c") == nil {
			t.Errorf("the pod is %+v", d.Summary)
		}
	})
}
