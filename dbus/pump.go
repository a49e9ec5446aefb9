package dbus

import (
	"reflect"
	"slices"
	"sync"

	godbus "github.com/godbus/dbus/v5"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

const (
	// maxEvents bounds the events that wait to be sent; the oldest are dropped first.
	maxEvents = 4096
	// maxEnded is how many ended jobs stay readable, so that a client which asks a little late
	// still hears how its job ended.
	maxEnded = 256
)

// pump turns notices of the backend into signals. The backend only appends to a queue; one
// goroutine sends. Changes of one object that wait are merged, so that the queue is bounded by the
// number of objects, whatever the clients do.
//
// Signals are sent to each subscriber by name, never broadcast: anyone can listen to broadcasts,
// but not everyone may read. The signals of a job are also sent to the client that started it.
type pump struct {
	server *Server
	wake   chan struct{}
	done   chan struct{}

	mu      sync.Mutex
	queue   []pod.Notice
	changed map[types.UID]bool // pods with a NoticePodChanged in the queue
	events  int                // in the queue
	ended   map[uint32]pod.JobInfo
	order   []uint32 // of ended, oldest first

	// Only run touches these: what subscribers were last sent.
	sentPods map[types.UID]properties
	sentJobs map[uint32]properties
}

func newPump(s *Server) *pump {
	return &pump{
		server: s, wake: make(chan struct{}, 1), done: make(chan struct{}),
		changed: make(map[types.UID]bool), ended: make(map[uint32]pod.JobInfo),
		sentPods: make(map[types.UID]properties), sentJobs: make(map[uint32]properties),
	}
}

func (p *pump) close() { close(p.done) }

// notify takes a notice; it never blocks.
func (p *pump) notify(n pod.Notice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n.Kind {
	case pod.NoticePodChanged:
		if p.changed[n.Ref.UID] {
			return
		}
		p.changed[n.Ref.UID] = true
	case pod.NoticeJobChanged:
		if p.mergeJob(n) {
			return
		}
	case pod.NoticeJobRemoved:
		p.remember(n.Job)
	case pod.NoticeEvent:
		if p.events >= maxEvents {
			p.dropEvent()
		}
		p.events++
	}
	p.queue = append(p.queue, n)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// mergeJob puts the news into the waiting notice of the same job, if there is one.
func (p *pump) mergeJob(n pod.Notice) bool {
	for i := len(p.queue) - 1; i >= 0; i-- {
		if q := &p.queue[i]; q.Job.ID == n.Job.ID && (q.Kind == pod.NoticeJobChanged || q.Kind == pod.NoticeJobNew) {
			q.Job = n.Job
			return true
		}
	}
	return false
}

func (p *pump) dropEvent() {
	for i := range p.queue {
		if p.queue[i].Kind == pod.NoticeEvent {
			p.queue = append(p.queue[:i], p.queue[i+1:]...)
			p.events--
			return
		}
	}
}

// remember keeps how a job ended, for a while.
func (p *pump) remember(job pod.JobInfo) {
	if _, ok := p.ended[job.ID]; !ok {
		p.order = append(p.order, job.ID)
	}
	p.ended[job.ID] = job
	if len(p.order) > maxEnded {
		delete(p.ended, p.order[0])
		p.order = p.order[1:]
	}
}

// endedJob returns a job that ended a short while ago.
func (p *pump) endedJob(id uint32) (pod.JobInfo, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	job, ok := p.ended[id]
	return job, ok
}

// run sends until close.
func (p *pump) run() {
	for {
		select {
		case <-p.done:
			return
		case <-p.wake:
		}
		for {
			p.mu.Lock()
			if len(p.queue) == 0 {
				p.queue = nil
				p.mu.Unlock()
				break
			}
			n := p.queue[0]
			p.queue = p.queue[1:]
			switch n.Kind {
			case pod.NoticePodChanged:
				delete(p.changed, n.Ref.UID)
			case pod.NoticeEvent:
				p.events--
			}
			p.mu.Unlock()
			p.send(n)
		}
	}
}

func (p *pump) send(n pod.Notice) {
	names := p.server.subscribers()
	if len(names) == 0 {
		clear(p.sentPods)
		clear(p.sentJobs)
	}
	switch n.Kind {
	case pod.NoticePodNew, pod.NoticePodChanged, pod.NoticePodRemoved:
		if len(names) > 0 {
			p.sendPod(n, names)
		}
	case pod.NoticeJobNew, pod.NoticeJobChanged, pod.NoticeJobRemoved:
		p.sendJob(n, names)
	case pod.NoticeEvent:
		e := n.Event
		p.emit(names, ManagerPath, ManagerInterface+".Event", e.Time.UnixMicro(), busText(e.Type), busText(e.Reason),
			contract.PodPath(e.Object.UID), e.Object.Namespace, e.Object.Name, e.Container, busText(e.Message))
	}
}

func (p *pump) sendPod(n pod.Notice, names []string) {
	path, uid := contract.PodPath(n.Ref.UID), n.Ref.UID
	if n.Kind == pod.NoticePodRemoved {
		delete(p.sentPods, uid)
		p.emit(names, ManagerPath, objectManagerInterface+".InterfacesRemoved", path, []string{PodInterface})
		p.emit(names, ManagerPath, ManagerInterface+".PodRemoved", path, n.Ref.Namespace, n.Ref.Name)
		return
	}
	d, err := p.server.backend.GetByUID(uid)
	if err != nil {
		return // gone again: NoticePodRemoved follows
	}
	now := podProperties(&d)
	if n.Kind == pod.NoticePodNew {
		p.emit(names, ManagerPath, objectManagerInterface+".InterfacesAdded", path, map[string]properties{PodInterface: now})
		p.emit(names, ManagerPath, ManagerInterface+".PodNew", path, n.Ref.Namespace, n.Ref.Name)
	} else if changed := difference(p.sentPods[uid], now); len(changed) > 0 {
		p.emit(names, path, propertiesInterface+".PropertiesChanged", PodInterface, changed, []string{})
	}
	p.sentPods[uid] = now
}

func (p *pump) sendJob(n pod.Notice, names []string) {
	id := n.Job.ID
	if owner := n.Job.Owner; owner != "" && !slices.Contains(names, owner) {
		names = append(names, owner)
	}
	path, now := contract.JobPath(id), jobProperties(n.Job)
	switch n.Kind {
	case pod.NoticeJobNew:
		p.emit(names, ManagerPath, objectManagerInterface+".InterfacesAdded", path, map[string]properties{JobInterface: now})
		p.emit(names, ManagerPath, ManagerInterface+".JobNew", path, n.Job.Kind)
	default:
		if changed := difference(p.sentJobs[id], now); len(changed) > 0 {
			p.emit(names, path, propertiesInterface+".PropertiesChanged", JobInterface, changed, []string{})
		}
	}
	p.sentJobs[id] = now
	if n.Kind == pod.NoticeJobRemoved {
		delete(p.sentJobs, id)
		p.emit(names, ManagerPath, objectManagerInterface+".InterfacesRemoved", path, []string{JobInterface})
		p.emit(names, ManagerPath, ManagerInterface+".JobRemoved", path, n.Job.State)
	}
}

// emit sends one signal to each of the names.
func (p *pump) emit(names []string, path godbus.ObjectPath, name string, values ...any) {
	for _, to := range names {
		if err := emitTo(p.server.conn, to, path, name, values...); err != nil {
			p.server.log.Warn("could not send a signal", "signal", name, "to", to, "error", err)
		}
	}
}

// difference returns what of now is not the same in before.
func difference(before, now properties) properties {
	changed := make(properties)
	for name, v := range now {
		if old, ok := before[name]; !ok || !reflect.DeepEqual(old.Value(), v.Value()) {
			changed[name] = v
		}
	}
	return changed
}
