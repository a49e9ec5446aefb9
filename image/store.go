package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

// Options are how a store is opened.
type Options struct {
	Limits Limits
	// NoSync leaves it to the kernel when data is on the disk. After a power cut (not after a crash
	// of the process) a layer may then be damaged without notice. For tests and throw-away stores.
	NoSync bool
	// Components says that WebAssembly components can be run, so they are taken in.
	Components bool
}

// Store is an image store. All methods may be called at any time and from any goroutine. Errors
// carry a [pod.Kind]; Exhausted is a full disk or a limit.
type Store struct {
	dir        string
	limits     Limits
	noSync     bool
	components bool
	lock       *os.File // the directory, flocked
	readOnly   bool     // when it was opened: nothing could be put in order
	warnings   []string
	locks      keyLocks
	network    network

	index atomic.Pointer[index] // what readers see; replaced as a whole

	// change is held while the index, the pins or the names of blobs and layers change. It is never
	// held while anything is read from outside.
	change sync.Mutex
	pins   map[string]int    // blobs (sha256:...) and layers (chain:sha256:...) that are being worked with
	layers map[string]*layer // unpacked layers by chain ID
	names  map[string]string // chain ID by the name of the layer's directory

	life   sync.Mutex // guards closed, and work against Wait
	closed bool
	work   sync.WaitGroup
	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
}

const (
	blobsDir  = "blobs/sha256"
	layersDir = "layers"
	tmpDir    = "tmp"
	badPrefix = ".bad-"
)

// Open opens the store in dir, which it makes if need be, and puts in order what a crash has left.
// What is damaged is set aside and reported by Warnings. Conflict: another process has the store
// open.
func Open(dir string, o Options) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot open image store %s: %w", dir, err)
	}
	s := &Store{
		dir: abs, limits: o.Limits.withDefaults(), noSync: o.NoSync, components: o.Components,
		pins: map[string]int{}, layers: map[string]*layer{}, names: map[string]string{},
	}
	s.network = newNetwork()
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.index.Store(newIndex())
	if err = s.lockDir(); err == nil {
		err = s.recover()
	}
	if err != nil {
		_ = s.Close()
		return nil, s.fail(err, "cannot open image store %s", dir)
	}
	return s, nil
}

func (s *Store) lockDir() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return pod.Errorf(pod.Conflict, "another process has it open")
		}
		return fmt.Errorf("flock: %w", err)
	}
	s.lock = f
	return nil
}

// Close ends all work and waits for it, and gives the directory free. It may be called more than once.
func (s *Store) Close() error {
	s.life.Lock()
	first := !s.closed
	s.closed = true
	s.life.Unlock()
	s.cancel(errClosed)
	s.work.Wait()
	if !first || s.lock == nil {
		return nil
	}
	s.network.transport.CloseIdleConnections()
	return s.lock.Close()
}

// Warnings returns what Open found damaged, a line each.
func (s *Store) Warnings() []string { return append([]string(nil), s.warnings...) }

func (s *Store) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// begin registers a piece of work, which Close ends through the returned context and waits for
// until end was called.
func (s *Store) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil, nil, errClosed
	}
	s.work.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(errClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		s.work.Done()
	}, nil
}

// do does a piece of work. Its error says what could not be done.
func (s *Store) do(ctx context.Context, work func(ctx context.Context) error, format string, args ...any) error {
	ctx, end, err := s.begin(ctx)
	if err == nil {
		defer end()
		err = work(ctx)
	}
	return s.fail(err, format, args...)
}

// path returns a path in the store.
func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// keyLocks are locks by name, waited for until a context ends.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (k *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		wait, taken := k.held[key]
		if !taken {
			if k.held == nil {
				k.held = map[string]chan struct{}{}
			}
			done := make(chan struct{})
			k.held[key] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
