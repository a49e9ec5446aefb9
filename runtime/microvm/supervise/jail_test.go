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

// standIn runs a shell script in the jail of a monitor that is not installed here, in its place, until the test ends.
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

// TestPlugIntoJail: an image appears in the jail of a monitor that opens files itself, once however often it is attached and read-only.
func TestPlugIntoJail(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, []byte("image\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	for _, driver := range []vmm.Driver{vmm.Firecracker{}} {
		t.Run(driver.Name(), func(t *testing.T) {
			c, p := standIn(t, driver, "exec sleep 1000")
			s := &supervisor{config: c}
			if err := s.writeState(p); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(driver.Can(&c.VM).PlugDir, "img-1")
			serveDrive(t, c.VM.Control)
			serial, err := vmm.GuestSerial(&c.VM, vmm.Disk{Path: image})
			if err != nil {
				t.Fatal(err)
			}
			want := vmm.Place{Disk: serial}
			seen := fmt.Sprintf("/proc/%d/root%s", p.pid, path)
			for range 3 {
				if place, err := AttachDisk(t.Context(), c, vmm.Disk{Path: image, Serial: "img-1", ReadOnly: true}); err != nil || place != want {
					t.Fatalf("attached as %+v, %v; want %+v", place, err, want)
				}
				if text, err := os.ReadFile(seen); err != nil || string(text) != "image\n" {
					t.Errorf("in the jail: %q, %v", text, err)
				}
			}
			mounts := string(read(t, p.pid, "mountinfo"))
			if n := strings.Count(mounts, " "+path+" ro,"); n != 1 {
				t.Errorf("%d read-only mounts in the jail:\n%s", n, mounts)
			}
		})
	}
}

// serveDrive stands for Firecracker's interface, with one drive.
func serveDrive(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	drive := `{"drive_id":"slot_0","path_on_host":"/vm/empty"}`
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == "PATCH" {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			drive = string(body)
		}
		fmt.Fprintf(w, `{"drives":[%s]}`, drive)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}
