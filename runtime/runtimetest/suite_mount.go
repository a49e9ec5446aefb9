package runtimetest

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/magikrun/magikpod/runtime"
)

func trueProcess() runtime.Process { return runtime.Process{Args: []string{"true"}} }

// checkFreshLayer: an attempt sees nothing of what the last one wrote.
func checkFreshLayer(h *suite) {
	p := h.newPod(map[string]program{"main": {script: "[ -e /mark ] && exit 1; echo x > /mark || exit 2; exit 7"}})
	p.create()
	for attempt := range 2 {
		p.run("main", attempt)
		p.exited(p.awaitExit("main"), attempt, 7)
	}
}

// checkSharedNamespaces: the containers of a pod are in one network, IPC and UTS namespace, each
// with its own PIDs and mounts.
func checkSharedNamespaces(h *suite) {
	script := waits("for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done > " + sharedDir + "/$NAME.ns; echo $NAME > /dev/shm/$NAME")
	p := h.newPod(map[string]program{"one": script, "two": script})
	p.create()
	p.runReady("one", 0)
	p.runReady("two", 0)
	read := func(name string) []string {
		data, err := os.ReadFile(filepath.Join(p.dir, name+".ns"))
		h.none("namespaces", err)
		return strings.Fields(string(data))
	}
	one, two := read("one"), read("two")
	if len(one) != 5 || len(two) != 5 {
		h.Fatalf("namespaces %v and %v", one, two)
	}
	for i, name := range []string{"network", "IPC", "UTS", "PID", "mount"} {
		if shared := i < 3; (one[i] == two[i]) != shared {
			h.Errorf("%s namespaces %s and %s: one is shared: %v, want %v", name, one[i], two[i], !shared, shared)
		}
	}
	if status, stdout, _ := p.exec("two", "", runtime.Process{Args: []string{"cat", "/dev/shm/one"}}); status.Code != 0 || stdout != "one\n" {
		h.Errorf("/dev/shm is not shared: %+v, %q", status, stdout)
	}
}

// checkSharedTmpfs: an in-memory volume is one for all containers, has its size, mode and group,
// and outlives a container.
func checkSharedTmpfs(h *suite) {
	p := h.newPod(map[string]program{
		"one": waits("echo hello > /mem/file; stat -c '%a %g' /mem > " + sharedDir + "/mode; df -k /mem > " + sharedDir + "/df"),
		"two": waits("cat /there/file > " + sharedDir + "/got"),
	})
	p.config.SharedTmpfs = []runtime.Tmpfs{{Name: "mem", SizeBytes: 1 << 20, Mode: os.ModeSticky | os.ModeSetgid | 0o777, GID: 2000}}
	p.mounts["one"] = []runtime.Mount{{SharedTmpfs: "mem", Destination: "/mem", Propagation: "private"}}
	p.mounts["two"] = []runtime.Mount{{SharedTmpfs: "mem", Destination: "/there", ReadOnly: true, Propagation: "private"}}
	p.create()
	p.runReady("one", 0)
	if status, _, _ := p.exec("one", "", runtime.Process{Args: []string{"dd", "if=/dev/zero", "of=/mem/big", "bs=1M", "count=2"}}); status.Code == 0 {
		h.Error("2 MiB fit into a volume of 1 MiB")
	}
	h.none("StopContainer", h.manager.StopContainer(h.ctx, p.ref, "one", longGrace))
	p.runReady("two", 0)
	if status, _, _ := p.exec("two", "", runtime.Process{Args: []string{"touch", "/there/x"}}); status.Code == 0 {
		h.Error("a read-only mount can be written to")
	}
	for name, want := range map[string]string{"got": "hello\n", "mode": "3777 2000\n"} {
		if data, err := os.ReadFile(filepath.Join(p.dir, name)); err != nil || string(data) != want {
			h.Errorf("%s: %q, %v; want %q", name, data, err, want)
		}
	}
	if data, err := os.ReadFile(filepath.Join(p.dir, "df")); err != nil || !strings.Contains(string(data), " 1024 ") {
		h.Errorf("df: %q, %v; want 1024 blocks", data, err)
	}
}

// checkMounts: directories, files, parts of a volume that exist or not, and read-only ones; all at
// paths that the image does not have.
func checkMounts(h *suite) {
	p := h.newPod(map[string]program{"main": waits(strings.Join([]string{
		"cat /ro/file /etc/one-file /a/b/c/part/in > " + sharedDir + "/got",
		"touch /new/made",
		"if touch /ro/x 2>/dev/null; then exit 1; fi",
		"if echo x > /etc/one-file; then exit 1; fi 2>/dev/null",
		"echo changed > /rw-file",
	}, "; "))})
	volume := h.TempDir()
	for name, content := range map[string]string{"file": "1", "part/in": "2", "single": "3", "writable": "4"} {
		path := filepath.Join(volume, name)
		h.none("volume", os.MkdirAll(filepath.Dir(path), 0o755))
		h.none("volume", os.WriteFile(path, []byte(content), 0o644))
	}
	p.mounts["main"] = []runtime.Mount{
		{Source: volume, Destination: "/ro", ReadOnly: true, Propagation: "private"},
		{Source: filepath.Join(volume, "single"), Destination: "/etc/one-file", ReadOnly: true, Propagation: "private"},
		{Source: volume, SubPath: "part", Destination: "/a/b/c/part", Propagation: "private"},
		{Source: volume, SubPath: "not/yet", Destination: "/new", Propagation: "private"},
		{Source: volume, SubPath: "writable", Destination: "/rw-file", Propagation: "private"},
	}
	p.create()
	p.runReady("main", 0)
	for path, want := range map[string]string{filepath.Join(p.dir, "got"): "132", filepath.Join(volume, "writable"): "changed\n", filepath.Join(volume, "not/yet/made"): ""} {
		if data, err := os.ReadFile(path); err != nil || string(data) != want {
			h.Errorf("%s: %q, %v; want %q", path, data, err, want)
		}
	}
}

// checkSubPathStaysInside: a symlink in a volume, which a container can have made, leads nowhere
// outside. The container may be refused for it.
func checkSubPathStaysInside(h *suite) {
	base := h.TempDir()
	volume, outside := filepath.Join(base, "volume"), filepath.Join(base, "outside")
	h.none("volume", os.Mkdir(volume, 0o777))
	h.none("volume", os.Mkdir(outside, 0o755))
	h.none("volume", os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	for name, target := range map[string]string{"absolute": outside, "relative": "../outside", "root": "/", "magic": "/proc/self/root"} {
		h.none("volume", os.Symlink(target, filepath.Join(volume, name)))
	}
	for name, subPath := range map[string]string{"absolute": "absolute", "relative": "relative", "root": "root" + outside, "magic": "magic" + outside} {
		p := h.newPod(map[string]program{"main": {script: "[ -e /v/secret ] && exit 1; exit 7"}})
		p.mounts["main"] = []runtime.Mount{{Source: volume, SubPath: subPath, Destination: "/v", Propagation: "private"}}
		p.create()
		if err := h.manager.RunContainer(h.ctx, p.containerConfig("main", 0)); err != nil {
			continue // refused
		}
		if state := p.awaitExit("main"); state.ExitCode != 7 {
			h.Errorf("%s symlink: the container ends with %d: it sees what is outside of its volume", name, state.ExitCode)
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		h.Errorf("something was made outside: %v, %v", entries, err)
	}
}
