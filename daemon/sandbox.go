package daemon

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/volume"
)

// sandbox is what starts of containers need to know of the pod's sandbox.
type sandbox struct {
	prepared *volume.Prepared
	etc      []runtime.Mount
}

// makeSandbox makes the network namespace, its network and the volumes, and the runtime's sandbox,
// as far as possible at the same time.
func (w *worker) makeSandbox(ctx context.Context, p *corev1.Pod) (_ *sandbox, ips []netip.Addr, err error) {
	created := false // the runtime itself undoes what it could not complete, and nothing but that
	defer func() {
		if err != nil {
			w.unmakeSandbox(context.WithoutCancel(ctx), created)
		}
	}()
	hostname, _, err := w.d.hostnameOf(p)
	if err != nil {
		return nil, nil, err
	}
	prepared, err := w.d.volumes.Prepare(ctx, p, w.d.volumeSources(p))
	if err != nil {
		return nil, nil, err
	}
	config := runtime.SandboxConfig{
		Pod: p, SharedTmpfs: prepared.Tmpfs(),
		Network: runtime.Network{Host: p.Spec.HostNetwork, Hostname: hostname},
		LogDir:  w.d.podLogDir(w.ref),
	}
	if p.Spec.HostNetwork {
		if err := w.manager.CreateSandbox(ctx, config); err != nil {
			return nil, nil, err
		}
		created = true
		etc, err := w.etcFiles(p, nil)
		return &sandbox{prepared, etc}, w.d.hostIPs(), err
	}
	want, err := netsetup.NetworkOf(p)
	if err != nil {
		return nil, nil, err
	}
	ns, err := w.d.networks.NewNamespace()
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	config.Network.NetNS = ns
	var result netsetup.Result
	var netErr error
	var wg sync.WaitGroup
	creating, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wg.Go(func() {
		if result, netErr = w.d.networks.Setup(ctx, want, ns); netErr != nil {
			cancel(netErr) // a VM waits for its network
		}
	})
	err = w.manager.CreateSandbox(creating, config)
	created = err == nil
	wg.Wait()
	if netErr != nil && errors.Is(err, netErr) {
		err = nil // it says nothing else
	}
	if err := errors.Join(err, netErr); err != nil {
		return nil, nil, firstKind(err, netErr)
	}
	etc, err := w.etcFiles(p, result.IPs)
	return &sandbox{prepared, etc}, result.IPs, err
}

// firstKind keeps the kind of the error that has one when two were joined.
func firstKind(joined, other error) error {
	if kind := pod.KindOf(joined); kind == pod.Internal && other != nil {
		return pod.WithKind(pod.KindOf(other), joined)
	}
	return joined
}

// unmakeSandbox removes what a failed makeSandbox has left.
func (w *worker) unmakeSandbox(ctx context.Context, created bool) {
	if created {
		if _, err := w.manager.DeleteSandbox(ctx, w.ref, 0); err != nil {
			w.log.Warn("cannot remove a half made sandbox", "error", err)
		}
	}
	if err := w.d.networks.Teardown(ctx, w.ref.UID); err != nil {
		w.log.Warn("cannot remove a half made network", "error", err)
	}
}

// etcFiles writes /etc/hosts, /etc/hostname and /etc/resolv.conf of the pod, whose addresses do not
// count in the host's network.
func (w *worker) etcFiles(p *corev1.Pod, ips []netip.Addr) ([]runtime.Mount, error) {
	hostname, fqdn, err := w.d.hostnameOf(p)
	if err != nil {
		return nil, err
	}
	var base []byte
	if p.Spec.HostNetwork {
		base = readBounded("/etc/hosts")
		ips = nil
	}
	return w.d.volumes.EtcFiles(p.UID,
		netsetup.HostsFile(base, ips, hostname, fqdn, p.Spec.HostAliases),
		[]byte(hostname+"\n"),
		netsetup.ResolvConf(p.Spec.DNSPolicy, p.Spec.DNSConfig, hostResolvConf(p.Spec.HostNetwork)))
}

// readBounded reads a small file of the host's; nothing when it cannot.
func readBounded(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, 256<<10)) // what could be read
	return data
}

// ensureSandbox makes sure that what starts need of the sandbox is known: a daemon that came later
// has not made it.
func (w *worker) ensureSandbox(p *corev1.Pod) error {
	if w.sandbox != nil {
		return nil
	}
	prepared, err := w.d.volumes.Prepare(w.d.ctx, p, w.d.volumeSources(p))
	if err != nil {
		return err
	}
	etc, err := w.etcFiles(p, w.record.PodIPs)
	if err != nil {
		return err
	}
	w.sandbox = &sandbox{prepared, etc}
	return nil
}
