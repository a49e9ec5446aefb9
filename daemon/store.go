package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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

// record is what is kept of a pod. There are up to three copies, of which the one with the highest
// Serial counts: pod.json in StateDir, which is on the disk for good; pod.json.new beside it, which
// a power cut may tear, and which therefore never replaces the former; and pod.json in RunDir,
// which is in memory.
type record struct {
	Version int   `json:"version"`
	Serial  int64 `json:"serial"`
	// Committed is false until the pod's RunPod has succeeded: an uncommitted pod that a new daemon
	// finds is removed.
	Committed bool        `json:"committed"`
	Pod       *corev1.Pod `json:"pod"` // spec with defaults, and status

	pod.Observation
	Force   bool        `json:"force,omitempty"`
	ThenRun bool        `json:"thenRun,omitempty"` // start again once stopped
	Events  []pod.Event `json:"events,omitempty"`
}

// recordStore reads and writes records.
type recordStore struct{ config *Config }

// save writes the record. durable: it is on the disk when save returns. An error means that the
// durable copy is not what it should be; the copy in memory may be good all the same.
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
		return pod.Errorf(pod.Exhausted, "cannot save pod %s: %w", pod.RefOf(r.Pod), err)
	}
	if spare != nil {
		return pod.Errorf(pod.Exhausted, "cannot save pod %s: %w", pod.RefOf(r.Pod), spare)
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

// remove removes both copies and the pod's directories; what others keep in these must be gone, or
// goes too.
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

// loaded is what load has found.
type loaded struct {
	records []*record
	// damaged are the pods of which there is something, but no record that can be used.
	damaged  []types.UID
	warnings []string
}

// has says whether there is anything of a pod: what belongs to it elsewhere is kept then.
func (l *loaded) has(uid types.UID) bool {
	return slices.Contains(l.damaged, uid) || slices.ContainsFunc(l.records, func(r *record) bool { return r.Pod.UID == uid })
}

// load reads all records. One that is damaged is set aside and reported in warnings; it is never
// fatal. Unavailable: one cannot be read now, so that nobody knows what it says.
func (s *recordStore) load() (*loaded, error) {
	uids := map[string]bool{}
	for _, dir := range []string{filepath.Join(s.config.StateDir, "pods"), filepath.Join(s.config.RunDir, "pods")} {
		err := os.MkdirAll(dir, 0o700)
		if err != nil && !errors.Is(err, unix.EROFS) { // then there are no pods in it
			return nil, pod.Errorf(pod.Unavailable, "cannot make the directory of the pods: %w", err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, pod.Errorf(pod.Unavailable, "cannot read the directory of the pods: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				uids[e.Name()] = true
			}
		}
	}
	l := &loaded{}
	for uid := range uids {
		atomicfile.Sweep(s.config.podStateDir(uid)) // a power cut may have been in the middle of a write
		r, warning, err := s.loadOne(uid)
		if err != nil {
			return nil, err
		}
		if warning != "" {
			l.warnings = append(l.warnings, warning)
		}
		switch {
		case r != nil:
			l.records = append(l.records, r)
		case !s.sweep(uid):
			l.damaged = append(l.damaged, types.UID(uid))
		}
	}
	return l, nil
}

// sweep removes the directories of a pod that has no record, unless there is something in them: the
// daemon died when it had just made them, or was about to remove them. It returns whether nothing
// is left.
func (s *recordStore) sweep(uid string) bool {
	gone := true
	for _, dir := range []string{s.config.podRunDir(uid), s.config.podStateDir(uid)} {
		atomicfile.Sweep(dir)
		err := os.Remove(dir)
		gone = gone && (err == nil || errors.Is(err, os.ErrNotExist))
	}
	return gone
}

// loadOne reads the better copy of one record; nil when there is none.
func (s *recordStore) loadOne(uid string) (best *record, warning string, err error) {
	var problems []string
	inMemory := filepath.Join(s.config.podRunDir(uid), recordName)
	var unread error
	var bestData []byte
	for _, path := range []string{
		inMemory, filepath.Join(s.config.podStateDir(uid), recordName), filepath.Join(s.config.podStateDir(uid), newestName),
	} {
		data, err := atomicfile.Read(path, maxRecordBytes)
		if err == nil && best != nil && bytes.Equal(data, bestData) {
			continue
		}
		var r *record
		if err == nil {
			r, err = parseRecord(data, uid, best)
		}
		switch {
		case err == nil:
			if r != nil {
				best, bestData = r, data
			}
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		case atomicfile.Damaged(err):
			problems = append(problems, fmt.Sprintf("cannot use %s: %v; it was set aside as %s", path, err, setAside(path)))
		case path == inMemory:
			return nil, "", pod.Errorf(pod.Unavailable, "cannot read the record of pod %s: %w", uid, err)
		default: // the copy in memory is as new, if there is one
			unread = err
			problems = append(problems, err.Error())
		}
	}
	switch {
	case best == nil && unread != nil:
		return nil, "", pod.Errorf(pod.Unavailable, "cannot read the record of pod %s: %w", uid, unread)
	case best != nil && len(problems) > 0:
		problems = append(problems, "its other copy is used")
	}
	return best, strings.Join(problems, "; "), nil
}

// setAside renames a damaged file, and returns what it is called now.
func setAside(path string) string {
	aside := fmt.Sprintf("%s.bad-%d", path, time.Now().Unix())
	if err := os.Rename(path, aside); err != nil {
		return path + " (" + err.Error() + ")"
	}
	return aside
}

// readJSON reads a file that this package has written.
func readJSON(path string, into any) error {
	data, err := atomicfile.Read(path, maxRecordBytes)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// parseRecord reads the record of a pod; nil when it is older than best. To look at the whole of
// each copy would take most of the time of a start.
func parseRecord(data []byte, uid string, best *record) (*record, error) {
	var head struct {
		Version int   `json:"version"`
		Serial  int64 `json:"serial"`
	}
	if best != nil {
		if err := json.Unmarshal(data, &head); err != nil {
			return nil, err
		}
		if head.Version == recordVersion && head.Serial <= best.Serial {
			return nil, nil
		}
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
	case r.Desired != pod.DesiredRun && r.Desired != pod.DesiredStop && r.Desired != pod.DesiredDelete:
		return nil, fmt.Errorf("the desired state %q in it is unknown", r.Desired)
	}
	return &r, nil
}

// withoutRuns is the memory of the containers without what changes at every run of a probe.
func withoutRuns(memory map[string]pod.ContainerObservation) map[string]pod.ContainerObservation {
	out := make(map[string]pod.ContainerObservation, len(memory))
	for name, o := range memory {
		for _, p := range []*pod.ProbeState{&o.Startup, &o.Liveness, &o.Readiness} {
			*p = pod.ProbeState{Attempt: p.Attempt, Passed: p.Passed, Failed: p.Failed}
		}
		out[name] = o
	}
	return out
}
