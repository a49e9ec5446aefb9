package microvm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	vmshim "github.com/magikrun/magikpod/runtime/microvm/shim"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// etcPrefix begins the names of what is of no volume, as files of /etc: no volume has a dot in its name.
const etcPrefix = "etc."

// readOnlySuffix ends the place of a volume in the share that is not to be written to there; no
// name of a volume has a dot.
const readOnlySuffix = ".ro"

// staged is how a container's mounts get into the VM.
type staged struct {
	spec        []runtime.Mount // for the OCI spec: sources are wire.MountSource
	mounts      []wire.Mount
	copies      []vmshim.Copy
	messageFile string   // the host's file for the termination message
	shares      []shared // what the share must show before the container is created

	// noShare: there is no share, and parts of the host are shown as images, which copies are made of.
	noShare bool
	copied  []shared
	images  map[int]string // of which name the image is that a mount shows, by its index
}

// shared is a part of the host that the share, or an image, shows.
type shared struct {
	name     string // its place in the share, or its image's name
	source   string
	readOnly bool
}

// stage sorts the mounts of a container by the way they take. tmpfs are the pod's file systems in
// memory, by name; hasShare says whether the VM has a share.
func stage(config runtime.ContainerConfig, tmpfs map[string]runtime.Tmpfs, hasShare bool) (*staged, error) {
	s := &staged{noShare: !hasShare, images: map[int]string{}}
	for i := range config.Mounts {
		m := config.Mounts[i]
		if m.Source == "" && m.SharedTmpfs == "" {
			s.spec = append(s.spec, m) // the container's own tmpfs
			continue
		}
		mount, err := s.sort(config, m, tmpfs)
		if err != nil {
			return nil, pod.Errorf(pod.KindOf(err), "cannot mount %s: %w", m.Destination, err)
		}
		mount.ReadOnly = m.ReadOnly
		s.spec = append(s.spec, runtime.Mount{
			Source: wire.MountSource(len(s.mounts)), Destination: m.Destination, ReadOnly: m.ReadOnly, Propagation: "private",
		})
		s.mounts = append(s.mounts, mount)
	}
	return s, nil
}

// sort finds the way that one mount takes.
func (s *staged) sort(config runtime.ContainerConfig, m runtime.Mount, tmpfs map[string]runtime.Tmpfs) (wire.Mount, error) {
	if m.SharedTmpfs != "" {
		t := tmpfs[m.SharedTmpfs]
		return wire.Mount{Kind: wire.MountTmpfs, Name: m.SharedTmpfs, SubPath: m.SubPath, Mode: unixMode(t.Mode), GID: uint32(t.GID), Bytes: t.SizeBytes}, nil
	}
	volume := volumeAt(config.Pod, config.Container, m.Destination)
	switch {
	case volume == nil && path.Clean(m.Destination) == path.Clean(config.Container.TerminationMessagePath):
		s.messageFile = m.Source
		return wire.Mount{Kind: wire.MountMessage}, nil
	case volume == nil && isDir(m.Source): // of no volume, but somebody wants it there
		sum := sha256.Sum256([]byte(m.Source))
		return s.share(etcPrefix+hex.EncodeToString(sum[:8]), m)
	case volume == nil: // a file of /etc
		name := etcPrefix + filepath.Base(m.Source)
		s.copy(name, m.Source)
		return wire.Mount{Kind: wire.MountCopy, Name: name, SubPath: filepath.Base(m.Source)}, nil
	case volume.EmptyDir != nil:
		return scratchMount(volume.Name, m)
	case !copied(volume):
		return s.share(volume.Name, m)
	}
	s.copy(volume.Name, m.Source)
	return wire.Mount{Kind: wire.MountCopy, Name: volume.Name, SubPath: m.SubPath}, nil
}

// copied says whether a VM gets a copy of a volume: its content is magikpod's own, and small.
func copied(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// copy has a file or a directory copied, once.
func (s *staged) copy(name, source string) {
	if one := (vmshim.Copy{Volume: name, Source: source}); !slices.Contains(s.copies, one) {
		s.copies = append(s.copies, one)
	}
}

// scratchMount is an emptyDir: the host's directory of it, which stays empty, says whose it is.
func scratchMount(name string, m runtime.Mount) (wire.Mount, error) {
	info, err := os.Stat(m.Source)
	if err != nil {
		return wire.Mount{}, pod.WithKind(pod.Internal, err)
	}
	mount := wire.Mount{Kind: wire.MountScratch, Name: name, SubPath: m.SubPath, Mode: unixMode(info.Mode())}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		mount.GID = stat.Gid
	}
	return mount, nil
}

// share has a directory or a file of the host's shown in the share.
func (s *staged) share(name string, m runtime.Mount) (wire.Mount, error) {
	info, err := os.Stat(m.Source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wire.Mount{}, pod.Errorf(pod.NotFound, "%s does not exist", m.Source)
	case err != nil:
		return wire.Mount{}, pod.WithKind(pod.Internal, err)
	case !info.IsDir() && !info.Mode().IsRegular():
		return wire.Mount{}, pod.Errorf(pod.Unsupported, "%s is neither a directory nor a regular file: the host's sockets and devices are not in a VM", m.Source)
	}
	if s.noShare {
		return s.image(name, m, info.IsDir())
	}
	if m.ReadOnly { // a place of its own: the host's kernel sees to it
		name += readOnlySuffix
	}
	s.shares = append(s.shares, shared{name: name, source: m.Source, readOnly: m.ReadOnly})
	return wire.Mount{Kind: wire.MountShare, Name: shareTag, SubPath: path.Join(name, m.SubPath)}, nil
}

// image has a directory or a file of the host's shown as an image of a copy, in which a file lies
// by its own name.
func (s *staged) image(name string, m runtime.Mount, dir bool) (wire.Mount, error) {
	if !m.ReadOnly {
		return wire.Mount{}, pod.Errorf(pod.Unsupported, "the VM has a copy of %s, which can only be mounted read-only", m.Source)
	}
	one := shared{name: name, source: m.Source, readOnly: true}
	if !slices.Contains(s.copied, one) {
		s.copied = append(s.copied, one)
	}
	s.images[len(s.mounts)] = name
	subPath := m.SubPath
	if !dir {
		subPath = filepath.Base(m.Source)
	}
	return wire.Mount{Kind: wire.MountImage, SubPath: subPath}, nil
}

// volumeAt is the volume that a container mounts at a place; nil: none, it is one of the pod's own
// files.
func volumeAt(p *corev1.Pod, c *corev1.Container, destination string) *corev1.Volume {
	for i := range c.VolumeMounts {
		if path.Clean("/"+c.VolumeMounts[i].MountPath) != destination {
			continue
		}
		for j := range p.Spec.Volumes {
			if p.Spec.Volumes[j].Name == c.VolumeMounts[i].Name {
				return &p.Spec.Volumes[j]
			}
		}
	}
	return nil
}

// unixMode is a mode with the bits of chmod(2).
func unixMode(mode os.FileMode) uint32 {
	bits := uint32(mode.Perm())
	if mode&os.ModeSticky != 0 {
		bits |= 0o1000
	}
	if mode&os.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if mode&os.ModeSetuid != 0 {
		bits |= 0o4000
	}
	return bits
}
