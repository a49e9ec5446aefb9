package bench

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// process is what a process has, in KiB: private and its share (Pss).
type process struct {
	pid          int
	name, cgroup string
	private, pss int
}

// processes lists those of the host. One that ends meanwhile is not among them.
func processes() ([]process, error) {
	files, err := filepath.Glob("/proc/[0-9]*/smaps_rollup")
	if err != nil {
		return nil, err
	}
	var list []process
	for _, file := range files {
		dir := filepath.Dir(file)
		text, err := os.ReadFile(file)
		name, err1 := os.ReadFile(filepath.Join(dir, "comm"))
		cgroup, err2 := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil || err1 != nil || err2 != nil {
			continue
		}
		p := process{name: strings.TrimSpace(string(name)), cgroup: string(cgroup)}
		p.pid, _ = strconv.Atoi(filepath.Base(dir))
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kb, _ := strconv.Atoi(fields[1])
			switch fields[0] {
			case "Private_Clean:", "Private_Dirty:":
				p.private += kb
			case "Pss:":
				p.pss += kb
			}
		}
		list = append(list, p)
	}
	return list, nil
}

// sum adds up those that match.
func sum(list []process, match func(process) bool) (total process) {
	for _, p := range list {
		if match(p) {
			total.private, total.pss = total.private+p.private, total.pss+p.pss
		}
	}
	return total
}

func isDaemon(p process) bool { return strings.Contains(p.cgroup, "/magikpodd.service") }

func isInit(p process) bool { return p.pid == 1 }

// inPod: of a pod of a namespace.
func inPod(namespace string) func(process) bool {
	return func(p process) bool { return strings.Contains(p.cgroup, "magikpod-"+namespace+"-") }
}

// ofContainer: in the unit of the container that is called main.
func ofContainer(p process) bool { return strings.Contains(p.cgroup, "-main.service") }

// ofPodman: what podman has for a pod beside its containers.
func ofPodman(p process) bool { return p.name == "conmon" || p.name == "catatonit" }
