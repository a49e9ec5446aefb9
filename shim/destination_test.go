package shim

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCheckDestination(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"proc", "sys", "data", "etc", "a"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"p": "/proc", "q": "proc/sys", "a/up": "../../../proc", "chain": "/p/kernel", "s": "../sys/", "loop": "loop", "etc/mtab": "/proc/mounts", "fine": "/data", "out": "/../../proc2", "gone": "/nothing/here",
	} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for destination, ok := range map[string]bool{
		"/data": true, "/new/deep/path": true, "/fine/x": true, "/out": true, "/gone": true, "/a/b": true, "/etc": true, "/etc/hosts": true, "/process": true,
		"/p": false, "/p/self": false, "/q": false, "/q/kernel/new": false, "/a/up": false, "/a/up/1": false, "/chain": false, "/s": false, "/s/fs/cgroup": false, "/loop": false,
		"/etc/mtab": false, "/fine/../p": false, "/proc": false,
	} {
		if err := checkDestination(root, destination); (err == nil) != ok {
			t.Errorf("%s: %v", destination, err)
		}
	}
}
