package pod

import "github.com/magikrun/magikpod/internal/podapi"

// The limits of a manifest and of the host. All are inclusive.
const (
	MaxPods           = 1024
	MaxContainers     = 16 // init containers, sidecars and containers of one pod together
	MaxVolumes        = 64
	MaxManifestBytes  = podapi.MaxManifestBytes
	MaxEnvVars        = 256 // of one container
	MaxGracePeriod    = podapi.MaxGracePeriod
	MaxObjectDataSize = 1 << 20 // all values of one ConfigMap or Secret, in bytes, as in Kubernetes
)

// The runtime classes. A manifest without runtimeClassName gets [ClassContainers].
const (
	ClassContainers = "pod-containers"
	ClassWasm       = "pod-wasm"
	ClassMicroVM    = "pod-microvm-containers"
)

// DefaultNamespace is the namespace of a manifest that names none.
const DefaultNamespace = podapi.DefaultNamespace
