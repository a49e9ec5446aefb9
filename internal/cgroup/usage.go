package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Usage is what the processes of a cgroup and of those below it use. nil: it is not counted,
// because the controller is not enabled there.
type Usage struct {
	CPUUsec     *uint64 // CPU time, in microseconds
	Memory      *uint64 // bytes, the page cache included
	WorkingSet  *uint64 // bytes of Memory without the page cache that was not used lately
	MemoryLimit *uint64 // bytes; nil also: there is none
	PIDs        *uint64 // processes and threads
	OOMKills    *uint64 // processes killed because the memory was used up
}

// ReadUsage reads the usage of a cgroup.
func ReadUsage(dir string) (Usage, error) {
	var u Usage
	var inactive *uint64
	for _, v := range []struct {
		to        **uint64
		file, key string
	}{
		{&u.CPUUsec, "cpu.stat", "usage_usec"}, {&u.Memory, "memory.current", ""}, {&inactive, "memory.stat", "inactive_file"}, {&u.MemoryLimit, "memory.max", ""},
		{&u.PIDs, "pids.current", ""}, {&u.OOMKills, "memory.events", "oom_kill"},
	} {
		n, err := number(dir+"/"+v.file, v.key)
		if err != nil {
			return Usage{}, err
		}
		*v.to = n
	}
	if u.Memory != nil {
		set := *u.Memory
		if inactive != nil {
			set -= min(*inactive, set)
		}
		u.WorkingSet = &set
	}
	return u, nil
}

// number reads the number of a key of a flat keyed file, or the only one of a file for an empty
// key; nil when there is none, or it is "max".
func number(path, key string) (*uint64, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		name, value, found := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case key == "" && !found:
			value = name
		case name != key:
			continue
		}
		if value == "max" {
			return nil, nil
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("cannot parse %s: %w", path, err)
		}
		return &n, nil
	}
	return nil, nil
}
