package netsetup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/netlist"
)

// inside is set in the process that has a network of its own.
const inside = "NETSETUP_TEST_INSIDE"

// TestMain runs the tests in a process with its own network and mount namespaces, which stand for a
// host's and go with the process.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" || os.Geteuid() != 0 {
		if os.Getenv(inside) != "" {
			if err := withHandle(setLoopbackUp); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the signal comes when the thread that has started the child ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "cannot run the tests in a network namespace:", err)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

func needNetwork(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs a network namespace: run as root")
	}
	if _, err := exec.LookPath(findNft()); err != nil {
		t.Skip("needs nft: install the package nftables")
	}
}

// newManager makes a Manager whose Close, at the end of the test, has to leave the host as it was.
func newManager(t testing.TB, change ...func(*Config)) *Manager {
	t.Helper()
	needNetwork(t)
	before := snapshot(t)
	dir := t.TempDir()
	cfg := Config{StateFile: filepath.Join(dir, "net.json")}
	for _, c := range change {
		c(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, r := range m.records() {
			if err := m.Teardown(context.Background(), r.uid); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if after := snapshot(t); after != before {
			t.Errorf("the host is not as it was: %s", cmp.Diff(before, after))
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%d files left: %s", len(left), left[0].Name())
		}
	})
	return m
}

// snapshot is what the host's network is made of, in a form that can be compared.
func snapshot(t testing.TB) string {
	t.Helper()
	var lines []string
	links, err := netlist.Whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		lines = append(lines, "link "+l.Attrs().Name)
		addrs, err := netlist.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() {
				continue // the kernel adds it when it sees fit
			}
			lines = append(lines, "address "+a.IPNet.String())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlist.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() {
				continue
			}
			lines = append(lines, fmt.Sprintf("route %v %v", r.Dst, r.Gw))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n" + nftRules(t)
}

func nftRules(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(findNft(), "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	return string(out)
}

func nft(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command(findNft(), "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

func newNS(t testing.TB) *os.File {
	t.Helper()
	needNetwork(t)
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// newPod sets up the network of a pod.
func newPod(t testing.TB, m *Manager, uid string, ports ...Port) (*os.File, Result) {
	t.Helper()
	ns := newNS(t)
	r, err := m.Setup(t.Context(), PodNetwork{UID: types.UID(uid), Name: "default/" + uid, Ports: ports}, ns)
	if err != nil {
		t.Fatal(err)
	}
	return ns, r
}
