package microvm_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/units"
)

// needsLimits skips a test where no limit of a unit acts, or where the VMs are emulated, whose
// limits are others.
func needsLimits(t *testing.T) {
	t.Helper()
	have, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers") // not there on a hybrid host
	for _, want := range []string{"cpu", "memory", "pids"} {
		if !strings.Contains(" "+strings.TrimSpace(string(have))+" ", " "+want+" ") {
			t.Skipf("this host has no cgroup controller %q, because the host below has not (try: make test-vm)", want)
		}
	}
	if host.Accel() != "kvm" {
		t.Skip("needs VMs with KVM (try: make test-vm)")
	}
}

// cgroup is the directory of the cgroup of a pod's slice, or of one of its services.
type cgroup string

// slice is the pod's cgroup, once the VM runs.
func (w *world) slice(p *corev1.Pod) cgroup { return cgroup(filepath.Dir(string(w.vm(p)))) }

// vm is the cgroup of the VMM and its helpers.
func (w *world) vm(p *corev1.Pod) cgroup {
	w.t.Helper()
	state, ok := w.config.Units.State(units.Names(p.Namespace, p.Name).VM)
	if !ok || state.ControlGroup == "" {
		w.t.Fatalf("the VM of pod %s has no cgroup: %+v", p.Name, state)
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, state.ControlGroup, "cgroup.procs")); err == nil {
			return cgroup(filepath.Join(root, state.ControlGroup))
		}
	}
	w.t.Fatalf("the cgroup %s is not there", state.ControlGroup)
	return ""
}

// processes are the PIDs in the cgroup itself.
func (c cgroup) processes() []string {
	pids, _ := os.ReadFile(filepath.Join(string(c), "cgroup.procs")) // the unit may have ended
	return strings.Fields(string(pids))
}

// read returns what a file of the cgroup says.
func (c cgroup) read(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(string(c), file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// number is the value of a file, or with a key that of one of its lines.
func (c cgroup) number(t testing.TB, file, key string) uint64 {
	t.Helper()
	return number(t, c.read(t, file), key)
}

// number finds a number in the text of a cgroup's file.
func number(t testing.TB, text, key string) uint64 {
	t.Helper()
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if key != "" && (len(fields) != 2 || fields[0] != key) {
			continue
		}
		if n, err := strconv.ParseUint(fields[len(fields)-1], 10, 64); err == nil {
			return n
		}
	}
	t.Fatalf("there is no number %s in %q", key, text)
	return 0
}

// usage is the CPU time that is used in a second, over some seconds.
func (c cgroup) usage(t testing.TB) time.Duration {
	t.Helper()
	before, began := c.number(t, "cpu.stat", "usage_usec"), time.Now()
	time.Sleep(5 * time.Second)
	used := time.Duration(c.number(t, "cpu.stat", "usage_usec")-before) * time.Microsecond
	return time.Duration(float64(used) / time.Since(began).Seconds())
}

// limited gives a container limits.
func limited(c *corev1.Container, cpu, memory string) {
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: quantity(cpu), corev1.ResourceMemory: quantity(memory)}
}

// TestHostLimits: the limits of a pod act in its VM, and those of its slice on what the VM takes of
// the host.
func TestHostLimits(t *testing.T) {
	needsLimits(t)
	w := newWorld(t)
	w.vms.PIDsLimit = 24
	w.restart()
	p := w.pod("while :; do :; done", "until [ -e /go ]; do sleep 0.2; done; exec dd if=/dev/zero of=/dev/null bs=100M count=1")
	limited(&p.Spec.Containers[0], "200m", "64Mi")
	limited(&p.Spec.Containers[1], "200m", "64Mi")
	w.create(p)
	// 200m and 200m, and a quarter of a CPU for the VMM. It would make the VM's start last, in a
	// CPU that is emulated.
	const quota = 650 * time.Millisecond
	if text := w.property(p, "CPUQuotaPerSecUSec"); text != quota.String() {
		t.Errorf("the CPU quota of the slice is %s, want %s", text, quota)
	}
	w.set(p, "CPUQuota=")
	for _, c := range p.Spec.Containers {
		if err := w.attempt(p, c.Name, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.set(p, "CPUQuota=65%")
	slice, life := w.slice(p), w.invocation(p)

	// The busy container takes what it may have, in the VM; on the host that is about as much, and
	// what it takes to run the VM.
	text, _ := w.exec(p, "a", "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.stat")
	if !strings.HasPrefix(text, "20000 100000\n") || number(t, text, "nr_throttled") == 0 {
		t.Errorf("the CPU limit in the VM: %s", text)
	}
	busy := slice.usage(t)
	if busy < 100*time.Millisecond || busy > quota+quota/10 {
		t.Errorf("with a busy container of 200m the pod uses %s a second", busy)
	}
	// What the host says is of the VM as a whole.
	throttled := slice.number(t, "cpu.stat", "nr_throttled")
	w.set(p, "CPUQuota=10%")
	squeezed := slice.usage(t)
	if squeezed > 130*time.Millisecond || slice.number(t, "cpu.stat", "nr_throttled") == throttled {
		t.Errorf("with a quota of 10%% on the host it uses %s a second", squeezed)
	}
	w.set(p, "CPUQuota=65%")
	t.Logf("CPU time a second: %s with a container that is busy, of 200m; %s with a quota of 100 ms on the host", busy.Round(time.Millisecond), squeezed.Round(time.Millisecond))

	// Processes are counted in the VM; on the host there are only those that run it.
	text, _ = w.exec(p, "b", "(trap 'read n < /sys/fs/cgroup/pids.current; echo now $n; kill $p' EXIT; for i in $(seq 40); do sleep 100 & p=\"$p $!\"; done)")
	if !strings.Contains(text, "now 24\n") || !strings.Contains(text, "fork") {
		t.Errorf("40 processes in a container that may have 24: %s", text)
	}
	tasks := slice.number(t, "pids.current", "")
	if limit := slice.read(t, "pids.max"); limit != strconv.Itoa(units.DefaultTasksMax) || tasks > 200 {
		t.Errorf("%d tasks on the host, of %s", tasks, limit)
	}
	t.Logf("%d tasks on the host", tasks)

	// A container that is out of memory ends, and nothing else does.
	if _, status := w.exec(p, "b", "touch /go"); status.Code != 0 {
		t.Fatalf("%+v", status)
	}
	if c := w.await(p, "b", pod.ContainerExited); c.Reason != pod.ReasonOOMKilled || c.ExitCode != 137 {
		t.Errorf("out of memory: %+v", c)
	}
	state := w.observe(p)
	if state.Sandbox.Stage != pod.SandboxReady || state.Containers["a"].Stage != pod.ContainerRunning || w.invocation(p) != life {
		t.Errorf("after a container's end for lack of memory: %+v", state)
	}
	w.checkMemory(t, p)
}

// checkMemory: the VM is below its limit on the host, and was so all the time.
func (w *world) checkMemory(t *testing.T, p *corev1.Pod) (limit uint64) {
	t.Helper()
	slice := w.slice(p)
	limit = slice.number(t, "memory.max", "")
	peak := slice.number(t, "memory.peak", "")
	if want := w.config.Runtime.PodLimits(p).MemoryMax; limit != want {
		t.Errorf("memory.max is %d, want %d", limit, want)
	}
	if current := slice.number(t, "memory.current", ""); current >= limit || peak > limit {
		t.Errorf("the pod takes %s of the host's memory, %s at most, and %s are the limit", mibs(current), mibs(peak), mibs(limit))
	}
	// The page cache may grow up to the limit, which is no harm.
	for _, event := range []string{"oom", "oom_kill"} {
		if n := slice.number(t, "memory.events", event); n != 0 {
			t.Errorf("memory.events of the slice: %s %d", event, n)
		}
	}
	t.Logf("the slice has taken %s of the host's memory at most, of %s", mibs(peak), mibs(limit))
	return limit
}

// set is what an administrator does to the slice of a pod.
func (w *world) set(p *corev1.Pod, property string) {
	w.t.Helper()
	if out, err := exec.Command("systemctl", "set-property", "--runtime", units.Names(p.Namespace, p.Name).Slice, property).CombinedOutput(); err != nil {
		w.t.Fatalf("systemctl: %v: %s", err, out)
	}
}

// property asks systemd for one of the slice of a pod.
func (w *world) property(p *corev1.Pod, name string) string {
	w.t.Helper()
	return show(w.t, units.Names(p.Namespace, p.Name).Slice, name)
}

// invocation names the life of a pod's VM.
func (w *world) invocation(p *corev1.Pod) string {
	w.t.Helper()
	return show(w.t, units.Names(p.Namespace, p.Name).VM, "InvocationID")
}

func show(t testing.TB, unit, property string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "-P", property, unit).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestOverhead: what a VM takes beside its containers is within what is reckoned for it, in the VM
// and on the host.
func TestOverhead(t *testing.T) {
	needsLimits(t)
	w := newWorld(t)
	p := w.pod("sleep 1000", "until [ -e /go ]; do sleep 0.2; done; for i in 1 2 3 4 5 6 7; do dd if=/dev/zero of=/dev/null bs=50M count=1000 & done; wait")
	// The directory of the host brings virtiofsd.
	shared := t.TempDir()
	p.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: shared}}}}
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	}
	m, agent, end := w.boot(t, p)
	defer end()
	memory, containers := uint64(vmConfig(t, m).VM.MemoryMiB)<<20, uint64(w.vms.MemoryBytes)
	empty := vmStats(t, agent)
	logGuest(t, memory, empty)
	w.logHost(t, p, memory, "with no container")
	for _, c := range p.Spec.Containers {
		if err := w.attempt(p, c.Name, 0, runtime.Mount{Source: shared, Destination: "/shared"}); err != nil {
			t.Fatal(err)
		}
	}
	running := vmStats(t, agent)
	t.Logf("with two containers %s are available", mibs(running.MemoryAvailable))
	if running.MemoryAvailable < containers {
		t.Errorf("the containers may have %s together, and %s are there", mibs(containers), mibs(running.MemoryAvailable))
	}
	w.logHost(t, p, memory, "with two containers")

	// Neither container has a limit, so one uses up the whole VM, which goes on.
	if _, status := w.exec(p, "b", "touch /go"); status.Code != 0 {
		t.Fatalf("%+v", status)
	}
	if c := w.await(p, "b", pod.ContainerExited); c.ExitCode != 137 {
		t.Errorf("the container that has used up the VM: %+v", c)
	}
	if text, status := w.exec(p, "a", "head -c 20000000 /dev/urandom > /shared/f; sha256sum < /shared/f > /dev/null; rm /shared/f; echo fine"); text != "fine\n" || status.Code != 0 {
		t.Errorf("the VM after that: %q, %+v", text, status)
	}
	w.logHost(t, p, memory, "when all of the VM's memory was in use")
	limit := w.checkMemory(t, p)
	slice := w.slice(p)
	own := slice.number(t, "memory.stat", "anon") + slice.number(t, "memory.stat", "kernel") // the VM's memory is shmem
	t.Logf("beside the VM's memory and the page cache it has %s, of %s that are reckoned", mibs(own), mibs(limit-memory))
	if own > (limit-memory)*3/4 {
		t.Errorf("the VMM, its helpers and the proxies have %s, and %s are reckoned", mibs(own), mibs(limit-memory))
	}
}

// TestOverheadShare: a large VM has as much for its containers as it should, although its kernel
// takes more.
func TestOverheadShare(t *testing.T) {
	needsLimits(t)
	w := newWorld(t)
	w.vms.MemoryBytes = 1536 << 20
	w.restart()
	m, agent, end := w.boot(t, w.pod("sleep 1000"))
	defer end()
	stats := vmStats(t, agent)
	logGuest(t, uint64(vmConfig(t, m).VM.MemoryMiB)<<20, stats)
	if stats.MemoryAvailable < uint64(w.vms.MemoryBytes) {
		t.Errorf("the containers may have %s together, and %s are there", mibs(uint64(w.vms.MemoryBytes)), mibs(stats.MemoryAvailable))
	}
}

// boot makes the VM of the newest pod and waits for its agent. The pod's network is there until end
// is called.
func (w *world) boot(t *testing.T, p *corev1.Pod) (m runtime.Sandbox, agent *client.Client, end func()) {
	t.Helper()
	ns := w.begin(t, p.Name)
	m = w.sandboxOf(p)
	m.Namespaces.Network = ns
	for limit := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := w.config.Runtime.ReadySandbox(t.Context(), m)
		if err == nil {
			return m, agentOf(t, m), func() { ns.Close() }
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
}

func logGuest(t *testing.T, memory uint64, s wire.VMStats) {
	t.Helper()
	t.Logf("a VM of %s: MemTotal %s, MemAvailable %s when the agent answers: kernel, agent and initramfs take %s", mibs(memory), mibs(s.MemoryTotal),
		mibs(s.MemoryAvailable), mibs(memory-s.MemoryAvailable))
}

func mibs(bytes uint64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// vmStats asks the agent what the VM uses.
func vmStats(t *testing.T, agent *client.Client) wire.VMStats {
	t.Helper()
	reply, err := agent.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return reply.VM
}

// logHost logs what a pod takes of the host's memory: by the kernel's count, and of each process
// what is not the VM's memory.
func (w *world) logHost(t *testing.T, p *corev1.Pod, memory uint64, when string) {
	t.Helper()
	slice, vm := w.slice(p), w.vm(p)
	var stat strings.Builder // shmem: the VM's memory, when virtiofsd has a part in it
	for _, key := range []string{"anon", "shmem", "kernel", "file"} {
		fmt.Fprintf(&stat, ", %s %s", key, mibs(vm.number(t, "memory.stat", key)))
	}
	scratch, err := os.Stat(filepath.Join(w.state, "pods", string(p.UID), "vm", "scratch.img"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&stat, "; the scratch disk, which is in memory here, has %s", mibs(uint64(scratch.Sys().(*syscall.Stat_t).Blocks)*512))
	t.Logf("%s: the slice has %s, at most %s; the VM unit %s%s", when, mibs(slice.number(t, "memory.current", "")), mibs(slice.number(t, "memory.peak", "")),
		mibs(vm.number(t, "memory.current", "")), stat.String())
	services, err := filepath.Glob(string(slice) + "/*.service")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, service := range services {
		for _, pid := range cgroup(service).processes() {
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			fmt.Fprintf(&text, "; %s: %s", strings.TrimSpace(string(comm)), mibs(ownMemory(pid, memory)))
		}
	}
	t.Logf("%s, own memory%s", when, text.String())
}

// ownMemory is what a process has beside the memory of a VM, the files that it maps left out: they
// are in the page cache, for all (proc_pid_smaps(5)).
func ownMemory(pid string, memory uint64) (own uint64) {
	f, err := os.Open("/proc/" + pid + "/smaps")
	if err != nil {
		return 0 // it has ended
	}
	defer f.Close()
	guest := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if from, to, ok := strings.Cut(fields[0], "-"); ok {
			a, _ := strconv.ParseUint(from, 16, 64)
			b, _ := strconv.ParseUint(to, 16, 64)
			guest = b-a >= memory/2
		}
		if fields[0] == "Anonymous:" && !guest {
			kib, _ := strconv.ParseUint(fields[1], 10, 64)
			own += kib << 10
		}
	}
	return own
}
