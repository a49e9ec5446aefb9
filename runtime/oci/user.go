package oci

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// maxID is the largest user or group ID that Kubernetes and the user database code accept: the IDs
// above it turn negative in 32-bit programs, and wrap to 0 in the worst case.
const maxID = math.MaxInt32

// execUser is the user of the first process, and the home directory of the image's passwd ("/" when
// it names none).
//
// The user is runAsUser, else the image's; the group is runAsGroup, else the image's (USER
// user:group, or the user's in passwd), else 0. The supplementary groups are those of the image's
// group file (unless the policy is Strict), supplementalGroups and fsGroup.
func execUser(in Input) (specs.User, string, error) {
	sc, psc := security(in.Container), podSecurity(in.Pod)
	runAsUser, runAsGroup, nonRoot := first(sc.RunAsUser, psc.RunAsUser), first(sc.RunAsGroup, psc.RunAsGroup), first(sc.RunAsNonRoot, psc.RunAsNonRoot)

	name, group, hasGroup := strings.Cut(in.Image.Config.User, ":")
	if runAsUser != nil {
		if err := checkID(in, "runAsUser", *runAsUser); err != nil {
			return specs.User{}, "", err
		}
		name, group, hasGroup = strconv.FormatInt(*runAsUser, 10), "", false
	}
	if runAsGroup != nil {
		if err := checkID(in, "runAsGroup", *runAsGroup); err != nil {
			return specs.User{}, "", err
		}
		group, hasGroup = strconv.FormatInt(*runAsGroup, 10), true
	}
	full := name
	if hasGroup && group != "" {
		full += ":" + group
	}
	resolved, err := lookup(in, full)
	if err != nil {
		return specs.User{}, "", err
	}
	if isTrue(nonRoot) {
		if err := verifyNonRoot(in, runAsUser, name, resolved.Uid); err != nil {
			return specs.User{}, "", err
		}
	}
	groups, err := supplementary(in, name, resolved.Gid)
	if err != nil {
		return specs.User{}, "", err
	}
	home := resolved.Home
	if home == "" {
		home = "/"
	}
	return specs.User{UID: uint32(resolved.Uid), GID: uint32(resolved.Gid), AdditionalGids: groups}, home, nil
}

// lookup resolves USER[:GROUP] with the image's files; a number needs no entry.
func lookup(in Input, spec string) (*user.ExecUser, error) {
	resolved, err := user.GetExecUser(spec, nil, bytes.NewReader(in.Image.Passwd), bytes.NewReader(in.Image.Group))
	if err != nil {
		return nil, pod.Errorf(pod.Invalid, "cannot run container %q as user %q: %v", in.Container.Name, spec, err)
	}
	for _, id := range append([]int{resolved.Uid, resolved.Gid}, resolved.Sgids...) {
		if id < 0 || id > maxID {
			return nil, pod.Errorf(pod.Invalid, "cannot run container %q as user %q: the image gives it the ID %d, which is not in 0-%d", in.Container.Name, spec, id, maxID)
		}
	}
	return resolved, nil
}

// supplementary lists the supplementary groups, without repetition; the primary group is the first
// of them, so that a file that denies the group cannot be got round by leaving it (CVE-2022-36109).
func supplementary(in Input, name string, gid int) ([]uint32, error) {
	psc := podSecurity(in.Pod)
	groups := []uint32{uint32(gid)}
	add := func(field string, id int64) error {
		if err := checkID(in, field, id); err != nil {
			return err
		}
		if !slices.Contains(groups, uint32(id)) {
			groups = append(groups, uint32(id))
		}
		return nil
	}
	if psc.SupplementalGroupsPolicy == nil || *psc.SupplementalGroupsPolicy != corev1.SupplementalGroupsPolicyStrict {
		// With USER user:group the groups of the user count too, so ask without the group.
		own, err := lookup(in, name)
		if err != nil {
			return nil, err
		}
		for _, id := range own.Sgids {
			if err := add("group file", int64(id)); err != nil {
				return nil, err
			}
		}
	}
	for _, id := range psc.SupplementalGroups {
		if err := add("supplementalGroups", id); err != nil {
			return nil, err
		}
	}
	if psc.FSGroup != nil {
		if err := add("fsGroup", *psc.FSGroup); err != nil {
			return nil, err
		}
	}
	return groups, nil
}

// verifyNonRoot enforces runAsNonRoot with the kubelet's rules: an image's user must be a number,
// because a name means what the image wants.
func verifyNonRoot(in Input, runAsUser *int64, imageUser string, uid int) error {
	where := "(pod: \"" + in.Pod.Name + "_" + in.Pod.Namespace + "(" + string(in.Pod.UID) + ")\", container: " + in.Container.Name + ")"
	if runAsUser != nil {
		if *runAsUser == 0 {
			return pod.Errorf(pod.Invalid, "container's runAsUser breaks non-root policy %s", where)
		}
		return nil
	}
	if imageUser != "" {
		if _, err := strconv.ParseInt(imageUser, 10, 64); err != nil {
			return pod.Errorf(pod.Invalid, "container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", imageUser, where)
		}
	}
	if uid == 0 {
		return pod.Errorf(pod.Invalid, "container has runAsNonRoot and image will run as root %s", where)
	}
	return nil
}

func checkID(in Input, field string, id int64) error {
	if id < 0 || id > maxID {
		return pod.Errorf(pod.Invalid, "cannot run container %q: %s %d is not in 0-%d", in.Container.Name, field, id, maxID)
	}
	return nil
}

// first returns the container's value, else the pod's.
func first[T any](container, pod *T) *T {
	if container != nil {
		return container
	}
	return pod
}
