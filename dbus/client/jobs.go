package client

import (
	"context"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
)

// jobState is what signals said of a job.
type jobState struct {
	info    podapi.JobInfo
	changed chan struct{} // size 1
	ended   bool
}

// state returns what is known of a job; c.mu is held.
func (c *Client) state(path godbus.ObjectPath) *jobState {
	j := c.jobs[path]
	if j == nil {
		id, _ := contract.JobOfPath(path)
		j = &jobState{info: podapi.JobInfo{ID: id}, changed: make(chan struct{}, 1)}
		c.jobs[path] = j
	}
	return j
}

func (c *Client) update(path godbus.ObjectPath, p properties, ended bool) {
	c.mu.Lock()
	j := c.state(path)
	text, name := "", ""
	str := func(key string, to *string) {
		if v, ok := p[key].Value().(string); ok {
			*to = v
		}
	}
	str("Kind", &j.info.Kind)
	str("Progress", &j.info.Progress)
	str("State", &j.info.State)
	str("ErrorMessage", &text)
	str("ErrorName", &name)
	if _, ok := p["ErrorName"]; ok {
		j.info.Err = nil
	}
	if name != "" {
		j.info.Err = contract.FromName(name, text)
	}
	if v, ok := p["Fraction"].Value().(float64); ok {
		j.info.Fraction = v
	}
	if v, ok := p["Output"].Value().([]string); ok {
		j.info.Output = v
	}
	if v, ok := p["Warnings"].Value().([]string); ok {
		j.info.Warnings = v
	}
	if v, ok := p["ExitStatus"].Value().(int32); ok && v >= 0 {
		j.info.ExitStatus = new(int(v))
	}
	j.ended = j.ended || ended
	c.mu.Unlock()
	select {
	case j.changed <- struct{}{}:
	default:
	}
}

// Wait waits for the end of a job and calls progress, unless it is nil, for each change. The job's
// own error is returned as err, beside what is known of the job. The end of ctx leaves the job
// alone.
func (c *Client) Wait(ctx context.Context, job godbus.ObjectPath, progress func(podapi.JobInfo)) (podapi.JobInfo, error) {
	ticker := time.NewTicker(daemonCheck)
	defer ticker.Stop()
	for {
		c.mu.Lock()
		j := c.state(job)
		info, ended := j.info, j.ended
		if ended {
			delete(c.jobs, job)
		}
		c.mu.Unlock()
		if ended {
			if info.Err == nil && info.State != string(podapi.JobDone) {
				info.Err = errkind.Errorf(errkind.Unavailable, "the job ended: %s", info.State)
			}
			return info, info.Err
		}
		if progress != nil {
			progress(info)
		}
		select {
		case <-j.changed:
		case <-ctx.Done():
			return info, context.Cause(ctx)
		case <-c.Lost():
			return info, errkind.Errorf(errkind.Unavailable, "cannot follow the job: the connection to magikpodd was lost")
		case <-ticker.C:
			err := c.check(ctx, job)
			c.mu.Lock()
			ended := j.ended // the signal may have come meanwhile
			c.mu.Unlock()
			if kind := errkind.KindOf(err); !ended && (kind == errkind.Unavailable || kind == errkind.NotFound) {
				return info, errkind.Errorf(errkind.Unavailable, "cannot follow the job: magikpodd has ended or was started anew")
			}
		}
	}
}

// daemonCheck is how often a waiting client looks whether the daemon is still there: no signal says
// that it died.
const daemonCheck = 2 * time.Second

// check asks the daemon for the job, in case its signals were lost with an earlier daemon.
// NotFound, Unavailable: nobody will report its end.
func (c *Client) check(ctx context.Context, job godbus.ObjectPath) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var props properties
	err := c.conn.Object(contract.BusName, job).CallWithContext(ctx, contract.PropertiesInterface+".GetAll", godbus.FlagNoAutoStart, contract.JobInterface).Store(&props)
	if err != nil {
		return contract.FromBus(err)
	}
	if state, _ := props["State"].Value().(string); state != "running" {
		c.update(job, props, true)
	}
	return nil
}
