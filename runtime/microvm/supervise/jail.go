package supervise

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/confine"
	"github.com/magikrun/magikpod/internal/mounttree"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// process is a program in its jail.
type process struct {
	name   string
	pid    int
	exited chan struct{}
	err    error // how it ended; valid after exited
}

// start runs a program in a jail. Its standard output and error are this process's; files are what
// it is born with beside these.
//
// The jail is a thread's: it gives itself a mount namespace, makes that empty but for what the
// program sees, and starts the program from there. It stays until the program has ended, because
// the signal at its parent's death is tied to the thread (PR_SET_PDEATHSIG in prctl(2)).
func (s *supervisor) start(name string, c *vmm.Command, files []*os.File) (*process, error) {
	p := &process{name: name, exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		cmd, err := s.prepare(c)
		if err == nil {
			cmd.ExtraFiles = files
			err = cmd.Start()
		}
		if err != nil {
			started <- fmt.Errorf("cannot start %s: %w", filepath.Base(c.Argv[0]), err)
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.exited)
	}()
	err := <-started
	for _, f := range files {
		_ = f.Close()
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// prepare brings the thread into the jail and makes the command to start there.
func (s *supervisor) prepare(c *vmm.Command) (*exec.Cmd, error) {
	if s.netns >= 0 {
		if err := unix.Setns(s.netns, unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("cannot join the network namespace: %w", err)
		}
	}
	groups, err := deviceGroups(c)
	if err != nil {
		return nil, err
	}
	if err := enterJail(filepath.Join(s.config.Dir, jailDir), c); err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("cannot refuse new privileges: %w", err)
	}
	cmd := &exec.Cmd{Path: c.Argv[0], Args: c.Argv, Env: c.Env, Dir: "/", Stdout: os.Stdout, Stderr: os.Stderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !c.Root {
		// Capabilities go with root.
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.config.UID, Gid: s.config.GID, Groups: groups}
	}
	return cmd, nil
}

// deviceGroups are the groups that devices in the jail belong to.
func deviceGroups(c *vmm.Command) ([]uint32, error) {
	var groups []uint32
	for _, m := range c.Mounts {
		if !strings.HasPrefix(m.Source, "/dev/") {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(m.Source, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: m.Source, Err: err}
		}
		if st.Gid != 0 && !slices.Contains(groups, st.Gid) {
			groups = append(groups, st.Gid)
		}
	}
	return groups, nil
}

// jailDir is the name of the directory in Dir that jails are mounted on, each in its own mount
// namespace.
const jailDir = "jail"

// enterJail makes a mount namespace for the calling thread with nothing in it but what the program sees.
func enterJail(dir string, c *vmm.Command) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("cannot make a jail: unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make a jail: make private: %w", err)
	}
	// What is written to it is memory of the VM's cgroup.
	if err := unix.Mount("jail", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=1k"); err != nil {
		return fmt.Errorf("cannot make a jail: tmpfs: %w", err)
	}
	mounts := append([]vmm.Mount{{Source: "/dev/null", Writable: true}, {Source: "/dev/zero", Writable: true}, {Source: "/dev/urandom", Writable: true}}, c.Mounts...)
	for _, m := range mounts {
		if err := mountInJail(dir, m); err != nil {
			return fmt.Errorf("cannot make a jail: %s: %w", m.Source, err)
		}
	}
	for path, text := range c.Files {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o444)); err != nil {
			return fmt.Errorf("cannot make a jail: %w", err)
		}
	}
	for _, path := range c.Dirs {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			return fmt.Errorf("cannot make a jail: %w", err)
		}
	}
	if c.Root {
		err := os.Mkdir(dir+"/proc", 0o755)
		if err == nil {
			err = unix.Mount("proc", dir+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}
		if err != nil {
			return fmt.Errorf("cannot make a jail: proc: %w", err)
		}
	}
	return enterRoot(dir)
}

// mountInJail makes one file or directory of the host appear in the jail.
func mountInJail(dir string, m vmm.Mount) error {
	target := m.Target
	if target == "" {
		target = m.Source
	}
	target = filepath.Join(dir, target)
	var st unix.Stat_t
	err := unix.Lstat(m.Source, &st)
	if errors.Is(err, unix.ENOENT) && m.Optional {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Target == "" && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		// /lib is usr/lib on most hosts, and /usr is there.
		link, err := os.Readlink(m.Source)
		if err != nil {
			return err
		}
		return os.Symlink(link, target)
	}
	if err := unix.Stat(m.Source, &st); err != nil {
		return err
	}
	if info, err := os.Stat(target); err == nil && m.Target == "" && !info.IsDir() && st.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil // a program in /usr, which is there
	}
	attributes := uint64(unix.MOUNT_ATTR_NOSUID)
	if !m.Writable {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	if !strings.HasPrefix(m.Source, "/dev/") {
		attributes |= unix.MOUNT_ATTR_NODEV
	}
	tree, err := mounttree.Clone(m.Source, attributes)
	if err != nil {
		return err
	}
	defer tree.Close()
	return tree.MountAt(target)
}

// enterRoot makes dir the thread's root, and takes the host's away.
func enterRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	return confine.EnterRoot()
}

// owner names the process for good.
func (p *process) owner() (nsfile.Owner, error) {
	start, err := nsfile.StartTime(p.pid)
	return nsfile.Owner{PID: p.pid, StartTime: start}, err
}

// signal sends a signal unless the process has ended.
func (p *process) signal(sig syscall.Signal) {
	select {
	case <-p.exited:
	default:
		_ = syscall.Kill(p.pid, sig)
	}
}
