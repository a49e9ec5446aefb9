package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/tests/host"
)

// settle is how long leftovers may still be going away: systemd forgets units, and the kernel
// cgroups and links, a while after their end.
var settle = host.Patience(10 * time.Second)

// world lists what pods make in systemd, in the kernel and on disk, one thing a line. The slice of
// a namespace is no leftover: it may carry limits.
func world() ([]string, error) {
	var lines []string
	for _, look := range []func() ([]string, error){units, mounts, network, cgroups, processes, files} {
		more, err := look()
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	slices.Sort(lines)
	return lines, nil
}

// output returns the lines of a command's output, each behind a word.
func output(word string, argv ...string) ([]string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		lines = append(lines, word+" "+strings.TrimSpace(line))
	}
	return lines, nil
}

func units() ([]string, error) {
	lines, err := output("unit", "systemctl", "list-units", "--all", "--plain", "--no-legend", "magikpod-*-*")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line)[:2], " ")
	}
	return lines, err
}

func mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if point := strings.Fields(s.Text())[4]; strings.Contains(point, "magikpod") && point != "/var/lib/magikpod" {
			lines = append(lines, "mount "+point)
		}
	}
	return lines, nil
}

// ofPods leaves out what magikpod's own table has without pods: of that one only the elements of
// its maps count.
func ofPods(rules []string) []string {
	var kept []string
	own, elements := false, false
	for _, line := range rules {
		switch {
		case strings.HasPrefix(line, "nft table "):
			own = line == "nft table inet magikpod {"
		case strings.Contains(line, "elements = {"):
			elements = true
		}
		if line != "nft " && (!own || elements) {
			kept = append(kept, line)
		}
		elements = elements && !strings.HasSuffix(line, "}")
	}
	return kept
}

// network lists links and firewall rules. The bridge and the rules that all pods share go some time
// after the last pod.
func network() ([]string, error) {
	links, err := output("link", "ip", "-o", "link", "show")
	if err != nil {
		return nil, err
	}
	for i, line := range links {
		links[i] = "link " + strings.TrimSuffix(strings.Fields(line)[2], ":")
	}
	links = slices.DeleteFunc(links, func(line string) bool { return line == "link magikpod0" })
	rules, err := output("nft", "nft", "list", "ruleset")
	return append(links, ofPods(rules)...), err
}

func cgroups() ([]string, error) {
	return find("/sys/fs/cgroup", func(path string, d fs.DirEntry) bool {
		match, _ := filepath.Match("magikpod-*-*", d.Name())
		return match && d.IsDir()
	}, "cgroup")
}

// processes lists those of pods, and the namespaces that the daemon holds open: both keep a pod's
// namespaces alive.
func processes() ([]string, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/comm")
	var lines []string
	for _, path := range procs {
		comm, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		switch name := strings.TrimSpace(string(comm)); name {
		case "magikshim", "magikwasm", "magikvmm", "crun", "runc":
			lines = append(lines, "process "+name+" "+filepath.Base(filepath.Dir(path)))
		case "magikpodd":
			lines = append(lines, heldNamespaces(filepath.Join(filepath.Dir(path), "fd"))...)
		}
	}
	return lines, err
}

// heldNamespaces lists the namespaces among a process' files.
func heldNamespaces(dir string) []string {
	fds, _ := os.ReadDir(dir) // the process may have ended
	var lines []string
	for _, fd := range fds {
		target, _ := os.Readlink(filepath.Join(dir, fd.Name()))
		if kind, _, ok := strings.Cut(target, ":["); ok && slices.Contains([]string{"net", "mnt", "ipc", "uts", "pid"}, kind) {
			lines = append(lines, "the daemon holds "+target)
		}
	}
	return lines
}

// files lists what the daemon and the OCI runtimes keep, but for images.
func files() ([]string, error) {
	var lines []string
	for _, dir := range []string{"/run/magikpod", "/var/lib/magikpod", "/run/crun", "/run/runc", "/var/log/pods"} {
		more, err := find(dir, func(path string, _ fs.DirEntry) bool {
			// One directory for each OCI runtime, in which crun keeps seccomp filters that it has
			// compiled.
			return !strings.HasPrefix(path, "/var/lib/magikpod/images/") && !strings.HasPrefix(path, "/var/lib/magikpod/wasm") &&
				!strings.HasPrefix(path, "/var/lib/magikpod/microvm") && filepath.Dir(path) != "/run/magikpod/runtime" &&
				!strings.HasPrefix(path, "/run/magikpod/runtime/crun/.cache")
		}, "file")
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	return lines, nil
}

// find lists the paths below dir that keep likes.
func find(dir string, keep func(string, fs.DirEntry) bool, word string) ([]string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && keep(path, d) {
			lines = append(lines, word+" "+path)
		}
		return err
	})
	return lines, err
}

// leftovers compares the world with what it was, until it is the same or has had its time; "" when
// nothing is left and nothing is missing.
func leftovers(look func() ([]string, error), before []string) (string, error) {
	var diff string
	for deadline := time.Now().Add(settle); ; time.Sleep(100 * time.Millisecond) {
		after, err := look()
		if err != nil {
			return "", err
		}
		if diff = cmp.Diff(before, after); diff == "" || time.Now().After(deadline) {
			return diff, nil
		}
	}
}

// ofNamespace lists the units and cgroups of one namespace.
func ofNamespace(ns string) func() ([]string, error) {
	return func() ([]string, error) {
		all, err := units()
		if err != nil {
			return nil, err
		}
		more, err := cgroups()
		all = append(make([]string, 0), append(all, more...)...)
		return slices.DeleteFunc(all, func(line string) bool { return !strings.Contains(line, "magikpod-"+ns+"-") }), err
	}
}
