package dbus

import (
	"testing"

	"github.com/magikrun/magikpod/pod"
)

// TestOwnerOfAJobThatEndsAtOnce checks that a client is told the end of its job even when that is just being told to others.
func TestOwnerOfAJobThatEndsAtOnce(t *testing.T) {
	p := newPump(nil)
	p.notify(pod.Notice{Kind: pod.NoticeJobRemoved, Job: pod.JobInfo{ID: 7, State: "done"}})
	p.queue = nil // the end is being told, to nobody in particular
	owner := p.owner(7)
	p.setOwner(7, ":1.1")
	p.disown(7, owner)
	if len(p.queue) != 1 || p.queue[0].Job.ID != 7 || p.owner(7) != ":1.1" {
		t.Errorf("the queue is %+v, the owner %q", p.queue, p.owner(7))
	}
	p.disown(7, ":1.1")
	if len(p.owners) != 0 {
		t.Errorf("owners are left: %v", p.owners)
	}
}
