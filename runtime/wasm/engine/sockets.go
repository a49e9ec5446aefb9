package engine

import (
	"context"
	"slices"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// sockets knows which socket of this process each of the guest's descriptors is. wazero keeps that
// to itself, so the calls by which a guest gets and gives back connections are watched. It also
// ends a connection that the guest closes: wazero leaves it open until a garbage collection comes
// by, and the client waits as long.
type sockets struct {
	ports  []int           // of the listeners
	first  int32           // the guest's descriptor of the first of them
	raw    map[int32]int   // of the process, by the guest's
	before map[uint64]bool // sockets that there were before an accept, by inode
	result uint32          // where the accept writes its descriptor
}

func newSockets(config Config) *sockets {
	s := &sockets{first: int32(3 + len(config.Dirs))}
	for _, l := range config.Listeners {
		s.ports = append(s.ports, l.Port)
	}
	return s
}

// find returns the socket of a descriptor of the guest.
func (s *sockets) find(fd int32) (int, bool) {
	if s.raw == nil {
		s.raw = map[int32]int{}
		for _, open := range openSockets() {
			for i, port := range s.ports {
				if open.port == port && !open.connected {
					s.raw[s.first+int32(i)] = open.fd
				}
			}
		}
	}
	raw, ok := s.raw[fd]
	return raw, ok
}

// NewFunctionListener implements [experimental.FunctionListenerFactory].
func (s *sockets) NewFunctionListener(f api.FunctionDefinition) experimental.FunctionListener {
	switch f.Name() {
	case "sock_accept":
		return acceptWatch{s}
	case "fd_close":
		return closeWatch{s}
	}
	return nil
}

// acceptWatch watches sock_accept(fd, flags, result).
type acceptWatch struct{ *sockets }

func (w acceptWatch) Before(_ context.Context, _ api.Module, _ api.FunctionDefinition, params []uint64, _ experimental.StackIterator) {
	w.find(0)
	w.result, w.before = uint32(params[2]), map[uint64]bool{}
	for _, open := range openSockets() {
		w.before[open.inode] = true
	}
}

func (w acceptWatch) After(_ context.Context, m api.Module, _ api.FunctionDefinition, results []uint64) {
	fd, ok := m.Memory().ReadUint32Le(w.result)
	if !ok || uint32(results[0]) != errnoSuccess { // only the lower halves are set
		return
	}
	for _, open := range openSockets() {
		if !w.before[open.inode] && open.connected && slices.Contains(w.ports, open.port) {
			w.raw[int32(fd)] = open.fd
		}
	}
}

func (acceptWatch) Abort(context.Context, api.Module, api.FunctionDefinition, error) {}

// closeWatch watches fd_close(fd).
type closeWatch struct{ *sockets }

func (w closeWatch) Before(_ context.Context, _ api.Module, _ api.FunctionDefinition, params []uint64, _ experimental.StackIterator) {
	fd := int32(uint32(params[0]))
	raw, ok := w.find(fd)
	if !ok {
		return
	}
	delete(w.raw, fd)
	if fd < w.first || fd >= w.first+int32(len(w.ports)) {
		hangUp(raw)
	}
}

func (closeWatch) After(context.Context, api.Module, api.FunctionDefinition, []uint64) {}
func (closeWatch) Abort(context.Context, api.Module, api.FunctionDefinition, error)    {}

// openSocket is a TCP socket of this process.
type openSocket struct {
	fd        int
	inode     uint64
	port      int // its own
	connected bool
}
