package engine

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// cleanupTimeout is how long it may take to undo what a failed or cancelled call has made.
const cleanupTimeout = 60 * time.Second

// Config is what a [Manager] is made from.
type Config struct {
	Runtime  Runtime
	Layout   Layout
	Units    *units.Manager
	RunDir   string // /run/magikpod: what does not outlive the host's boot
	StateDir string // /var/lib/magikpod: the writable layers; not on an overlay
	// ShimPath is the path of magikshim.
	ShimPath string
	// Fault, when not nil, is called before each step that changes something; its error makes the
	// step fail. For tests.
	Fault func(step string) error
	// Files keeps the namespaces of sandboxes whose pause process is still to come. Nil: nobody does.
	Files FileStore
	// Log gets what goes wrong where no caller waits for it. Nil: nobody does.
	Log *slog.Logger
}

// Manager runs pods as systemd units. It implements [runtime.PodManager].
type Manager struct {
	config  Config
	runtime Runtime
	kind    runtime.SandboxKind
	units   *units.Manager
	class   pod.ClassInfo

	unsubscribe func() // ends the calls of unitChanged
	changed     atomic.Pointer[func(ref pod.Ref)]
	background  sync.WaitGroup
	ctx         context.Context // of what goes on in the background
	cancel      context.CancelFunc

	mu        sync.Mutex
	closed    bool
	sandboxes map[types.UID]*sandbox // by ID
	byUnit    map[string]*sandbox
	unknown   map[types.UID]error // pods that could not be adopted, and why: nobody knows what is true of them
}

var _ runtime.PodManager = (*Manager)(nil)

// New makes a manager. That the class cannot be used is no error: [Manager.Class] says so.
func New(ctx context.Context, config Config) (*Manager, error) {
	m := &Manager{
		runtime: config.Runtime, kind: config.Runtime.SandboxKind(), units: config.Units, class: config.Runtime.Class(),
		sandboxes: map[types.UID]*sandbox{},
		byUnit:    map[string]*sandbox{},
		unknown:   map[types.UID]error{},
	}
	for _, path := range []*string{&config.RunDir, &config.StateDir, &config.ShimPath} {
		if !filepath.IsAbs(*path) {
			return nil, pod.Errorf(pod.Internal, "cannot make the runtime class %s: the path %q is not absolute", m.class.Name, *path)
		}
		*path = filepath.Clean(*path)
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Files == nil {
		config.Files = noFiles{}
	}
	m.config = config
	if info, err := os.Stat(config.ShimPath); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		m.class.Available, m.class.Reason = false, config.ShimPath+" is not installed (package magikpod)"
	}
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	m.unsubscribe = m.units.OnChange(m.unitChanged)
	return m, nil
}

// Close ends what goes on in the background and forgets the namespaces. The pods go on; another
// manager can adopt them.
func (m *Manager) Close() error {
	m.unsubscribe()
	m.cancel()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.background.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, s := range m.sandboxes {
		s.ns.close()
		delete(m.sandboxes, uid)
	}
	clear(m.byUnit)
	return nil
}

// Class implements [runtime.PodManager].
func (m *Manager) Class() pod.ClassInfo { return m.class }

// Validate implements [runtime.PodManager]: what no pod of the class can have on any host,
// [pod.Validate] refuses.
func (m *Manager) Validate(p *corev1.Pod) field.ErrorList { return m.runtime.Validate(p) }

// PrepareImage implements [runtime.PodManager].
func (m *Manager) PrepareImage(ctx context.Context, image runtime.Image) error {
	if !m.class.Available {
		return nil
	}
	return m.runtime.PrepareImage(ctx, image)
}

// ForgetImages implements [runtime.PodManager].
func (m *Manager) ForgetImages(ctx context.Context) error { return m.runtime.ForgetImages(ctx) }

// OnChange implements [runtime.PodManager].
func (m *Manager) OnChange(changed func(ref pod.Ref)) { m.changed.Store(&changed) }

// spawn runs f in the background; not after Close, when it returns false.
func (m *Manager) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.background.Go(f)
	return true
}

// fault gives a test the chance to make a step fail.
func (m *Manager) fault(step string) error {
	if m.config.Fault == nil {
		return nil
	}
	return m.config.Fault(step)
}

// find returns the sandbox of a pod; nil when there is none that this manager knows.
func (m *Manager) find(ref pod.Ref) *sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sandboxes[ref.UID]
}

// lost says whether the connection to systemd has ended: what it said last is no longer true then,
// and what is asked of it is an error.
func (m *Manager) lost() bool {
	select {
	case <-m.units.Lost():
		return true
	default:
		return false
	}
}

// remember adds a sandbox and its own units.
func (m *Manager) remember(s *sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sandboxes[s.ref.UID] = s
	for _, h := range s.holders {
		m.byUnit[h.unit] = s
	}
}

// rememberUnit adds the unit of a container.
func (m *Manager) rememberUnit(unit string, s *sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byUnit[unit] = s
}

// forgetSandbox removes a sandbox and its units from the maps, and closes its namespaces.
func (m *Manager) forgetSandbox(s *sandbox) {
	m.mu.Lock()
	delete(m.sandboxes, s.ref.UID)
	delete(m.unknown, s.ref.UID)
	for unit, other := range m.byUnit {
		if other == s {
			delete(m.byUnit, unit)
		}
	}
	m.mu.Unlock()
	s.mu.Lock()
	ns := s.ns
	s.ns = nil
	s.mu.Unlock()
	ns.close()
}

// unitChanged is called when systemd has said that something about a unit has changed. It does not
// block.
func (m *Manager) unitChanged(unit string) {
	m.mu.Lock()
	s := m.byUnit[unit]
	m.mu.Unlock()
	if s == nil {
		return
	}
	s.wake()
	if end := s.noteEnd(m.units, unit); end != nil {
		m.spawn(func() { m.afterEnd(s, *end) })
	}
	if changed := m.changed.Load(); changed != nil {
		(*changed)(s.ref)
	}
}

// afterEnd does what the end of a container's first process asks for. Processes that it leaves
// behind end with it, as in Kubernetes; where the container has a PID namespace of its own, the
// kernel has done so.
func (m *Manager) afterEnd(s *sandbox, record attemptRecord) {
	if !record.OwnPID {
		ctx, cancel := context.WithTimeout(m.ctx, cleanupTimeout)
		defer cancel()
		_ = m.units.Kill(ctx, s.unit(record.Container), "all", unixKILL) // most often nothing is left
	}
	m.endLog(s, record)
	if state, ok := m.units.State(s.unit(record.Container)); ok && state.StatusText == shim.StatusNotStarted {
		m.noteStartError(s, record)
	}
}

// endLog lets the pause process finish the log of an attempt.
func (m *Manager) endLog(s *sandbox, record attemptRecord) {
	if err := shim.EndLog(filepath.Join(s.dir, logName), record.Container, record.Attempt); err != nil && m.find(s.ref) == s {
		m.config.Log.Warn("cannot end the log of a container", "pod", s.ref.String(), "container", record.Container, "error", err)
	}
}
