package units

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// The names of a pod's units, by example (namespace default, pod web, container nginx):
//
//	magikpod.slice                                  everything of magikpod
//	magikpod-default.slice                          the namespace
//	magikpod-default-web.slice                      the pod
//	magikpod-default-web-pause.service              the pause unit
//	magikpod-default-web-vm.service                 the VMM of a microVM pod
//	magikpod-default-web-nginx.service              a container
//	magikpod-default-web-order\x2dproxy.slice       an ordering point, see [OrderSlice]
//
// Each name is escaped on its own, so that a "-" stands between names only: in slices because
// systemd nests a slice by its dashes, in services because the pod a-b with the container c is not
// the pod a with the container b-c.
//
//   - "-" becomes \x2d, as systemd-escape(1) does it.
//   - A container that is called pause or vm gets its first letter escaped too (\x70ause, \x76m): the plain words are the pod's own units.
//   - A name that would make the unit longer than 255 bytes is cut, and gets "_" and a hash of the whole name. "_" is in no Kubernetes name, so a cut
//     name is never the same as one that was not cut.
const (
	rootSlice = "magikpod.slice"
	prefix    = "magikpod-"

	pauseWord = "pause"
	vmWord    = "vm"
	// orderWord and the escaped dash begin the last part of an ordering slice.
	orderWord = `order\x2d`

	escapedDash = `\x2d`
)

// What a part of a name may have after it was escaped, in bytes. The longest name, an ordering
// slice, has 9+63+1+101+1+9+63+6 = 253; systemd's limit is 255.
const (
	maxNamespacePart = 63
	maxPodPart       = 101
	maxContainerPart = 63
	// hashLen is the length of the hash of a cut name, in hexadecimal digits: 96 bits.
	hashLen = 24
)

// PodNames are the units that a pod has, its containers' left out.
type PodNames struct {
	// Slice is the slice of the pod.
	Slice string
	// Pause is the service that keeps the pod's namespaces.
	Pause string
	// VM is the service of the VMM, for pods of the class pod-microvm-containers.
	VM string
}

// Names returns the names of a pod's units.
func Names(namespace, name string) PodNames {
	base := podBase(namespace, name)
	return PodNames{
		Slice: base + ".slice",
		Pause: base + "-" + pauseWord + ".service",
		VM:    base + "-" + vmWord + ".service",
	}
}

// ContainerService returns the name of a container's service.
func ContainerService(namespace, name, container string) string {
	return podBase(namespace, name) + "-" + containerPart(container) + ".service"
}

// OrderSlice returns the name of the slice that stands between a sidecar and what starts after it;
// see [PodSlices].
func OrderSlice(namespace, name, sidecar string) string {
	return podBase(namespace, name) + "-" + orderWord + part(sidecar, maxContainerPart) + ".slice"
}

// podBase begins the names of all units of a pod.
func podBase(namespace, name string) string {
	return prefix + part(namespace, maxNamespacePart) + "-" + part(name, maxPodPart)
}

func containerPart(container string) string {
	switch container {
	case pauseWord:
		return `\x70` + pauseWord[1:]
	case vmWord:
		return `\x76` + vmWord[1:]
	}
	return part(container, maxContainerPart)
}

// part escapes one name and cuts it to limit bytes.
func part(name string, limit int) string {
	escaped := strings.ReplaceAll(name, "-", escapedDash)
	if len(escaped) <= limit {
		return escaped
	}
	sum := sha256.Sum256([]byte(name))
	cut := escaped[:limit-hashLen-1]
	// Not in the middle of an escape sequence.
	if i := strings.LastIndexByte(cut, '\\'); i >= 0 && len(cut)-i < len(escapedDash) {
		cut = cut[:i]
	}
	return cut + "_" + hex.EncodeToString(sum[:])[:hashLen]
}

// unitKind says what a unit of magikpod is.
type unitKind string

const (
	kindNamespaceSlice unitKind = "namespace"
	kindPodSlice       unitKind = "pod"
	kindPause          unitKind = "pause"
	kindVM             unitKind = "vm"
	kindContainer      unitKind = "container"
	kindOrder          unitKind = "order"
)

// kindOf reads the name of a unit; "" when it is none that this package makes. magikpod.slice is none.
func kindOf(unit string) unitKind {
	rest, ok := strings.CutPrefix(unit, prefix)
	base, isSlice := strings.CutSuffix(rest, ".slice")
	isService := false
	if !isSlice {
		base, isService = strings.CutSuffix(rest, ".service")
	}
	parts := strings.Split(base, "-")
	switch {
	case !ok || !isSlice && !isService || slices.Contains(parts, ""):
	case isSlice && len(parts) == 1:
		return kindNamespaceSlice
	case isSlice && len(parts) == 2:
		return kindPodSlice
	case isSlice && len(parts) == 3 && strings.HasPrefix(parts[2], orderWord):
		return kindOrder
	case isSlice || len(parts) != 3:
	case parts[2] == pauseWord:
		return kindPause
	case parts[2] == vmWord:
		return kindVM
	default:
		return kindContainer
	}
	return ""
}

// SlicePath returns the path of a slice's cgroup, relative to the root of the cgroup tree and
// without a leading slash: magikpod.slice/magikpod-default.slice/magikpod-default-web.slice.
func SlicePath(slice string) string {
	base := strings.TrimSuffix(slice, ".slice")
	var path strings.Builder
	for i := range len(base) {
		if base[i] == '-' {
			path.WriteString(base[:i] + ".slice/")
		}
	}
	path.WriteString(base + ".slice")
	return path.String()
}

// sliceOf returns the slice that a unit with a name of this package lies in; "" when the name does
// not say.
func sliceOf(unit string) string {
	base, isSlice := strings.CutSuffix(unit, ".slice")
	if !isSlice {
		base = strings.TrimSuffix(unit, ".service")
	}
	i := strings.LastIndexByte(base, '-')
	if i < 0 {
		return ""
	}
	return base[:i] + ".slice"
}

// podOf is what the names of all units of a pod begin with, magikpod-NAMESPACE-POD; of other units
// it is the name without its kind.
func podOf(unit string) string {
	base := strings.TrimSuffix(strings.TrimSuffix(unit, ".service"), ".slice")
	dashes := 0
	for i := range len(base) {
		if base[i] == '-' {
			if dashes++; dashes == 3 {
				return base[:i]
			}
		}
	}
	return base
}

// PodLayout lays out the units of magikpodd's pods: one sandbox of a pod at a time, in a slice of
// its namespace.
type PodLayout struct{}

// Names returns the units of a pod.
func (PodLayout) Names(ref pod.Ref) PodNames { return Names(ref.Namespace, ref.Name) }

// Container returns the unit of a container.
func (PodLayout) Container(ref pod.Ref, container string) string {
	return ContainerService(ref.Namespace, ref.Name, container)
}

// Slices returns the slices of a pod.
func (PodLayout) Slices(_ pod.Ref, p *corev1.Pod, limits Limits) []Aux { return PodSlices(p, limits) }
