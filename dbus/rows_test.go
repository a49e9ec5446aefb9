package dbus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// TestEncodePods checks that what encodePods writes is what godbus would.
func TestEncodePods(t *testing.T) {
	list := []pod.Summary{
		{Ref: pod.Ref{Namespace: "default", Name: "web", UID: "2daf3c78-3214-45f9-bd72-89ae5244543b"}, Phase: "Running", State: "Running", Class: "pod-containers",
			Ready: 2, Total: 2, Restarts: 7, IPs: []string{"10.88.0.2", "fd00::2"}, Created: time.Unix(1e9, 5000), Slice: "magikpod-default-web.slice"},
		{Ref: pod.Ref{Namespace: "other", Name: "x", UID: "u"}, State: "Back\xff\x00Off", Total: 1},
		{},
	}
	for length := range 16 { // every alignment
		p := list[0]
		p.State = string(bytes.Repeat([]byte("s"), length))
		list = append(list, p)
	}
	for _, namespace := range []string{"", "default", "other", "none"} {
		got := encodePods(list, namespace)
		m := &godbus.Message{Type: godbus.TypeMethodReply, Headers: map[godbus.HeaderField]godbus.Variant{godbus.FieldReplySerial: godbus.MakeVariant(uint32(1))}, Body: []any{got}}
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(got))
		var rows, want []contract.PodRow
		data := append(header(t, m, got.Signature, len(got.Data)), got.Data...)
		decoded, err := godbus.DecodeMessage(bytes.NewReader(data))
		if err == nil {
			err = godbus.Store(decoded.Body, &rows)
		}
		if err != nil {
			t.Fatalf("namespace %q: %v", namespace, err)
		}
		for _, p := range list {
			if namespace == "" || p.Namespace == namespace {
				props := summaryProperties(&p)
				props["State"] = godbus.MakeVariant(contract.FitText(p.State))
				want = append(want, contract.PodRow{Path: contract.PodPath(p.UID), Properties: props})
			}
		}
		if len(rows) != len(want) || len(want) > 0 && !reflect.DeepEqual(rows, want) {
			t.Errorf("namespace %q:\n%v, want\n%v", namespace, rows, want)
		}
	}
}

// header is that of a message with a body of size bytes.
func header(t *testing.T, m *godbus.Message, signature godbus.Signature, size int) []byte {
	t.Helper()
	m.Body, m.Headers[godbus.FieldSignature] = nil, godbus.MakeVariant(signature)
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b.Bytes()[4:], uint32(size))
	return b.Bytes()
}

func BenchmarkEncodePods(b *testing.B) {
	var list []pod.Summary
	for i := range 1000 {
		list = append(list, pod.Summary{Ref: pod.Ref{Namespace: "default", Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprintf("2daf3c78-3214-45f9-bd72-89ae5244%04d", i))},
			Phase: "Running", State: "Running", Class: "pod-containers", Ready: 1, Total: 1, IPs: []string{"10.88.0.2", "fd00::2"}, Slice: fmt.Sprintf("magikpod-default-p%d.slice", i)})
	}
	for b.Loop() {
		encodePods(list, "")
	}
}
