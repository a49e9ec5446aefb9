package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
)

const (
	recordVersion  = 1
	recordName     = "pod.json"
	newestName     = "pod.json.new"
	maxRecordBytes = 16 << 20
)

// record is what is kept of a pod. There are up to three copies, of which the one with the highest Serial counts: pod.json in StateDir, which is on the
// disk for good; pod.json.new beside it, which a power cut may tear, and which therefore never replaces the former; and pod.json in RunDir, which is in
// memory.
type record struct {
	Version int   `json:"version"`
	Serial  int64 `json:"serial"`
	// Committed is false until the pod's RunPod has succeeded: an uncommitted pod that a new daemon finds is removed.
	Committed bool        `json:"committed"`
	BootID    string      `json:"bootID"` // of the boot that the runtime's facts belong to
	Pod       *corev1.Pod `json:"pod"`    // spec with defaults, and status

	Wish     pod.Wish       `json:"wish"`
	WishedAt time.Time      `json:"wishedAt"`
	Grace    *time.Duration `json:"grace,omitempty"`
	Force    bool           `json:"force,omitempty"`
	ThenRun  bool           `json:"thenRun,omitempty"` // start again once stopped
	Finished bool           `json:"finished,omitempty"`

	Sandbox    pod.SandboxState                    `json:"sandbox"`
	Containers map[string]pod.ContainerObservation `json:"containers,omitempty"`
	PodIPs     []string                            `json:"podIPs,omitempty"`
	Events     []pod.Event                         `json:"events,omitempty"`
}

// recordStore reads and writes records.
type recordStore struct{ config *Config }

// save writes the record. durable: it is on the disk when save returns. An error means that the durable copy is not what it should be; the copy in memory
// may be good all the same.
func (s *recordStore) save(r *record, durable bool) error {
	data, err := json.Marshal(r)
	if err != nil {
		return pod.Errorf(pod.Internal, "cannot save pod %s: %w", pod.RefOf(r.Pod), err)
	}
	uid := string(r.Pod.UID)
	spare := s.write(s.config.podRunDir(uid), recordName, data, false)
	name := newestName
	if durable {
		name = recordName
	}
	if err := s.write(s.config.podStateDir(uid), name, data, durable); err != nil {
		return pod.WithKind(pod.Exhausted, fmt.Errorf("cannot save pod %s: %w", pod.RefOf(r.Pod), err))
	}
	if spare != nil {
		return pod.WithKind(pod.Exhausted, fmt.Errorf("cannot save pod %s: %w", pod.RefOf(r.Pod), spare))
	}
	return nil
}

func (s *recordStore) write(dir, name string, data []byte, durable bool) error {
	write := atomicfile.WriteNoSync
	if durable {
		write = atomicfile.Write
	}
	err := write(filepath.Join(dir, name), data, 0o600)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if durable {
		if err := atomicfile.SyncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return write(filepath.Join(dir, name), data, 0o600)
}

// remove removes both copies and the pod's directories; what others keep in these must be gone, or goes too.
func (s *recordStore) remove(uid types.UID) error {
	// The record goes last: until then a new daemon goes on with the removal.
	for _, dir := range []string{s.config.podRunDir(string(uid)), s.config.podStateDir(string(uid))} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return pod.Errorf(pod.Internal, "cannot remove the record of pod %s: %w", uid, err)
		}
		for _, e := range entries {
			if e.Name() == recordName || e.Name() == newestName {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return pod.Errorf(pod.Internal, "cannot remove the record of pod %s: %w", uid, err)
			}
		}
	}
	for _, dir := range []string{s.config.podRunDir(string(uid)), s.config.podStateDir(string(uid))} {
		if err := os.RemoveAll(dir); err != nil {
			return pod.Errorf(pod.Internal, "cannot remove the record of pod %s: %w", uid, err)
		}
	}
	return nil
}

// load reads all records. What cannot be read is set aside and told in warnings; it is never fatal.
func (s *recordStore) load() (records []*record, warnings []string, err error) {
	uids := map[string]bool{}
	for _, dir := range []string{filepath.Join(s.config.StateDir, "pods"), filepath.Join(s.config.RunDir, "pods")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, nil, pod.Errorf(pod.Unavailable, "cannot make the directory of the pods: %w", err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, nil, pod.Errorf(pod.Unavailable, "cannot read the directory of the pods: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				uids[e.Name()] = true
			}
		}
	}
	for uid := range uids {
		r, warning := s.loadOne(uid)
		if warning != "" {
			warnings = append(warnings, warning)
		}
		switch {
		case r != nil:
			records = append(records, r)
		case warning == "":
			s.sweep(uid)
		}
	}
	return records, warnings, nil
}

// sweep removes the directories of a pod that has no record, unless there is something in them: the daemon died when it had just made them, or was about
// to remove them.
func (s *recordStore) sweep(uid string) {
	for _, dir := range []string{s.config.podRunDir(uid), s.config.podStateDir(uid)} {
		atomicfile.Sweep(dir)
		_ = os.Remove(dir)
	}
}

// loadOne reads the better copy of one record; nil when there is none.
func (s *recordStore) loadOne(uid string) (best *record, warning string) {
	var problems []string
	for _, path := range []string{
		filepath.Join(s.config.podStateDir(uid), recordName), filepath.Join(s.config.podRunDir(uid), recordName), filepath.Join(s.config.podStateDir(uid), newestName),
	} {
		r, err := readRecord(path, uid)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			aside := fmt.Sprintf("%s.bad-%d", path, time.Now().Unix())
			if renameErr := os.Rename(path, aside); renameErr != nil {
				aside = "where it is: " + renameErr.Error()
			}
			problems = append(problems, fmt.Sprintf("cannot read %s: %v; it was set aside as %s", path, err, aside))
			continue
		}
		if best == nil || r.Serial > best.Serial {
			best = r
		}
	}
	if len(problems) > 0 {
		warning = strings.Join(problems, "; ")
		if best == nil {
			warning += "; units of this pod that still run can be stopped with systemctl"
		} else {
			warning += "; its other copy is used"
		}
	}
	return best, warning
}

func readRecord(path, uid string) (*record, error) {
	data, err := atomicfile.Read(path, maxRecordBytes)
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Version != recordVersion:
		return nil, fmt.Errorf("its version is %d, and %d is known", r.Version, recordVersion)
	case r.Pod == nil || string(r.Pod.UID) != uid:
		return nil, errors.New("it is not the record of this pod")
	case pod.ValidateName(r.Pod.Name) != nil || pod.ValidateNamespace(r.Pod.Namespace) != nil:
		return nil, errors.New("the pod in it has no valid name")
	case r.Wish != pod.WishRun && r.Wish != pod.WishStop && r.Wish != pod.WishDelete:
		return nil, fmt.Errorf("the wish %q in it is unknown", r.Wish)
	}
	return &r, nil
}

// lean is the memory of the containers without what changes at every run of a probe.
func lean(memory map[string]pod.ContainerObservation) map[string]pod.ContainerObservation {
	out := make(map[string]pod.ContainerObservation, len(memory))
	for name, o := range memory {
		for _, p := range []*pod.ProbeState{&o.Startup, &o.Liveness, &o.Readiness} {
			*p = pod.ProbeState{Attempt: p.Attempt, Passed: p.Passed, Failed: p.Failed}
		}
		out[name] = o
	}
	return out
}
