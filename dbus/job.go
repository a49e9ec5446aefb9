package dbus

import (
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// jobMethods is org.magikpod1.Job. Who started a job may always cancel it.
var jobMethods = []method{
	{name: "Cancel", handle: (*call).cancelJob},
	{name: "ResizeTerminal", in: "qq", handle: (*call).resizeTerminal},
}

// job finds a job that runs, or ended a short while ago.
func (s *Server) job(id uint32) (pod.JobInfo, bool) {
	if job, ok := s.pump.endedJob(id); ok {
		return job, true
	}
	return s.backend.Job(id)
}

func (c *call) cancelJob() ([]any, error) {
	id, _ := contract.JobOfPath(c.path)
	if job, ok := c.server.job(id); !ok || job.Owner != c.sender {
		action := ActionManagePods
		switch job.Kind {
		case "pull":
			action = ActionManageImages
		case "exec":
			action = ActionExec
		}
		if err := c.authorise(action); err != nil {
			return nil, err
		}
	}
	return nil, c.server.backend.CancelJob(id)
}

func (c *call) resizeTerminal() ([]any, error) {
	id, _ := contract.JobOfPath(c.path)
	if job, ok := c.server.backend.Job(id); !ok || job.Owner != c.sender {
		return nil, pod.Errorf(pod.NotFound, "cannot resize the terminal of job %d: no running exec of yours has that number", id)
	}
	return nil, c.server.backend.ResizeTerminal(id, runtime.WinSize{Rows: c.body[0].(uint16), Cols: c.body[1].(uint16)})
}
