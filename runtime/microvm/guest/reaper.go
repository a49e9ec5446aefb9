package guest

import (
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper collects all children of this process, its own and orphans; nobody else in the process may
// wait for one.
type Reaper struct {
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
	// early are ends that came while somebody was about to ask for a child; kept as long as
	// expecting is not 0.
	early     map[int]unix.WaitStatus
	expecting int
}

// NewReaper starts collecting, for as long as the process lives. A process that is not PID 1 must
// be a subreaper (prctl(2)) to get the containers' processes.
func NewReaper() *Reaper {
	r := &Reaper{waiting: map[int]chan unix.WaitStatus{}, early: map[int]unix.WaitStatus{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for {
			r.collect()
			<-ended // one is kept, so none is missed between the two
		}
	}()
	return r
}

// collect takes all children that have ended.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			c <- status // it has room for one
		} else if r.expecting > 0 {
			r.early[pid] = status
		}
	}
}

// Start starts cmd, whose files must be [os.File]s, and returns its PID and where its end will be
// sent. Nobody may call cmd.Wait.
func (r *Reaper) Start(cmd *exec.Cmd) (pid int, ended <-chan unix.WaitStatus, err error) {
	r.mu.Lock() // so that the child is not collected before it is known
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	c := make(chan unix.WaitStatus, 1)
	pid = cmd.Process.Pid
	r.waiting[pid] = c
	_ = cmd.Process.Release()
	return pid, c, nil
}

// Expect makes the reaper remember all ends until the returned function is called: the caller is
// going to learn a PID and to ask for it.
func (r *Reaper) Expect() (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expecting++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.expecting--; r.expecting == 0 {
			clear(r.early)
		}
	})
}

// Adopt returns where the end of pid will be sent: an orphan that is or will be a child of this
// process. Between Expect and its done.
func (r *Reaper) Adopt(pid int) <-chan unix.WaitStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := make(chan unix.WaitStatus, 1)
	if status, ok := r.early[pid]; ok {
		delete(r.early, pid)
		c <- status
		return c
	}
	r.waiting[pid] = c
	return c
}
