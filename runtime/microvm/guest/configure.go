package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/shim"
)

// configure sets up the VM, again if need be.
func (s *Server) configure(r *wire.Configure) error {
	s.setup.Lock()
	defer s.setup.Unlock()
	for _, step := range []func(*wire.Configure) error{s.setClock, s.setHostname, s.setNetworks, s.mountScratch, s.mountShm, s.mountShares, s.sharePID} {
		if err := step(r); err != nil {
			return fmt.Errorf("cannot configure the guest: %w", err)
		}
	}
	if err := setSysctls(r.Sysctls); err != nil {
		return fmt.Errorf("cannot configure the guest: %w", err)
	}
	s.mu.Lock()
	s.configured = true
	s.mu.Unlock()
	return nil
}

func (s *Server) setClock(r *wire.Configure) error {
	if r.Time.IsZero() {
		return nil
	}
	return s.config.SetClock(r.Time)
}

// setClock sets the VM's clock. Timers do not go by it.
func setClock(to time.Time) error {
	ts := unix.NsecToTimespec(to.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

func (s *Server) setHostname(r *wire.Configure) error {
	if r.Hostname == "" {
		return nil
	}
	if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return nil
}

func (s *Server) setNetworks(r *wire.Configure) error {
	if err := setLoopback(); err != nil || r.Network == nil {
		return err
	}
	return setNetwork(r.Network)
}

// mountScratch mounts the disk for what containers write. Once it is mounted it stays.
func (s *Server) mountScratch(r *wire.Configure) error {
	path := s.path(scratchName)
	if mounted, err := isMounted(path, s.config.Dir); mounted || err != nil {
		return err
	}
	if r.Scratch == "" {
		// Overlays want a file system of their own kind below them: Dir may be on an overlay.
		return mountTmpfs(path, "mode=0700")
	}
	ctx, cancel := context.WithTimeout(context.Background(), diskTimeout)
	defer cancel()
	device, err := findDisk(ctx, r.Scratch)
	if err != nil {
		return err
	}
	if err := unix.Mount(device, path, "ext4", unix.MS_NOATIME|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount the disk %q: ext4: %w", r.Scratch, err)
	}
	if err := dropLayers(path); err != nil {
		s.config.Log(err) // they only take room
	}
	return nil
}

// dropLayers removes the writable layers of an earlier VM with this scratch disk, which has ended
// without removing them. There are no containers yet.
func dropLayers(scratch string) error {
	root, err := os.OpenRoot(scratch)
	if err == nil {
		err = errors.Join(root.RemoveAll(layersName), root.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot remove the layers of earlier containers: %w", err)
	}
	return nil
}

// mountShm mounts what is /dev/shm of all containers, as large as CRI runtimes have it.
func (s *Server) mountShm(*wire.Configure) error {
	path := s.path(shmName)
	mounted, err := isMounted(path, s.config.Dir)
	if err != nil || mounted {
		return err
	}
	return mountTmpfs(path, "mode=1777,size=64m")
}

func mountTmpfs(path, options string) error {
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s: tmpfs: %w", path, err)
	}
	return nil
}

// isMounted says whether path, a child or grandchild of parent, is another file system.
func isMounted(path, parent string) (bool, error) {
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(path, &here), unix.Stat(parent, &above)); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

func (s *Server) mountShares(r *wire.Configure) error {
	for _, tag := range r.Shares {
		path := s.path(sharesName, tag)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if mounted, err := isMounted(path, s.path(sharesName)); mounted || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := unix.Mount(tag, path, "virtiofs", unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("mount the share %q: virtiofs: %w", tag, err)
		}
	}
	return nil
}

// sharePID makes one PID namespace for all containers, those that are made from now on.
func (s *Server) sharePID(r *wire.Configure) error {
	if !r.SharePID {
		return nil
	}
	s.mu.Lock()
	s.sharesPID = true
	s.mu.Unlock()
	_, err := s.sharedInit()
	return err
}

// sharedInit is the first process of the pod's PID namespace; 0 when each container has its own.
// When it ends, so do all processes of the namespace, and there is another one for those that come
// later.
func (s *Server) sharedInit() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.sharesPID || s.sharedPID > 0 {
		return s.sharedPID, nil
	}
	first, err := shim.NewFirstProcess("magikagent")
	if err != nil {
		return 0, fmt.Errorf("make the pod's PID namespace: %w", err)
	}
	pid, ended, err := s.config.Reaper.Start(first.Cmd)
	if err = errors.Join(err, first.Jailed()); err != nil {
		return 0, fmt.Errorf("make the pod's PID namespace: %w", err)
	}
	s.sharedPID = pid
	go func() {
		<-ended
		s.mu.Lock()
		s.sharedPID = 0
		s.mu.Unlock()
		s.config.Log(errors.New("the first process of the pod's PID namespace has ended, and all of its processes with it"))
	}()
	return pid, nil
}

// setSysctls sets kernel parameters of the VM.
func setSysctls(values map[string]string) error {
	for name, value := range values {
		if err := crun.SetSysctl(name, value); err != nil {
			return fmt.Errorf("set the sysctl %s: %w", name, err)
		}
	}
	return nil
}
