package dbus

import (
	"cmp"
	"slices"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// jobMethods is org.magikpod1.Job. Who started a job may always cancel it.
var jobMethods = []method{
	{name: "Cancel", handle: (*call).cancelJob},
	{name: "ResizeTerminal", in: "qq", handle: (*call).resizeTerminal},
}

// execJob returns the running exec job of that number; nil when there is none.
func (s *Server) execJob(id uint32) *execJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.execs[id]
}

// jobOwner returns the client that started the job; "" when it is not known (any more).
func (s *Server) jobOwner(id uint32) string {
	if e := s.execJob(id); e != nil {
		return e.owner
	}
	return s.pump.owner(id)
}

// jobs lists the jobs that run, in the order of their numbers.
func (s *Server) jobs() []pod.JobInfo {
	jobs := slices.Clone(s.backend.Jobs())
	s.mu.Lock()
	for _, e := range s.execs {
		info, _ := e.info()
		jobs = append(jobs, info)
	}
	s.mu.Unlock()
	slices.SortFunc(jobs, func(a, b pod.JobInfo) int { return cmp.Compare(a.ID, b.ID) })
	return jobs
}

// jobPropertiesByID finds a job that runs, or ended a short while ago.
func (s *Server) jobPropertiesByID(id uint32) (properties, bool) {
	if e := s.execJob(id); e != nil {
		return jobProperties(e.info()), true
	}
	if job, ok := s.pump.endedJob(id); ok {
		return jobProperties(job, s.pump.exit(id)), true
	}
	if job, ok := s.backend.Job(id); ok {
		return jobProperties(job, nil), true
	}
	return nil, false
}

func (c *call) cancelJob() ([]any, error) {
	id, _ := jobOfPath(c.path)
	if e := c.server.execJob(id); e != nil {
		if e.owner != c.sender {
			if err := c.authorise(ActionExec); err != nil {
				return nil, err
			}
		}
		e.mu.Lock()
		e.cancelled = true
		e.mu.Unlock()
		e.cancel()
		return nil, nil
	}
	if c.server.jobOwner(id) != c.sender {
		action := ActionManagePods
		if job, ok := c.server.backend.Job(id); ok && job.Kind == "pull" {
			action = ActionManageImages
		}
		if err := c.authorise(action); err != nil {
			return nil, err
		}
	}
	return nil, c.server.backend.CancelJob(id)
}

func (c *call) resizeTerminal() ([]any, error) {
	rows, cols := c.body[0].(uint16), c.body[1].(uint16)
	id, _ := jobOfPath(c.path)
	e := c.server.execJob(id)
	if e == nil || e.owner != c.sender {
		return nil, pod.Errorf(pod.NotFound, "cannot resize the terminal of job %d: no exec of yours that runs has that number", id)
	}
	if !e.tty {
		return nil, pod.Errorf(pod.Conflict, "cannot resize the terminal of job %d: it has none", id)
	}
	if rows == 0 || cols == 0 {
		return nil, pod.Errorf(pod.Invalid, "cannot resize the terminal to %d rows and %d columns", rows, cols)
	}
	e.setSize(runtime.WinSize{Rows: rows, Cols: cols})
	return nil, nil
}
