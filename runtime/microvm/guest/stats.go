package guest

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// stats tells what the machine and its containers use.
func (s *Server) stats(r *wire.Stats) (any, error) {
	list, err := s.list(r.Container)
	if err != nil {
		return nil, err
	}
	reply := wire.StatsReply{Type: "stats", Time: time.Now(), Machine: vmStats(), Containers: []wire.ContainerStats{}}
	for _, c := range list {
		c.mu.Lock()
		made := c.state != wire.StateCreating
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
			PIDs: value(u.PIDs), OOMKills: value(u.OOMKills),
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

// userTick is the length of a clock tick in /proc/stat, in microseconds (USER_HZ is 100 on all of Linux).
const userTick = 10000

func vmStats() wire.MachineStats {
	var m wire.MachineStats
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
	if data, err := os.ReadFile("/proc/stat"); err == nil {
		line, _, _ := strings.Cut(string(data), "\n")
		for i, field := range strings.Fields(line) {
			// cpu user nice system idle iowait irq softirq steal guest guest_nice: idle and waiting are no use, and guests are counted in user.
			if i == 0 || i == 4 || i == 5 || i > 8 {
				continue
			}
			ticks, _ := strconv.ParseUint(field, 10, 64)
			m.CPUUsec += ticks * userTick
		}
	}
	return m
}

// uptime is the time since the VM has booted.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
