package dbus

import (
	"context"
	"os"
	"syscall"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// Backend is what the server puts on the bus. All methods may be called from any goroutine. Errors
// carry a [pod.Kind].
//
// Long work is a job: the method returns the job's number (never 0) as soon as the request was
// accepted, and the job goes on when ctx ends. A job is reported to subscribers as JobNew, any
// number of JobChanged, and JobRemoved, in this order. Its owner is the client that ctx names
// (package jobowner).
type Backend interface {
	// Run admits the pods of the manifest and starts them (unless o.NoStart).
	Run(ctx context.Context, manifest []byte, o pod.RunOptions) (job uint32, err error)
	Start(ctx context.Context, ref pod.Ref) (job uint32, err error)
	Stop(ctx context.Context, ref pod.Ref, o pod.StopOptions) (job uint32, err error)
	Restart(ctx context.Context, ref pod.Ref, o pod.StopOptions) (job uint32, err error)
	Delete(ctx context.Context, ref pod.Ref, o pod.StopOptions) (job uint32, err error)
	// Kill sends sig to the first process of the container, or of every running container when
	// container is "".
	Kill(ctx context.Context, ref pod.Ref, container string, sig syscall.Signal) error

	// Get, GetByUID and GetByPID (a process anywhere in the pod) return NotFound when there is no
	// such pod. Like List, they don't wait for a pod's worker.
	Get(namespace, name string) (pod.Detail, error)
	GetByUID(uid types.UID) (pod.Detail, error)
	GetByPID(pid int) (pod.Ref, error)
	// List returns all pods, sorted by namespace and name.
	List() []pod.Summary
	Stats(ctx context.Context, ref pod.Ref) (pod.Stats, error)

	// Jobs returns the jobs that run. Job also finds one that ended a short while ago, if the
	// backend remembers any.
	Jobs() []pod.JobInfo
	Job(id uint32) (pod.JobInfo, bool)
	// CancelJob asks the job to end with [pod.JobCanceled]. NotFound: no such job; Conflict: it
	// cannot be cancelled any more.
	CancelJob(id uint32) error

	// Exec runs p in the container (the first one when it is "") as a job, whose number is
	// [pod.FirstExecJob] or a higher one. The end of ctx kills the process. size is of its
	// terminal; zero: not known. finish is called once: when the process has ended, before that is
	// reported, or before Exec returns an error. It closes p's files.
	Exec(ctx context.Context, ref pod.Ref, container string, p runtime.Process, size runtime.WinSize, finish func(context.Context)) (job uint32, err error)
	// ResizeTerminal: NotFound: no such exec runs; Conflict: it has no terminal; Invalid: that is
	// no size.
	ResizeTerminal(job uint32, size runtime.WinSize) error
	// Logs returns the read end of a pipe that gets the lines as text, each ended by a newline. The
	// writer ends when all lines were written or when nobody reads any more; the caller closes the
	// file.
	Logs(ctx context.Context, ref pod.Ref, o pod.LogOptions) (*os.File, error)

	PullImage(ctx context.Context, reference string, o pod.PullOptions) (job uint32, err error)
	// LoadImage reads an archive until its end and returns the references (or IDs) of the images in
	// it. It does not close archive.
	LoadImage(ctx context.Context, archive *os.File, o pod.LoadOptions) ([]string, error)
	// SaveImage writes the images as one archive. It does not close archive.
	SaveImage(ctx context.Context, references []string, archive *os.File) error
	ListImages(ctx context.Context) ([]pod.ImageSummary, error)
	RemoveImage(ctx context.Context, reference string, force bool) error
	// PruneImages removes the images that have no name and that no pod uses, and returns their IDs.
	PruneImages(ctx context.Context) (ids []string, err error)
	TagImage(ctx context.Context, reference, newReference string) error
	// InspectImage returns a JSON object: id, references, digest, size, config (as in the OCI
	// image-spec).
	InspectImage(ctx context.Context, reference string) ([]byte, error)

	Classes() []pod.ClassInfo
	Info() pod.HostInfo
	// Validate returns every problem of the manifest on this host; an empty list: it would be
	// accepted. The end of ctx ends it.
	Validate(ctx context.Context, manifest []byte) ([]pod.Problem, error)

	// Subscribe has notify called with every change from now on, in the order of the changes of one
	// object, until the returned function was called. notify doesn't block and calls no method of
	// the backend.
	Subscribe(notify func(pod.Notice)) (unsubscribe func())
}
