package podapi

import (
	"time"

	"github.com/magikrun/magikpod/internal/errkind"
)

// What a client checks before it asks. Package pod has the other limits.
const (
	MaxManifestBytes = 1 << 20
	MaxGracePeriod   = 300 * time.Second
)

// DefaultNamespace is the namespace of a manifest that names none.
const DefaultNamespace = "default"

// CheckManifestSize says why a manifest is not read at all: it has more than [MaxManifestBytes].
func CheckManifestSize(data []byte) error {
	if len(data) > MaxManifestBytes {
		return errkind.Errorf(errkind.Invalid, "cannot read the manifest: it is larger than %d bytes (1 MiB); split it into several files", MaxManifestBytes)
	}
	return nil
}
