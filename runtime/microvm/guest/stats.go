package guest

import (
	"os"
	"strconv"
	"strings"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// stats tells what the machine and its containers use.
func (s *Server) stats() (any, error) {
	list, err := s.list("")
	if err != nil {
		return nil, err
	}
	reply := wire.StatsReply{Type: "stats", VM: vmStats(), Containers: []wire.ContainerStats{}}
	for _, c := range list {
		c.mu.Lock()
		made := c.state != wire.StateCreating
		c.mu.Unlock()
		if !made {
			continue
		}
		g := c.cgroup
		stats := wire.ContainerStats{
			Container: c.name, CPUUsec: g.value("cpu.stat", "usage_usec"), Memory: g.number("memory.current"),
			MemoryLimit: g.number("memory.max"), PIDs: g.number("pids.current"),
		}
		if inactive := g.value("memory.stat", "inactive_file"); inactive < stats.Memory {
			stats.MemoryWorkingSet = stats.Memory - inactive
		}
		reply.Containers = append(reply.Containers, stats)
	}
	return reply, nil
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
