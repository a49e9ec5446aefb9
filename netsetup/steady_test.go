package netsetup

import (
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestSteady: every new flow to a published port gets there while other pods come and go.
func TestSteady(t *testing.T) {
	m := newManager(t)
	server, _ := newPod(t, m, "server", Port{HostPort: 8080, Port: 80}, Port{HostPort: 5353, Port: 53, Protocol: corev1.ProtocolUDP})
	serve(t, server, "tcp", ":80")
	serve(t, server, "udp", ":53")
	stop := make(chan struct{})
	var others sync.WaitGroup
	for i := range 3 {
		others.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				uid := types.UID(fmt.Sprintf("other-%d-%d", i, round))
				ns, err := NewNamespace()
				if err != nil {
					t.Error(err)
					return
				}
				_, err = m.Setup(t.Context(), PodNetwork{UID: uid, Name: "default/" + string(uid), Ports: []Port{{HostPort: uint16(9000 + i), Port: 80},
					{HostPort: uint16(9000 + i), Port: 53, Protocol: corev1.ProtocolUDP}}}, ns)
				if err != nil {
					t.Error(err)
				}
				if err := m.Teardown(t.Context(), uid); err != nil {
					t.Error(err)
				}
				ns.Close()
			}
		})
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		for network, addr := range map[string]string{"tcp": "127.0.0.1:8080", "udp": "127.0.0.1:5353"} {
			if _, err := ask(nil, network, addr, patience); err != nil {
				t.Errorf("%s: %v", network, err)
			}
		}
	}
	close(stop)
	others.Wait()
}
