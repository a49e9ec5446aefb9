package native

import (
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/mounttree"
)

// clone is a read-only mount of an OCI runtime's program, mounted nowhere.
type clone struct {
	mu   sync.Mutex
	tree *mounttree.Tree
	of   os.FileInfo // the mount keeps its inode from being used again
}

// start starts cmd, the OCI runtime, from a read-only mount if it would make itself one. crun looks
// at the mount by itself: with none, or one that can be written to, it does as ever.
func (r *ociRuntime) start(cmd *exec.Cmd) error {
	if r.cloned == "" {
		return cmd.Start()
	}
	r.clone.mu.Lock() // os/exec starts one program after the other, too
	defer r.clone.mu.Unlock()
	if r.clone.follow(r.path) {
		cmd.Path, cmd.Env = r.clone.tree.Path(), append(cmd.Env, r.cloned)
	}
	return cmd.Start()
}

// follow makes the mount anew when there is another program at path. False: it cannot be made.
func (c *clone) follow(path string) bool {
	now, err := os.Stat(path)
	if err != nil {
		return false
	}
	if c.tree != nil && os.SameFile(c.of, now) {
		return true
	}
	tree, err := mounttree.Clone(path, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return false
	}
	if c.tree != nil {
		c.tree.Close()
	}
	c.tree, c.of = tree, now
	return true
}
