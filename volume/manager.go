package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
)

// Config says where volumes are kept. Both directories are absolute paths that only root can write
// to; they are made when needed.
type Config struct {
	StateDir string // on a disk: StateDir/pods/UID/{volumes,etc,termination}
	RunDir   string // on a tmpfs: RunDir/pods/UID/secrets
}

// Manager makes and removes the volumes of pods. It keeps nothing in memory. Its methods may be
// called at any time and from any goroutine, but for one pod no two calls of Prepare, EtcFiles and
// Remove run at once.
type Manager struct {
	stateDir, runDir string
}

// Sources look up the objects that volumes are filled from, in the pod's namespace. An error of
// kind NotFound, or a nil object, means that there is none of that name. What is returned is only
// read.
type Sources struct {
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
}

// New returns a manager for the two directories; it does no IO. Invalid: a path is not absolute.
func New(c Config) (*Manager, error) {
	for _, dir := range []string{c.StateDir, c.RunDir} {
		if !filepath.IsAbs(dir) {
			return nil, pod.Errorf(pod.Invalid, "cannot keep volumes in %q: the path is not absolute", dir)
		}
	}
	return &Manager{stateDir: filepath.Clean(c.StateDir), runDir: filepath.Clean(c.RunDir)}, nil
}

// A pod's files: the names below podDir(StateDir) and podDir(RunDir) that are this package's.
const (
	volumesDir     = "volumes"
	etcDir         = "etc"
	terminationDir = "termination"
	secretsDir     = "secrets"
)

func (m *Manager) statePath(uid types.UID, elem ...string) string {
	return filepath.Join(append([]string{m.stateDir, "pods", string(uid)}, elem...)...)
}

func (m *Manager) runPath(uid types.UID, elem ...string) string {
	return filepath.Join(append([]string{m.runDir, "pods", string(uid)}, elem...)...)
}

// Prepare makes the volumes of p: directories for emptyDir, files from ConfigMaps and Secrets; host
// paths are checked, and made when their type says so. A repeated call leaves emptyDir volumes as
// they are and brings the files of ConfigMaps and Secrets up to date, atomically.
//
// On an error nothing is left that was not there before, except what was made at a host path.
// Kinds: Invalid (a source that cannot be used as it is), NotFound (an object, key or host path
// that is missing), Unsupported (another type of volume), Exhausted (the file system is full),
// Unavailable (ctx ended).
func (m *Manager) Prepare(ctx context.Context, p *corev1.Pod, src Sources) (_ *Prepared, err error) {
	if err := checkUID(p.UID); err != nil {
		return nil, err
	}
	plans := make([]*plan, 0, len(p.Spec.Volumes))
	prepared := &Prepared{sources: make(map[string]source, len(p.Spec.Volumes))}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		plan, err := m.plan(p, v, src)
		if err != nil {
			return nil, kinded(err, "cannot prepare volume %q", v.Name)
		}
		if _, double := prepared.sources[v.Name]; double {
			return nil, pod.Errorf(pod.Invalid, "cannot prepare volume %q: there are two of that name", v.Name)
		}
		plans = append(plans, plan)
		prepared.add(plan)
	}
	undo := &revert{}
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	for _, plan := range plans {
		if ctx.Err() != nil {
			return nil, pod.Errorf(pod.Unavailable, "cannot prepare volume %q: %w", plan.name, context.Cause(ctx))
		}
		if plan.write == nil {
			continue
		}
		if err := plan.write(undo); err != nil {
			return nil, kinded(err, "cannot prepare volume %q", plan.name)
		}
	}
	return prepared, nil
}

// plan is what is to be done for one volume: all of it has been looked up and checked, write only
// writes.
type plan struct {
	name   string
	source source
	write  func(undo *revert) error // nil: nothing to do
}

// plan looks up and checks one volume, without changing anything.
func (m *Manager) plan(p *corev1.Pod, v *corev1.Volume, src Sources) (*plan, error) {
	if len(validation.IsDNS1123Label(v.Name)) > 0 {
		return nil, pod.Errorf(pod.Invalid, "the name is not a DNS label")
	}
	group := int64(-1)
	if p.Spec.SecurityContext != nil && p.Spec.SecurityContext.FSGroup != nil {
		group = *p.Spec.SecurityContext.FSGroup
		if group < 0 || group > 1<<31-1 {
			return nil, pod.Errorf(pod.Invalid, "%d cannot be an fsGroup", group)
		}
	}
	switch {
	case v.EmptyDir != nil:
		return m.planEmptyDir(p, v, group)
	case v.HostPath != nil:
		return planHostPath(v)
	case v.ConfigMap != nil:
		return m.planConfigMap(p, v, group, src)
	case v.Secret != nil:
		return m.planSecret(p, v, group, src)
	}
	return nil, pod.Errorf(pod.Unsupported, "it is none of emptyDir, hostPath, configMap and secret")
}

// Remove removes all that Prepare, EtcFiles and TerminationMessage have made for the pod; what is
// not there is no error. Nothing outside is touched, whatever containers have put into their
// volumes: symlinks are not followed, and mount points are left and reported (Conflict). Host paths
// stay.
func (m *Manager) Remove(ctx context.Context, uid types.UID) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	var first error
	for _, path := range []string{
		m.runPath(uid, secretsDir), m.statePath(uid, volumesDir), m.statePath(uid, etcDir), m.statePath(uid, terminationDir),
	} {
		if err := safepath.RemoveAll(ctx, path); err != nil && first == nil {
			first = kinded(err, "cannot remove volumes of pod %s", uid)
		}
	}
	// The pod's directories are shared with others; they go with the last one's files.
	for _, path := range []string{m.runPath(uid), m.statePath(uid)} {
		_ = unix.Rmdir(path)
	}
	return first
}

// uidPattern is what a pod's UID must look like to be used as a file name. UUIDs do.
var uidPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func checkUID(uid types.UID) error {
	if !uidPattern.MatchString(string(uid)) {
		return pod.Errorf(pod.Invalid, "cannot use %.80q as the UID of a pod", uid)
	}
	return nil
}

// kinded wraps err, and gives it a kind when it has none: what the kernel said about space and
// mount points has one.
func kinded(err error, format string, args ...any) error {
	kind := pod.KindOf(err)
	if kind == pod.Internal {
		switch {
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
			kind = pod.Exhausted
		case errors.Is(err, unix.EBUSY):
			kind = pod.Conflict
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
			kind = pod.Unavailable
		}
	}
	return pod.Errorf(kind, "%s: %w", fmt.Sprintf(format, args...), err)
}

// revert remembers what has been made, to remove it when a later step fails.
type revert struct{ steps []func() }

func (r *revert) add(step func()) { r.steps = append(r.steps, step) }

func (r *revert) run() {
	for i := len(r.steps) - 1; i >= 0; i-- {
		r.steps[i]()
	}
}

// mkdirAll makes the directory path and its parents with mode 0700; path is one that only root can
// write to.
func (r *revert) mkdirAll(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, unix.ENOENT) {
		if err := r.mkdirAll(filepath.Dir(path)); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o700)
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return err
	}
	r.add(func() { _ = unix.Rmdir(path) })
	return nil
}

// removeAll makes the revert remove path.
func (r *revert) removeAll(path string) {
	// Without a context: what is left behind would be taken for a finished volume by nobody, but it
	// would use the space that is missing.
	r.add(func() { _ = safepath.RemoveAll(context.Background(), path) })
}
