package daemon

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/magikrun/magikpod/pod"
)

// TestRecordFields checks that records keep the names of their fields: a newer daemon goes on with
// the pods of an older one.
func TestRecordFields(t *testing.T) {
	const kept = `{"version":1,"serial":7,"committed":true,"pod":{"metadata":{"name":"web","namespace":"default","uid":"u"},"spec":{"containers":null},"status":{}},
		"wish":"stop","wishedAt":"2026-01-02T03:04:05Z","grace":3000000000,"force":true,"thenRun":true,"finished":true,"sandbox":{"stage":"ready"},
		"containers":{"c":{"stage":"running","attempt":2,"exitCode":0,"failures":1}},"podIPs":["10.0.0.2"],"events":[]}`
	got, err := parseRecord([]byte(kept), "u", nil)
	if err != nil {
		t.Fatal(err)
	}
	grace := 3 * time.Second
	container := pod.ContainerObservation{ContainerState: pod.ContainerState{Stage: pod.ContainerRunning, Attempt: 2}, Failures: 1}
	want := &record{
		Version: 1, Serial: 7, Committed: true, Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}},
		Observation: pod.Observation{
			Desired: pod.DesiredStop, DesiredAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Grace: &grace, Finished: true,
			Sandbox: pod.SandboxState{Stage: pod.SandboxReady}, Containers: map[string]pod.ContainerObservation{"c": container}, PodIPs: addresses("10.0.0.2"),
		},
		Force: true, ThenRun: true, Events: []pod.Event{},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the record reads\n%+v, want\n%+v", got, want)
	}
}
