package embed_test

import (
	"fmt"
	"log"
	"time"

	"github.com/magikrun/magikpod/pod"
)

func Example() {
	m, errs, _, err := pod.Read([]byte(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  initContainers: [{name: page, image: busybox}]
  containers: [{name: server, image: nginx}]
`), "", nil)
	if err != nil {
		log.Fatal(err)
	}
	web := m.Pods[0]
	if err := pod.InvalidError(errs); err != nil {
		log.Fatal(err) // every problem, with its path
	}

	// Next is pure: it decides from what is true now. A caller observes, calls it, carries out the
	// steps, and begins again.
	seen := pod.Observation{Desired: pod.DesiredRun}
	fmt.Println(pod.Next(web, seen, time.Now()).Steps)
	seen.Sandbox.Stage = pod.SandboxReady
	fmt.Println(pod.Next(web, seen, time.Now()).Steps)
	done := pod.ContainerState{Stage: pod.ContainerExited, ExitCode: 0, FinishedAt: time.Now()}
	seen.Containers = map[string]pod.ContainerObservation{"page": {ContainerState: done}}
	fmt.Println(pod.Next(web, seen, time.Now()).Steps)
	// Output:
	// [create-sandbox start-container page attempt=0]
	// [start-container page attempt=0]
	// [start-container server attempt=0]
}
