package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/magikrun/magikpod/logs"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// Logs returns the read end of a pipe with the lines of one container: of its latest attempt, or
// with o.Previous of the one before. With o.Follow it ends when the attempt has ended, as kubectl
// logs does.
func (d *Daemon) Logs(ctx context.Context, ref pod.Ref, o pod.LogOptions) (*os.File, error) {
	w, err := d.find(ref)
	if err != nil {
		return nil, err
	}
	snap := w.snapshot()
	if o.Container, err = snap.container(o.Container); err != nil {
		return nil, err
	}
	if o.Follow && !o.Previous {
		// A container that is about to be started is waited for.
		if snap, err = w.wait(ctx, func(s *snapshot) bool { return hasLog(s, o.Container) || !mayStart(s) }); err != nil {
			return nil, err
		}
	}
	seen := snap.Containers[o.Container]
	switch {
	case o.Previous && seen.Last == nil:
		return nil, pod.Errorf(pod.NotFound, "cannot read the log: previous terminated container %q in pod %s not found", o.Container, ref)
	case !hasLog(snap, o.Container):
		return nil, pod.Errorf(pod.Conflict, "cannot read the log: container %q in pod %s has not been started yet%s", o.Container, ref, waitingFor(seen))
	}
	q := d.logRequest(w.ref, o, seen.Attempt, seen.FinishedAt)
	if o.Previous {
		q.Attempt, q.Ended = seen.Last.Attempt, seen.Last.FinishedAt
	}
	q.Wait = func(ctx context.Context) {
		_, _ = w.wait(ctx, func(s *snapshot) bool {
			now := s.Containers[o.Container]
			return now.Attempt != q.Attempt || !now.Stage.Live()
		})
	}
	return d.logs.Open(d.ctx, q)
}

// logRequest names the log of one attempt at o.Container.
func (d *Daemon) logRequest(ref pod.Ref, o pod.LogOptions, attempt int, ended time.Time) logs.Request {
	return logs.Request{
		LogDir: d.podLogDir(ref), FIFODir: filepath.Join(d.config.podRunDir(string(ref.UID)), shim.FIFODir),
		PodUID: string(ref.UID), Container: o.Container, Attempt: attempt, Ended: ended, Options: o,
	}
}

// hasLog says whether an attempt was made at the container.
func hasLog(s *snapshot, container string) bool {
	stage := s.Containers[container].Stage
	return stage != "" && stage != pod.ContainerAbsent
}

// mayStart says whether the pod is on its way up.
func mayStart(s *snapshot) bool {
	return s.Desired == pod.DesiredRun && !s.Finished && startFailure(s) == nil
}

func waitingFor(o pod.ContainerObservation) string {
	if o.Waiting == nil {
		return ""
	}
	return ": " + o.Waiting.Reason + ": " + o.Waiting.Message
}

// endLog is the end of what an attempt has logged, for its termination message
// (terminationMessagePolicy FallbackToLogsOnError): at most 80 lines and 2048 bytes (kubelet:
// fallbackToLogs).
func (d *Daemon) endLog(ctx context.Context, ref pod.Ref, container string, attempt int, ended time.Time) string {
	const lines, size = 80, 2048
	q := d.logRequest(ref, pod.LogOptions{Container: container, Tail: lines}, attempt, ended)
	q.Quiet = true
	f, err := d.logs.Open(ctx, q)
	if err != nil {
		return ""
	}
	defer f.Close()
	var tail []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := f.Read(buf)
		if tail = append(tail, buf[:n]...); len(tail) > size {
			tail = append(tail[:0], tail[len(tail)-size:]...)
		}
		if err != nil {
			return strings.ToValidUTF8(string(tail), "\uFFFD")
		}
	}
}

// podLogDir is where CRI log files of the pod go; empty with the journal.
func (d *Daemon) podLogDir(ref pod.Ref) string {
	if d.config.LogDriver != shim.LogFile {
		return ""
	}
	return filepath.Join(d.config.LogDir, ref.Namespace+"_"+ref.Name+"_"+string(ref.UID))
}

func (d *Daemon) removeLogs(ref pod.Ref) error {
	dir := d.podLogDir(ref)
	if dir == "" {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return pod.Errorf(pod.Internal, "cannot remove the logs: %w", err)
	}
	return nil
}
