package native

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/crun"
)

// versionTimeout is how long an OCI runtime may take to print its version.
const versionTimeout = 30 * time.Second

// ociKind is what one OCI runtime has that others do not.
type ociKind struct {
	name string
	// cgroups are the global flags that say who makes the container's cgroup.
	cgroups []string
	// subCgroup is the child cgroup of the unit that magikshim launch moves itself to, because the
	// OCI runtime wants the unit's own to be empty. Empty: the OCI runtime leaves cgroups alone,
	// and the container is in the unit's own.
	subCgroup string
	// ownGroup says that `exec` leaves the process in the cgroup that was made for it.
	ownGroup bool
	// cloned is what crun has in its environment when it starts itself anew from a read-only mount
	// of its program (CVE-2019-5736). With that mount made before, it need not.
	cloned string
	// consoleSocket says that `exec` sends the master of the process's terminal over a socket, and
	// waits for the process all the same. Without it `exec` copies between its own terminal and the
	// process's.
	consoleSocket bool
}

// ociKinds are the OCI runtimes that can be used, the preferred one first. All of them take --root,
// --log, --log-format=json and the verbs create, start and exec of runc; state below --root is one
// directory for each container, named by its ID.
var ociKinds = []ociKind{
	// crun with the cgroupfs manager tries for seconds to enable controllers in a cgroup that has
	// processes; disabled, limits and device rules are the unit's alone.
	{name: "crun", cgroups: []string{"--cgroup-manager=disabled"}, ownGroup: true, consoleSocket: true, cloned: "_LIBCONTAINER_CLONED_BINARY=1"},
	{name: "runc", subCgroup: "launch", ownGroup: true},
	{name: "youki", subCgroup: "launch", consoleSocket: true},
}

// searchPath is where OCI runtimes are looked for, whatever the daemon's $PATH.
var searchPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// ociRuntime is an OCI runtime of this host.
type ociRuntime struct {
	ociKind
	path    string // absolute
	version string // "1.8.1"; empty when it prints none
	root    string // its state: RunDir/runtime/NAME
	clone   clone  // of path
}

// findRuntime finds the OCI runtime by name, by absolute path (whose last element must begin with a
// known name), or, for "", the first that is installed. Unsupported: there is none.
func findRuntime(ctx context.Context, wanted, runDir string) (*ociRuntime, error) {
	for _, kind := range ociKinds {
		var path string
		switch {
		case filepath.IsAbs(wanted) && strings.HasPrefix(filepath.Base(wanted), kind.name):
			path = wanted
		case wanted == "" || wanted == kind.name:
			path = lookPath(kind.name)
		}
		if path == "" {
			continue
		}
		r := &ociRuntime{ociKind: kind, path: path, root: filepath.Join(runDir, "runtime", kind.name)}
		if err := r.askVersion(ctx); err != nil {
			return nil, err
		}
		return r, nil
	}
	if wanted == "" {
		return nil, pod.Errorf(pod.Unsupported, "cannot find an OCI runtime: none of crun, runc and youki is installed (try: apt-get install crun)")
	}
	return nil, pod.Errorf(pod.Unsupported, "cannot find the OCI runtime %q: it is not installed, or none of crun, runc and youki", wanted)
}

func lookPath(name string) string {
	for _, dir := range searchPath {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// askVersion runs `NAME --version`: the version is the first word that begins with a digit.
func (r *ociRuntime) askVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.path, "--version")
	cmd.Env = r.env()
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return pod.Errorf(pod.Unsupported, "cannot use the OCI runtime %s: %w", r.path, err)
	}
	for word := range strings.FieldsSeq(string(out[:min(len(out), 4096)])) {
		if word[0] >= '0' && word[0] <= '9' {
			r.version = word
			break
		}
	}
	return nil
}

// env is the whole environment of the OCI runtime.
func (r *ociRuntime) env() []string {
	return []string{"PATH=" + strings.Join(searchPath, ":"), "LANG=C.UTF-8"}
}

func (r *ociRuntime) argv(log string, rest ...string) []string {
	argv := append([]string{r.path, "--root=" + r.root, "--log=" + log, "--log-format=json"}, r.cgroups...)
	return append(argv, rest...)
}

// createArgv creates the container of a bundle.
func (r *ociRuntime) createArgv(log, bundle, pidFile, id string) []string {
	return r.argv(log, "create", "--bundle="+bundle, "--pid-file="+pidFile, id)
}

// startArgv starts a created container.
func (r *ociRuntime) startArgv(log, id string) []string { return r.argv(log, "start", id) }

// execArgv runs the process of a file or pipe (OCI runtime-spec, process) in a running container. With
// cgroup, an OCI runtime that has cgroups of its own puts it in that child of the container's.
func (r *ociRuntime) execArgv(log, process, pidFile, cgroup string, tty bool, id string) []string {
	rest := []string{"exec", "--process=" + process, "--pid-file=" + pidFile}
	if r.name == "runc" {
		rest = append(rest, "--cgroup="+cgroup)
	}
	if tty && r.consoleSocket {
		rest = append(rest, "--console-socket="+crun.ConsolePath)
	}
	return r.argv(log, append(rest, id)...)
}

// cgroupsPath is linux.cgroupsPath of a container whose unit has this cgroup (relative, without a
// leading slash).
func (r *ociRuntime) cgroupsPath(unitCgroup string) string {
	if r.subCgroup == "" {
		return ""
	}
	return "/" + unitCgroup + "/" + runtime.ContainerCgroup
}
