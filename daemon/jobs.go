package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/magikrun/magikpod/pod"
)

const (
	// maxJobs bounds the jobs that run at once.
	maxJobs = 4 * pod.MaxPods
	// maxJobID keeps job numbers below those of exec jobs, which the bus server numbers.
	maxJobID = 1<<31 - 1
)

var errCanceled = errors.New("the job was cancelled")

// jobs runs long work. A job is told as new, changed any number of times, and removed.
type jobs struct {
	notices *notices
	ended   func(kind string, result pod.JobResult, took time.Duration)

	mu      sync.Mutex
	running map[uint32]*job
	last    uint32
	closed  bool
	wg      sync.WaitGroup
}

// job is one piece of long work. Its methods may be called from any goroutine.
type job struct {
	jobs   *jobs
	cancel context.CancelCauseFunc

	mu   sync.Mutex
	info pod.JobInfo
}

// start runs do as a job of the given kind. do returns what the job made. Its context ends when the job is cancelled, times out (0: never) or the
// daemon ends. Exhausted: too many jobs run.
func (j *jobs) start(ctx context.Context, kind string, objects []string, timeout time.Duration, do func(ctx context.Context, job *job) ([]string, error)) (uint32, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	j.mu.Lock()
	if closed := j.closed; closed || len(j.running) >= maxJobs {
		j.mu.Unlock()
		cancel(nil)
		if closed {
			return 0, pod.Errorf(pod.Unavailable, "cannot %s: the daemon is ending; try again", kind)
		}
		return 0, pod.Errorf(pod.Exhausted, "cannot %s: %d jobs run already", kind, maxJobs)
	}
	if j.running == nil {
		j.running = make(map[uint32]*job)
	}
	for {
		j.last = j.last%maxJobID + 1
		if j.running[j.last] == nil {
			break
		}
	}
	one := &job{jobs: j, cancel: cancel, info: pod.JobInfo{ID: j.last, Kind: kind, Objects: objects, State: "running"}}
	j.running[j.last] = one
	j.wg.Add(1)
	j.mu.Unlock()
	j.notices.tell(pod.Notice{Kind: pod.NoticeJobNew, Job: one.info})
	go func() {
		defer j.wg.Done()
		began := time.Now()
		if timeout > 0 {
			var stop context.CancelFunc
			ctx, stop = context.WithTimeoutCause(ctx, timeout, context.DeadlineExceeded)
			defer stop()
		}
		output, err := do(ctx, one)
		result := jobResult(ctx, err)
		j.end(one, result, output, err)
		cancel(nil)
		if j.ended != nil {
			j.ended(kind, result, time.Since(began))
		}
	}()
	return one.info.ID, nil
}

// jobResult words how a job ended.
func jobResult(ctx context.Context, err error) pod.JobResult {
	switch {
	case err == nil:
		return pod.JobDone
	case errors.Is(err, errCanceled) || errors.Is(context.Cause(ctx), errCanceled):
		return pod.JobCanceled
	case errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return pod.JobTimeout
	}
	return pod.JobFailed
}

// end removes the job and tells how it ended.
func (j *jobs) end(one *job, result pod.JobResult, output []string, err error) {
	one.mu.Lock()
	one.info.State, one.info.Output, one.info.Err, one.info.Fraction = string(result), output, err, 1
	info := one.info
	one.mu.Unlock()
	j.mu.Lock()
	delete(j.running, info.ID)
	j.mu.Unlock()
	j.notices.tell(pod.Notice{Kind: pod.NoticeJobRemoved, Job: info})
}

// progress tells how far the job is; fraction is in 0 to 1.
func (one *job) progress(text string, fraction float64) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.info.Progress == text && one.info.Fraction == fraction || one.info.State != "running" {
		return
	}
	one.info.Progress, one.info.Fraction = text, fraction
	one.jobs.notices.tell(pod.Notice{Kind: pod.NoticeJobChanged, Job: one.info})
}

// warn tells what the job does not do of what was asked for.
func (one *job) warn(warnings []string) {
	one.mu.Lock()
	defer one.mu.Unlock()
	one.info.Warnings = warnings
}

// meets tells what the job has met with last and tries again; nil: nothing any more.
func (one *job) meets(problem error) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.info.State != "running" || errorText(one.info.Err) == errorText(problem) {
		return
	}
	one.info.Err = problem
	one.jobs.notices.tell(pod.Notice{Kind: pod.NoticeJobChanged, Job: one.info})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (one *job) read() pod.JobInfo {
	one.mu.Lock()
	defer one.mu.Unlock()
	return one.info
}

// list returns the jobs that run, the oldest first.
func (j *jobs) list() []pod.JobInfo {
	j.mu.Lock()
	defer j.mu.Unlock()
	infos := make([]pod.JobInfo, 0, len(j.running))
	for _, one := range j.running {
		infos = append(infos, one.read())
	}
	slices.SortFunc(infos, func(a, b pod.JobInfo) int { return int(int64(a.ID) - int64(b.ID)) })
	return infos
}

func (j *jobs) get(id uint32) (*job, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	one, ok := j.running[id]
	return one, ok
}

// close ends the jobs that run and waits for them; no new ones begin.
func (j *jobs) close(cause error) {
	j.mu.Lock()
	j.closed = true
	for _, one := range j.running {
		one.cancel(cause)
	}
	j.mu.Unlock()
	j.wg.Wait()
}

// Jobs returns the jobs that run.
func (d *Daemon) Jobs() []pod.JobInfo { return d.jobs.list() }

// Job returns a job that runs.
func (d *Daemon) Job(id uint32) (pod.JobInfo, bool) {
	one, ok := d.jobs.get(id)
	if !ok {
		return pod.JobInfo{}, false
	}
	return one.read(), true
}

// CancelJob asks a job to end. A run that is cancelled leaves nothing; a stop or delete cannot be taken back.
func (d *Daemon) CancelJob(id uint32) error {
	one, ok := d.jobs.get(id)
	if !ok {
		return pod.Errorf(pod.NotFound, "cannot cancel job %d: there is none of that number", id)
	}
	switch kind := one.read().Kind; kind {
	case "stop", "delete":
		return pod.Errorf(pod.Conflict, "cannot cancel job %d: a %s cannot be taken back", id, kind)
	}
	one.cancel(errCanceled)
	return nil
}
