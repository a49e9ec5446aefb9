package native

import (
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/onhost"
)

// maxConfigBytes bounds a container's spec.
const maxConfigBytes = 4 << 20

// process is what the OCI runtime is to run. first is the PID of the container's first process.
func (x *execution) process(bundle string, first int) (*specs.Process, error) {
	var spec struct{ Process *specs.Process }
	if err := atomicfile.LoadJSON(filepath.Join(bundle, onhost.ConfigFile), maxConfigBytes, &spec); err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot read its bundle: %w", err)
	}
	if spec.Process == nil {
		return nil, pod.Errorf(pod.Internal, "cannot read its bundle: there is no process in it")
	}
	if spec.Process.OOMScoreAdj != nil {
		x.score = *spec.Process.OOMScoreAdj
	}
	alive := func() bool { return x.c.Unit.MainPID() == first }
	return crun.Process(*spec.Process, first, alive, crun.Exec{Args: x.p.Args, Env: x.p.Env, Dir: x.p.WorkingDir, User: x.p.User, TTY: x.p.TTY})
}
