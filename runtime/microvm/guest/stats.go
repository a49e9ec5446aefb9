package guest

import (
	"os"
	"strconv"
	"strings"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// stats returns what the VM and its containers use.
func (s *Server) stats() (any, error) {
	reply := wire.StatsReply{Type: "stats", VM: vmStats(), Containers: []wire.ContainerStats{}}
	for _, c := range s.all() {
		c.mu.Lock()
		made := c.state != stateCreating
		c.mu.Unlock()
		if !made {
			continue
		}
		u, err := cgroup.ReadUsage(c.cgroup.path)
		if err != nil && !cgroup.Gone(err) {
			return nil, err
		}
		reply.Containers = append(reply.Containers, wire.ContainerStats{
			Container: c.name, CPUUsec: value(u.CPUUsec), Memory: value(u.Memory), MemoryWorkingSet: value(u.WorkingSet), MemoryLimit: value(u.MemoryLimit),
			PIDs: value(u.PIDs),
		})
	}
	return reply, nil
}

// value is what is counted; 0 for what is not.
func value(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}

func vmStats() wire.VMStats {
	var m wire.VMStats
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kib, _ := strconv.ParseUint(fields[1], 10, 64)
			switch fields[0] {
			case "MemTotal:":
				m.MemoryTotal = kib << 10
			case "MemAvailable:":
				m.MemoryAvailable = kib << 10
			}
		}
	}
	return m
}
