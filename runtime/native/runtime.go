package native

import (
	"context"
	"os"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/runtime/onhost"
	"github.com/magikrun/magikpod/units"
)

// firstCgroup is the child cgroup for the processes of a container with CAP_SYS_PTRACE that are no
// exec's: the engine freezes it and theirs.
const firstCgroup = "first"

// Config is what a [Runtime] is made from.
type Config struct {
	RunDir string // /run/magikpod: the OCI runtime's state is below it
	// ShimPath is the path of magikshim.
	ShimPath string
	// Runtime is the OCI runtime: crun, runc, youki, or an absolute path; empty: the first of them
	// that is installed.
	Runtime string
	// PIDsLimit is how many processes and threads a pod may have; 0: [units.DefaultTasksMax].
	PIDsLimit int64
}

// Runtime runs containers by an OCI runtime. It is an engine.Runtime.
type Runtime struct {
	onhost.Base
	config Config
	oci    *ociRuntime // one without a name: none was found, and class says why
	class  pod.ClassInfo
	facts  oci.HostFacts
}

// New makes one. That no OCI runtime is installed is no error: Class says so.
func New(ctx context.Context, config Config) (*Runtime, error) {
	r := &Runtime{config: config, class: pod.ClassInfo{Name: pod.ClassContainers}, facts: hostFacts()}
	var err error
	if r.oci, err = findRuntime(ctx, config.Runtime, config.RunDir); err != nil {
		r.oci, r.class.Reason = &ociRuntime{}, err.Error()
		return r, nil
	}
	r.class.Available, r.class.Reason = true, r.oci.name+" "+r.oci.version
	if err := os.MkdirAll(r.oci.root, 0o700); err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot make the runtime class %s: %w", r.class.Name, err)
	}
	return r, nil
}

// Class says whether the class can be used, and what runs its containers.
func (r *Runtime) Class() pod.ClassInfo { return r.class }

// PodLimits are those of the slice of a pod.
func (r *Runtime) PodLimits(p *corev1.Pod) units.Limits {
	return units.PodLimits(p).WithTasks(r.config.PIDsLimit)
}

// Prepare builds the OCI spec, and what magikshim launch has to do before the OCI runtime gets it.
func (r *Runtime) Prepare(_ context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error) {
	launch, mounts := onhost.Launch(s, a, config)
	in := oci.Input{
		Pod: config.Pod, Container: config.Container, Image: config.Image, Env: config.Env, Mounts: mounts,
		Rootfs: launch.Rootfs.Target, ShmDir: s.ShmDir, Hostname: s.Hostname, CgroupsPath: r.oci.cgroupsPath(a.Cgroup), Host: r.facts,
		Namespaces: oci.Namespaces{
			Network: nsfile.Path(s.Namespaces.Network), IPC: nsfile.Path(s.Namespaces.IPC), UTS: nsfile.Path(s.Namespaces.UTS), PID: nsfile.Path(s.Namespaces.PID),
		},
	}
	if sc := config.Container.SecurityContext; sc != nil && sc.Privileged != nil && *sc.Privileged {
		in.Host.Devices = hostDevices("/dev")
	}
	spec, err := oci.Spec(in)
	if err != nil {
		return runtime.Launch{}, err
	}
	traces := runtime.Traces(config.Pod, config.Container)
	if traces { // beside those of execs
		launch.FirstCgroup = firstCgroup
	}
	launch.SubCgroup, launch.Env, launch.Cloned, launch.PIDFile = r.oci.subCgroup, r.oci.env(), r.oci.cloned, a.PIDFile
	launch.Argv, launch.Start = r.oci.createArgv(a.Log, a.Bundle, a.PIDFile, a.ID), r.oci.startArgv(a.Log, a.ID)
	return runtime.Launch{
		Runtime: r.oci.name, Files: map[string]any{onhost.ConfigFile: spec, onhost.LaunchFile: launch}, Argv: onhost.Argv(r.config.ShimPath, a),
		OwnPID: s.Namespaces.PID == nil && !config.Pod.Spec.HostPID, Traces: traces, Delegate: r.oci.subCgroup != "",
	}, nil
}

// AwaitCommand waits until the OCI runtime's process has executed the container's command.
func (r *Runtime) AwaitCommand(pid int) bool { return r.oci.awaitCommand(pid) }

// Exec runs a process by the OCI runtime. Invalid: the OCI runtime cannot start it (no such
// command, user or directory).
func (r *Runtime) Exec(ctx context.Context, c runtime.Running, p runtime.Process) (runtime.ExitStatus, error) {
	if r.oci.name != c.Runtime {
		return runtime.ExitStatus{}, pod.Errorf(pod.Unavailable, "it was started by %s, which is not in use any more", c.Runtime)
	}
	x := &execution{c: c, kind: r.oci, p: p}
	return x.run(ctx)
}
