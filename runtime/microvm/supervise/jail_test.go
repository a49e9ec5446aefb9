package supervise

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// standIn runs a shell script in the jail of a VMM that is not installed here, in its place, until
// the test ends.
func standIn(t *testing.T, driver vmm.Driver, script string) (*Config, *process) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/run", "supervise-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &Config{UID: UserOf(43), GID: UserOf(43), Dir: dir}
	c.VM = vmm.Config{
		Driver: driver.Name(), Accel: vmm.AccelKVM, Kernel: "/bin/true", Initrd: "/bin/true", CPUs: 1, MemoryMiB: 64, Program: "/usr/bin/true", Vsock: vmm.Vsock{Kind: driver.Can(nil).Vsock[0], CID: 43},
	}
	c.SetPaths()
	command, err := driver.Command(&c.VM)
	if err != nil {
		t.Fatal(err)
	}
	for i := range command.Mounts {
		command.Mounts[i].Optional = true // there may be no /dev/kvm
	}
	command.Argv = []string{"/bin/sh", "-c", script}
	s := &supervisor{config: c, netns: -1, ended: make(chan struct{})}
	for _, dir := range []string{filepath.Join(c.Dir, jailDir), c.socketDir()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p, err := s.start(monitorName, command, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		<-p.exited
	})
	return c, p
}

// TestAttachInJail: an image appears in the jail of a VMM that opens files itself, once however
// often it is attached and read-only.
func TestAttachInJail(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, []byte("image\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	c, p := standIn(t, vmm.CloudHypervisor{}, "exec sleep 1000")
	s := &supervisor{config: c}
	if err := s.writeState(p); err != nil {
		t.Fatal(err)
	}
	serveDisks(t, c.VM.Control)
	path := filepath.Join(vmm.CloudHypervisor{}.Can(&c.VM).AttachDir, "img-1")
	seen := fmt.Sprintf("/proc/%d/root%s", p.pid, path)
	for range 3 {
		if place, err := attachTo(c).Disk(t.Context(), vmm.Disk{Path: image, Serial: "img-1", ReadOnly: true}); err != nil || place != (vmm.Place{Disk: "img-1"}) {
			t.Fatalf("attached as %+v, %v", place, err)
		}
		if text, err := os.ReadFile(seen); err != nil || string(text) != "image\n" {
			t.Errorf("in the jail: %q, %v", text, err)
		}
	}
	mounts := string(read(t, p.pid, "mountinfo"))
	if n := strings.Count(mounts, " "+path+" ro,"); n != 1 {
		t.Errorf("%d read-only mounts in the jail:\n%s", n, mounts)
	}
}

// serveDisks stands for cloud-hypervisor's interface, and has the disks that it is given.
func serveDisks(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var disks []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == "PUT" {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			disks = append(disks, string(body))
		}
		fmt.Fprintf(w, `{"config":{"disks":[%s]}}`, strings.Join(disks, ","))
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}
