package guest

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// execProcess is what crun is to run. first is the PID of the container's first process.
func (c *container) execProcess(r *wire.Exec, first int) (*specs.Process, error) {
	p, err := crun.Process(*c.process, first, c.alive, crun.Exec{Args: r.Args, Env: r.Env, Dir: r.Cwd, User: r.User, TTY: r.TTY})
	switch errkind.KindOf(err) {
	case "":
		return p, nil
	case errkind.Conflict:
		return nil, wire.Errorf(wire.CodeContainerNotRunning, "%v", err)
	}
	e := wire.Errorf(wire.CodeExecFailed, "%v", err)
	e.Exit = 126
	return nil, e
}
