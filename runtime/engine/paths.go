package engine

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// The names below RunDir/pods/UID and, for one container, RunDir/pods/UID/c/NAME.
const (
	pauseName      = "pause.json"
	sandboxName    = "sandbox.json"
	shmName        = "shm"
	tmpfsName      = "tmpfs"
	logName        = shim.FIFODir
	containersName = "c"
	pidnsName      = "pidns.pid"

	attemptName = "attempt.json"
	runtimeLog  = "runtime.log"
	pidName     = "pid"
)

// maxRecordBytes bounds the records and logs that are read back.
const maxRecordBytes = 4 << 20

// runDir is where what is known of a sandbox is, by its ID.
func (m *Manager) runDir(uid types.UID) string {
	return filepath.Join(m.config.RunDir, "pods", string(uid))
}

// checkRef refuses a UID that is not the name of a directory: its files would lie, and be removed,
// elsewhere.
func checkRef(ref pod.Ref) error {
	if uid := string(ref.UID); uid == "" || uid == "." || uid == ".." || strings.ContainsAny(uid, "/\x00") {
		return pod.Errorf(pod.Invalid, "cannot use pod %s: the UID %q is not a name", ref, uid)
	}
	return nil
}

// layersDir is where a pod's writable layers are.
func (m *Manager) layersDir(uid types.UID) string {
	return filepath.Join(m.config.StateDir, "pods", string(uid), "containers")
}

// removeAll removes the paths, and goes on after an error. Writable layers hold whatever a
// container has made: trees of any depth, immutable files.
func removeAll(paths ...string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, safepath.RemoveAll(context.Background(), path))
	}
	return errors.Join(errs...)
}
