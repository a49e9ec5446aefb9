package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/magikrun/magikpod/internal/jobowner"
	"github.com/magikrun/magikpod/pod"
)

const (
	// maxJobs bounds the jobs that run at once, but for execs, maxExecs these.
	maxJobs  = 4 * pod.MaxPods
	maxExecs = 512
)

var errCanceled = errors.New("the job was cancelled")

// jobs runs long work. A job is reported as new, changed any number of times, and removed.
type jobs struct {
	ctx     context.Context // of the daemon: the jobs end with it
	notices *notices
	ended   func(kind string, result pod.JobResult, took time.Duration)

	mu      sync.Mutex
	running map[uint32]*job
	works   numbers // of all jobs that are no execs
	execs   numbers
	closed  bool
	wg      sync.WaitGroup
}

// numbers are those of one sort of jobs.
type numbers struct {
	first, last uint32
	limit       int    // jobs that run at once
	what        string // for people
	newest      uint32
	running     int
}

// job is one piece of long work. Its methods may be called from any goroutine.
type job struct {
	jobs   *jobs
	cancel context.CancelCauseFunc
	exec   *execSize // of an exec

	mu   sync.Mutex
	info pod.JobInfo
}

func newJobs(ctx context.Context, notices *notices, ended func(kind string, result pod.JobResult, took time.Duration)) *jobs {
	return &jobs{
		ctx: ctx, notices: notices, ended: ended, running: make(map[uint32]*job),
		works: numbers{first: 1, last: pod.FirstExecJob - 1, limit: maxJobs, what: "jobs"},
		execs: numbers{first: pod.FirstExecJob, last: 1<<32 - 1, limit: maxExecs, what: "processes started by exec"},
	}
}

// start runs do as a job of the given kind, whose owner ctx names. do returns what the job made.
// Its context ends when the job is cancelled, times out (0: never) or the daemon ends. Exhausted:
// too many jobs run.
func (j *jobs) start(ctx context.Context, kind string, objects []string, timeout time.Duration, do func(ctx context.Context, job *job) ([]string, error)) (uint32, error) {
	return j.run(&job{info: pod.JobInfo{Kind: kind, Objects: objects, Owner: jobowner.Of(ctx), State: "running"}}, timeout, do)
}

// run is start for a job that was made by the caller, without a number.
func (j *jobs) run(one *job, timeout time.Duration, do func(ctx context.Context, job *job) ([]string, error)) (uint32, error) {
	var ctx context.Context
	one.jobs = j
	ctx, one.cancel = context.WithCancelCause(j.ctx)
	if err := j.add(one); err != nil {
		one.cancel(nil)
		return 0, err
	}
	j.notices.report(pod.Notice{Kind: pod.NoticeJobNew, Job: one.info})
	id, kind := one.info.ID, one.info.Kind
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
		one.cancel(nil)
		j.ended(kind, result, time.Since(began))
	}()
	return id, nil
}

// numbers returns the numbers that a kind of jobs has.
func (j *jobs) numbers(kind string) *numbers {
	if kind == "exec" {
		return &j.execs
	}
	return &j.works
}

// add gives a job its number.
func (j *jobs) add(one *job) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	kind := one.info.Kind
	n := j.numbers(kind)
	switch {
	case j.closed:
		return pod.Errorf(pod.Unavailable, "cannot %s: the daemon is ending; try again", kind)
	case n.running >= n.limit:
		return pod.Errorf(pod.Exhausted, "cannot %s: %d %s run already", kind, n.limit, n.what)
	}
	for {
		if n.newest++; n.newest < n.first || n.newest > n.last {
			n.newest = n.first
		}
		if j.running[n.newest] == nil {
			break
		}
	}
	one.info.ID = n.newest
	j.running[n.newest] = one
	n.running++
	j.wg.Add(1)
	return nil
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

// end removes the job and reports how it ended: whoever looks finds it here or in that report.
func (j *jobs) end(one *job, result pod.JobResult, output []string, err error) {
	one.mu.Lock()
	one.info.State, one.info.Output, one.info.Err, one.info.Fraction = string(result), output, err, 1
	info := one.info
	one.mu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.running, info.ID)
	j.numbers(info.Kind).running--
	j.notices.report(pod.Notice{Kind: pod.NoticeJobRemoved, Job: info})
}

// progress reports how far the job is; fraction is in 0 to 1.
func (one *job) progress(text string, fraction float64) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.info.Progress == text && one.info.Fraction == fraction || one.info.State != "running" {
		return
	}
	one.info.Progress, one.info.Fraction = text, fraction
	one.jobs.notices.report(pod.Notice{Kind: pod.NoticeJobChanged, Job: one.info})
}

// warn reports what the job does not do of what was asked for.
func (one *job) warn(warnings []string) {
	one.mu.Lock()
	defer one.mu.Unlock()
	one.info.Warnings = warnings
}

// meets reports what the job has met with last and tries again; nil: nothing any more.
func (one *job) meets(problem error) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.info.State != "running" || errorText(one.info.Err) == errorText(problem) {
		return
	}
	one.info.Err = problem
	one.jobs.notices.report(pod.Notice{Kind: pod.NoticeJobChanged, Job: one.info})
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

// CancelJob asks a job to end. A run that is cancelled leaves nothing; a stop or delete cannot be
// undone.
func (d *Daemon) CancelJob(id uint32) error {
	one, ok := d.jobs.get(id)
	if !ok {
		return pod.Errorf(pod.NotFound, "cannot cancel job %d: no such job", id)
	}
	switch kind := one.read().Kind; kind {
	case "stop", "delete":
		return pod.Errorf(pod.Conflict, "cannot cancel job %d: a %s cannot be undone", id, kind)
	}
	one.cancel(errCanceled)
	return nil
}
