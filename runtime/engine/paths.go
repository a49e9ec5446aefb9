package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/atomicfile"
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

	launchName  = "launch.json"
	attemptName = "attempt.json"
	runtimeLog  = "runtime.log"
	pidName     = "pid"
	rootfsName  = "rootfs"
	mountsName  = "mnt"
)

// maxRecordBytes bounds the records and logs that are read back.
const maxRecordBytes = 4 << 20

func (m *Manager) runDir(uid types.UID) string {
	return filepath.Join(m.config.RunDir, "pods", string(uid))
}

// checkRef refuses a UID that is not the name of a directory: its files would lie, and be removed, elsewhere.
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

// saveRecord writes v as JSON, atomically but not durably: what it tells does not outlive the machine's boot either.
func saveRecord(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return atomicfile.WriteNoSync(path, data, 0o600)
}

// loadRecord reads what saveRecord has written.
func loadRecord(path string, v any) error {
	data, err := atomicfile.Read(path, maxRecordBytes)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	return nil
}

// removeAll removes the paths, and goes on after an error. Writable layers hold whatever a container has made: trees of any depth, immutable files.
func removeAll(paths ...string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, safepath.RemoveAll(context.Background(), path))
	}
	return errors.Join(errs...)
}
