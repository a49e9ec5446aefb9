package microvm_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/guestimage"
	"github.com/magikrun/magikpod/runtime/microvm/supervise"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// BenchmarkPod measures a pod with one container, alternating with bare QEMU that boots the same
// kernel and initramfs to the agent's first reply (emulated, over vhost-device-vsock): make
// vm-host-test RUN='^$$' TESTFLAGS='-bench=Pod -benchtime=5x'
//
//	s-bare     from the start of QEMU to the agent's first reply
//	s-agent    from CreateSandbox to a VM that has its network
//	s-pod      from CreateSandbox to a container that runs
//	s-delete   DeleteSandbox and Forget
//	ms-ping    a request to the agent and its reply
//	ms-exec    Exec of a program that ends at once
//	MB-beyond  memory of the VM unit's processes beyond the VM's, mapped files left out
//
// Medians.
func BenchmarkPod(b *testing.B) {
	w := newWorld(b)
	class := w.config.Runtime.(*microvm.Runtime)
	guest, err := class.PrepareGuest(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	measured := map[string][]float64{}
	timed := func(name string, unit time.Duration, since time.Time) {
		measured[name] = append(measured[name], float64(time.Since(since))/float64(unit))
	}
	for b.Loop() {
		begin := time.Now()
		bareBoot(b, guest)
		timed("s-bare", time.Second, begin)

		p := w.pod("sleep 1000")
		begin = time.Now()
		ns := w.begin(b, p.Name)
		m := w.sandboxOf(p)
		m.Namespaces.Network = ns
		for class.ReadySandbox(b.Context(), m) != nil { // until the supervisor has made the tap
			time.Sleep(5 * time.Millisecond)
		}
		timed("s-agent", time.Second, begin)
		if err := w.attempt(p, "a", 0); err != nil {
			b.Fatal(err)
		}
		timed("s-pod", time.Second, begin)
		agent := agentOf(b, m)
		for range 5 {
			begin = time.Now()
			if _, err := agent.Ping(b.Context()); err != nil {
				b.Fatal(err)
			}
			timed("ms-ping", time.Millisecond, begin)
			begin = time.Now()
			if _, err := w.manager.Exec(b.Context(), pod.RefOf(p), "a", runtime.Process{Args: []string{"true"}}); err != nil {
				b.Fatal(err)
			}
			timed("ms-exec", time.Millisecond, begin)
		}
		measured["MB-beyond"] = append(measured["MB-beyond"], w.beyond(p))
		begin = time.Now()
		w.delete(p)
		timed("s-delete", time.Second, begin)
		ns.Close()
	}
	for name, values := range measured {
		slices.Sort(values)
		b.ReportMetric(values[len(values)/2], name)
	}
}

// begin makes the network and the sandbox of the newest pod, as the daemon does.
func (w *world) begin(b testing.TB, name string) *os.File {
	b.Helper()
	p := w.pods[len(w.pods)-1]
	ns, err := netsetup.NewNamespace()
	if err != nil {
		b.Fatal(err)
	}
	connected := make(chan error, 1)
	go func() {
		_, err := w.network.Setup(b.Context(), netsetup.PodNetwork{UID: p.UID, Name: name}, ns)
		connected <- err
	}()
	err = w.manager.CreateSandbox(b.Context(), runtime.SandboxConfig{Pod: p, Network: runtime.Network{NetNS: ns, Hostname: name}, LogDir: w.logDir(p)})
	if netErr := <-connected; err != nil || netErr != nil {
		b.Fatal(err, netErr)
	}
	return ns
}

// sandboxOf names the sandbox of a pod.
func (w *world) sandboxOf(p *corev1.Pod) runtime.Sandbox {
	return runtime.Sandbox{Ref: pod.RefOf(p), RunDir: filepath.Join(w.run, "pods", string(p.UID))}
}

// vmConfig is what the supervisor of a VM was given.
func vmConfig(tb testing.TB, m runtime.Sandbox) supervise.Config {
	tb.Helper()
	config, err := supervise.ReadConfig(filepath.Join(m.RunDir, "vm/vmm.json"))
	if err != nil {
		tb.Fatal(err)
	}
	return *config
}

// agentOf speaks to the agent of a VM.
func agentOf(tb testing.TB, m runtime.Sandbox) *client.Client {
	tb.Helper()
	v := vmConfig(tb, m).VM.Vsock
	if v.Kind == vmm.VsockVhost {
		return client.New(client.Address{CID: v.CID}.Dialer())
	}
	return client.New(client.Address{Path: v.Path}.Dialer())
}

// bareBoot starts QEMU as a person would, waits for the agent's first reply, and ends it.
func bareBoot(b *testing.B, guest guestimage.Image) {
	b.Helper()
	dir := b.TempDir()
	vsock := filepath.Join(dir, "v")
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	ready, err := net.Listen("unix", fmt.Sprintf("%s_%d", vsock, vmm.ReadyPort))
	if err != nil {
		b.Fatal(err)
	}
	defer ready.Close()
	start := func(argv ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		return cmd
	}
	device := start("/usr/bin/vhost-device-vsock", "--guest-cid", "42", "--socket", vsock+".vhost", "--uds-path", vsock)
	for {
		if _, err := os.Stat(vsock + ".vhost"); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	qemu := start("/usr/bin/qemu-system-x86_64", "-M", "pc,memory-backend=mem", "-object", "memory-backend-memfd,id=mem,size=224M,share=on", "-m", "224",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "socket,id=vsock,path="+vsock+".vhost", "-device", "vhost-user-vsock-pci,chardev=vsock",
		"-kernel", guest.Kernel, "-initrd", guest.Initrd, "-append", vmm.Cmdline)
	if conn, err := ready.Accept(); err == nil {
		conn.Close()
	}
	_, err = client.New(client.Hybrid(vsock, vmm.AgentPort)).WaitReady(ctx)
	cancel()
	_ = qemu.Wait() // they were killed
	_ = device.Wait()
	if err != nil {
		b.Fatal(err)
	}
}

// beyond is the memory that the processes of a VM unit have without the VM's and without mapped
// files, in MB.
func (w *world) beyond(p *corev1.Pod) float64 {
	memory := uint64(vmConfig(w.t, w.sandboxOf(p)).VM.MemoryMiB) << 20
	var total uint64
	for _, pid := range w.vm(p).processes() {
		total += ownMemory(pid, memory)
	}
	return float64(total) / 1e6
}
