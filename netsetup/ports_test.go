package netsetup

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/magikrun/magikpod/pod"
	corev1 "k8s.io/api/core/v1"
)

func TestNetworkOf(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = "default", "web", "u"
	p.Spec.InitContainers = []corev1.Container{{RestartPolicy: &always, Ports: []corev1.ContainerPort{{HostPort: 1, ContainerPort: 2, Protocol: "UDP", HostIP: "::"}}}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 3}, {HostPort: 4, ContainerPort: 5}}}}
	got, err := NetworkOf(p)
	if want := "{u default/web [[::]:1/UDP *:4/]}"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	p.Spec.Containers[0].Ports[1].HostIP = "localhost"
	_, err = NetworkOf(p)
	wantKind(t, err, pod.Invalid, "localhost")
}

func TestConflicts(t *testing.T) {
	m := newManager(t)
	l, err := net.Listen("tcp", "127.0.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.ListenPacket("udp6", "[::]:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	newPod(t, m, "first", Port{HostPort: 8080, Port: 80}, Port{HostPort: 8081, Port: 80, HostIP: netip.MustParseAddr("127.0.0.1")})
	ns := newNS(t)
	for _, tt := range []struct {
		name, want string
		kind       pod.Kind
		port       Port
	}{
		{"another pod", "default/first", pod.Conflict, Port{HostPort: 8080, Port: 1}},
		{"another pod, one address", "default/first", pod.Conflict, Port{HostPort: 8080, Port: 1, HostIP: netip.MustParseAddr("127.0.0.1")}},
		{"another pod's address", "default/first", pod.Conflict, Port{HostPort: 8081, Port: 1}},
		{"a process", "*:9000/TCP: a process", pod.Conflict, Port{HostPort: 9000, Port: 1}},
		{"a process, UDP on IPv6", "*:9001/UDP: a process", pod.Conflict, Port{HostPort: 9001, Port: 1, Protocol: corev1.ProtocolUDP}},
		{"a foreign address", "192.0.2.99:1000/TCP: the host does not have", pod.Invalid, Port{HostPort: 1000, Port: 1, HostIP: netip.MustParseAddr("192.0.2.99")}},
		{"no port", "two ports", pod.Invalid, Port{HostPort: 1000}},
		{"no protocol", "TCP, UDP or SCTP", pod.Invalid, Port{HostPort: 1000, Port: 1, Protocol: "ICMP"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := m.Setup(t.Context(), PodNetwork{UID: "second", Name: "default/second", Ports: []Port{tt.port}}, ns)
			wantKind(t, err, tt.kind, tt.want)
		})
	}
	_, err = m.Setup(t.Context(), PodNetwork{UID: "second", Ports: []Port{{HostPort: 1, Port: 1}, {HostPort: 1, Port: 2}}}, ns)
	wantKind(t, err, pod.Conflict, "the pod publishes")
	// Elsewhere than the other's.
	newPod(t, m, "third", Port{HostPort: 8080, Port: 80, Protocol: corev1.ProtocolUDP}, Port{HostPort: 8081, Port: 80, HostIP: netip.IPv6Unspecified()})

	// A pod's port is taken for processes of the host until it is torn down.
	if l, err := net.Listen("tcp", ":8080"); err == nil {
		l.Close()
		t.Error("a process could listen on a pod's port")
	}
	if err := m.Teardown(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	l2, err := net.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	l2.Close()
}

// TestLeftConnection: a port whose server has ended, but which has a connection in TIME_WAIT, is free.
func TestLeftConnection(t *testing.T) {
	m := newManager(t)
	l, err := net.Listen("tcp4", "127.0.0.1:9100")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", "127.0.0.1:9100")
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s.Close() // first: this end waits
	_, _ = c.Read(make([]byte, 1))
	c.Close()
	l.Close()
	if _, err := bound(Port{HostPort: 9100, Protocol: corev1.ProtocolTCP}, netip.IPv4Unspecified(), false); err == nil {
		t.Skip("the kernel has dropped the connection already")
	}
	newPod(t, m, "a", Port{HostPort: 9100, Port: 80})
}
