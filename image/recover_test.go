package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

// childEnv makes a copy of the test binary do a test's work in a process of its own; the value is
// the store's directory.
const childEnv = "MAGIKPOD_IMAGE_TEST_CHILD"

// damagedStore makes a store with the images a:1 (two layers) and b:1 (a root file system), closes
// it, and returns it.
func damagedStore(t *testing.T) (dir string, a, b string) {
	t.Helper()
	dir = t.TempDir()
	s := openStore(t, dir, Limits{})
	img := imageOf(t, tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: "a"}), tarOf(t, file{name: "top"}))
	load(t, s, dockerArchive(t, map[string]v1.Image{"a:1": img}), "")
	load(t, s, tarOf(t, file{name: "b"}), "b:1")
	image, err := s.Resolve("b:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, idOf(t, img), image.ID
}

// badNames lists what was set aside.
func badNames(t *testing.T, dir string) []string {
	t.Helper()
	list := []string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if strings.HasPrefix(d.Name(), badPrefix) {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// fifo puts a FIFO in the place of a file: to open it waits for whoever writes.
func fifo(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestReadOnly checks a store on a file system that has turned read-only: what is there can be
// used, also what is damaged is left as it is.
func TestReadOnly(t *testing.T) {
	dir, a, b := damagedStore(t)
	s := openStore(t, dir, Limits{})
	blob := s.blobPath(s.index.Load().byID(b)[0].manifest.Config.Digest)
	s.Close()
	if err := os.WriteFile(blob, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Limits{})
	image, err := s.Resolve("a:1")
	if err != nil || image.ID != a || len(s.List()) != 1 {
		t.Fatalf("%+v, %v, %v", image, err, s.List())
	}
	mounted(t, image)
	if text := strings.Join(s.Warnings(), "\n"); !strings.Contains(text, "read-only") || !strings.Contains(text, b[len("sha256:"):]) {
		t.Errorf("warnings: %s", text)
	}
	if _, err := s.Load(t.Context(), bytes.NewReader(tarOf(t, file{name: "c"})), LoadOptions{Tag: "c:1"}); !errors.Is(err, unix.EROFS) {
		t.Errorf("load: %v", err)
	}
	if err := s.Remove(t.Context(), "a:1", func(string) []string { return nil }); !errors.Is(err, unix.EROFS) {
		t.Errorf("remove: %v", err)
	}
	if _, err := s.Resolve("a:1"); err != nil {
		t.Errorf("after remove: %v", err)
	}
	s.Close()
	if got := badNames(t, dir); len(got) > 0 {
		t.Errorf("set aside: %v", got)
	}
}

// TestUnreadable checks that what cannot be read now is not taken for damaged, or for missing:
// nothing is moved, removed or forgotten.
func TestUnreadable(t *testing.T) {
	dir, a, _ := damagedStore(t)
	s := openStore(t, dir, Limits{})
	e := s.index.Load().byID(a)[0]
	s.Close()
	err := filepath.WalkDir(filepath.Dir(dir), func(path string, d os.DirEntry, err error) error {
		mode := os.FileMode(0o644)
		if err == nil && d.IsDir() {
			mode = 0o777 // what is set aside could be
		}
		return errors.Join(err, os.Chmod(path, mode))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(s.path(layersDir, emptyLayer), 65534, 0); err != nil { // its mode is set
		t.Fatal(err)
	}
	before := contents(t, s)
	for name, path := range map[string]string{"index": s.path("index.json"), "layer": s.path(layersDir, e.image.Rootfs.Layers[0]+".json")} {
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := unix.Setfsuid(65534); err != nil {
				t.Error(err)
			}
			if s, err := Open(dir, Options{NoSync: true}); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s: %v", name, err)
				if err == nil {
					s.Close()
				}
			}
		}()
		<-done
		if err := os.Chmod(path, 0o644); err != nil {
			t.Error(err)
		}
		if after := contents(t, s); !slices.Equal(before, after) || len(badNames(t, dir)) > 0 {
			t.Errorf("%s: there was\n%v\nand is\n%v", name, before, after)
		}
	}
	s = openStore(t, dir, Limits{})
	if _, err := s.Resolve("a:1"); err != nil || len(s.List()) != 2 {
		t.Errorf("%v, %v", s.List(), err)
	}
}

func TestDamage(t *testing.T) {
	write := func(t *testing.T, path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name     string
		damage   func(t *testing.T, s *Store, a *entry)
		resolves map[string]bool
		bad      int
		warning  string
	}{
		{"index.json is cut off", func(t *testing.T, s *Store, _ *entry) { write(t, s.path("index.json"), `{"manif`) }, map[string]bool{"ID": true, "a:1": false}, 1, "names of 2 images are lost"},
		{"index.json is gone", func(t *testing.T, s *Store, _ *entry) { os.Remove(s.path("index.json")) }, map[string]bool{"ID": true, "a:1": false}, 0, "names of 2 images are lost"},
		{"index.json is a directory", func(t *testing.T, s *Store, _ *entry) {
			os.Remove(s.path("index.json"))
			if err := os.Mkdir(s.path("index.json"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, map[string]bool{"ID": true, "a:1": false}, 1, "names of 2 images are lost"},
		{"index.json is a FIFO", func(t *testing.T, s *Store, _ *entry) { fifo(t, s.path("index.json")) }, map[string]bool{"ID": true, "a:1": false}, 1, "names of 2 images are lost"},
		{"oci-layout is a FIFO", func(t *testing.T, s *Store, _ *entry) { fifo(t, s.path("oci-layout")) }, map[string]bool{"ID": true, "a:1": true}, 0, ""},
		{"layer record is a FIFO", func(t *testing.T, s *Store, a *entry) {
			fifo(t, s.path(layersDir, a.image.Rootfs.Layers[1]+".json"))
		}, map[string]bool{"ID": true, "a:1": true}, 1, "unpacked again"},
		{"blob is a FIFO", func(t *testing.T, s *Store, a *entry) { fifo(t, s.blobPath(a.manifest.Config.Digest)) }, map[string]bool{"ID": false, "a:1": false}, 1, "it is no blob"},
		{"oci-layout is damaged", func(t *testing.T, s *Store, _ *entry) { write(t, s.path("oci-layout"), "") }, map[string]bool{"ID": true, "a:1": true}, 0, ""},
		{"manifest", func(t *testing.T, s *Store, a *entry) { write(t, s.blobPath(a.desc.Digest), "{}") }, map[string]bool{"ID": false, "a:1": false}, 1, "a:1"},
		{"config", func(t *testing.T, s *Store, a *entry) { write(t, s.blobPath(a.manifest.Config.Digest), "{}") }, map[string]bool{"ID": false, "a:1": false}, 1, "a:1"},
		{"config is gone", func(t *testing.T, s *Store, a *entry) { os.Remove(s.blobPath(a.manifest.Config.Digest)) }, map[string]bool{"ID": false, "a:1": false}, 0, "a:1"},
		{"layer blob", func(t *testing.T, s *Store, a *entry) { write(t, s.blobPath(a.manifest.Layers[0].Digest), "x") }, map[string]bool{"ID": true, "a:1": true}, 1, "cannot be saved"},
		{"layer directory is gone", func(t *testing.T, s *Store, a *entry) { os.RemoveAll(s.path(layersDir, a.image.Rootfs.Layers[0])) }, map[string]bool{"ID": true, "a:1": true}, 0, "unpacked again"},
		{"layer record is damaged", func(t *testing.T, s *Store, a *entry) {
			write(t, s.path(layersDir, a.image.Rootfs.Layers[1]+".json"), "{")
		}, map[string]bool{"ID": true, "a:1": true}, 1, "unpacked again"},
		{"layer is a file", func(t *testing.T, s *Store, a *entry) {
			os.RemoveAll(s.path(layersDir, a.image.Rootfs.Layers[0]))
			write(t, s.path(layersDir, a.image.Rootfs.Layers[0]), "")
		}, map[string]bool{"ID": true, "a:1": true}, 1, "unpacked again"},
		{"layer and its blob are gone", func(t *testing.T, s *Store, a *entry) {
			os.RemoveAll(s.path(layersDir, a.image.Rootfs.Layers[0]))
			os.Remove(s.blobPath(a.manifest.Layers[0].Digest))
		}, map[string]bool{"ID": false, "a:1": false}, 0, "is missing"},
		{"layer is gone and its blob wrong", func(t *testing.T, s *Store, a *entry) {
			os.RemoveAll(s.path(layersDir, a.image.Rootfs.Layers[0]))
			write(t, s.blobPath(a.manifest.Layers[0].Digest), strings.Repeat("x", int(a.manifest.Layers[0].Size)))
		}, map[string]bool{"ID": false, "a:1": false}, 1, "a:1"},
		{"strange names", func(t *testing.T, s *Store, _ *entry) {
			write(t, s.path(blobsDir, "hello"), "x")
			write(t, s.path(layersDir, "hello"), "x")
			write(t, s.path(tmpDir, "hello"), "x")
			write(t, s.path(layersDir, "ghost.json"), "x")
		}, map[string]bool{"ID": true, "a:1": true}, 2, "hello"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, a, b := damagedStore(t)
			s := openStore(t, dir, Limits{})
			e := s.index.Load().byID(a)[0]
			s.Close()
			test.damage(t, s, e)
			s = openStore(t, dir, Limits{})
			if _, err := s.Resolve(b); err != nil {
				t.Errorf("the other image: %v", err)
			}
			for ref, want := range test.resolves {
				if ref == "ID" {
					ref = a
				}
				image, err := s.Resolve(ref)
				if (err == nil) != want {
					t.Errorf("%s: %v", ref, err)
				}
				if want && string(image.Passwd) != "a" {
					t.Errorf("%s: passwd is %q", ref, image.Passwd)
				}
			}
			if got := badNames(t, dir); len(got) != test.bad {
				t.Errorf("set aside: %v, want %d", got, test.bad)
			}
			if text := strings.Join(s.Warnings(), "\n"); !strings.Contains(text, test.warning) || (text == "") != (test.warning == "") {
				t.Errorf("warnings: %s", text)
			}
			if list, err := os.ReadDir(s.path(tmpDir)); err != nil || len(list) > 0 {
				t.Errorf("tmp has %v, %v", list, err)
			}
			s.Close()
			// What Open has put in order stays so.
			s = openStore(t, dir, Limits{})
			for _, w := range s.Warnings() {
				if !strings.Contains(w, "cannot be saved") {
					t.Errorf("the next Open warns: %s", w)
				}
			}
			if image, err := s.Resolve(a); err == nil && test.resolves["ID"] {
				mounted(t, image)
			}
		})
	}
}

// An image that the limits of today forbid is there again tomorrow.
func TestKeptImage(t *testing.T) {
	dir, a, b := damagedStore(t)
	s := openStore(t, dir, Limits{MaxLayers: 1})
	if _, err := s.Resolve(a); pod.KindOf(err) != pod.NotFound {
		t.Errorf("got %v", err)
	}
	if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "cannot be used now") {
		t.Errorf("warnings: %v", w)
	}
	if err := s.Tag(b, "c:1"); err != nil {
		t.Error(err)
	}
	s.Close()
	s = openStore(t, dir, Limits{})
	for _, ref := range []string{a, b, "a:1", "b:1", "c:1"} {
		if _, err := s.Resolve(ref); err != nil {
			t.Error(err)
		}
	}
}

// A store that is killed at any moment opens again, with whole images only and nothing else.
func TestKilled(t *testing.T) {
	needRoot(t)
	one, two := crashArchives(t)
	if dir := os.Getenv(childEnv); dir != "" {
		s, err := Open(dir, Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		for { // until it is killed
			load(t, s, one, "one")
			load(t, s, two, "")
			for _, ref := range []string{"one", "two:1"} {
				if err := s.Remove(context.Background(), ref, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	dir := t.TempDir()
	for i := range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); i == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
				break
			}
		}
		time.Sleep(time.Duration(30+i*23) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s := openStore(t, dir, Limits{})
		if w := s.Warnings(); len(w) > 0 {
			t.Fatalf("warnings: %v", w)
		}
		checkWhole(t, s)
		s.Close()
	}
}

func crashArchives(t *testing.T) (one, two []byte) {
	base := tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: "x"}, file{name: "big", content: strings.Repeat("x", 1<<20)})
	return base, dockerArchive(t, map[string]v1.Image{"two:1": imageOf(t, base, tarOf(t, file{name: "top", content: "y"}))})
}

// checkWhole checks that a store has all of its images and nothing else.
func checkWhole(t *testing.T, s *Store) {
	t.Helper()
	want := map[string]bool{}
	for _, e := range s.index.Load().images {
		for _, name := range e.pins() {
			if chain, ok := strings.CutPrefix(name, "chain:"); ok {
				l := s.layers[chain]
				if l == nil {
					t.Fatalf("%s is not in memory", chain)
				}
				want[filepath.Join(layersDir, l.name)], want[filepath.Join(layersDir, l.name+".json")] = true, true
			} else {
				want[filepath.Join(blobsDir, strings.TrimPrefix(name, "sha256:"))] = true
			}
		}
	}
	got := map[string]bool{}
	for _, name := range contents(t, s) {
		got[name] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the store has more or less than its images: %s", diff)
	}
	checkLayout(t, s.dir, len(s.index.Load().refs))
}

// A full disk is one clear error, and nothing is left. The disk is a small tmpfs in a mount
// namespace of a process of its own.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	if os.Getenv(childEnv) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), childEnv+"="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "checked the full disk") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{"size=4m", "size=64m,nr_inodes=60"} {
		dir := os.Getenv(childEnv)
		if err := unix.Mount("t", dir, "tmpfs", 0, options); err != nil {
			t.Fatal(err)
		}
		checkFull(t, dir)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Log("checked the full disk")
}

func checkFull(t *testing.T, dir string) {
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var files []file
	for i := range 90 {
		files = append(files, file{name: strings.Repeat("x", i+1), content: strings.Repeat("y", 50_000)})
	}
	root := tarOf(t, files...)
	packed := imageOf(t, gzipped(t, root))
	for name, archive := range map[string][]byte{"spool": root, "layer": dockerArchive(t, map[string]v1.Image{"x:1": packed})} {
		_, err = s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Tag: "x"})
		wantKind(t, err, pod.Exhausted, "no space left in "+dir)
		if err != nil && strings.Count(err.Error(), "space") != 1 {
			t.Errorf("%s: the error says it more than once: %v", name, err)
		}
		wantEmpty(t, s)
	}
	load(t, s, tarOf(t, file{name: "small"}), "small")
	checkWhole(t, s)
}
