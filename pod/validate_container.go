package pod

import (
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// containerChecker checks one container of a pod.
type containerChecker struct {
	*checker
	c       *corev1.Container
	path    *field.Path
	init    bool
	volumes map[string]bool // the pod's, by name
	names   map[string]bool // of the containers so far
}

func (k *containerChecker) sidecar() bool {
	return k.init && Sidecar(k.c)
}

func (k *containerChecker) check() {
	c := k.c
	k.fields(reflect.ValueOf(*c), k.path, containerRefused, containerIgnored)
	k.name()
	k.image()
	k.words(k.path.Child("command"), c.Command)
	k.words(k.path.Child("args"), c.Args)
	k.noControl(k.path.Child("workingDir"), c.WorkingDir)
	if c.RestartPolicy != nil && !k.sidecar() {
		k.refuse(k.path.Child("restartPolicy"), "only Always of an init container (a sidecar) is supported")
	}
	oneOf(k.checker, k.path.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	k.termination()
	k.ports()
	k.env()
	k.resources(c.Resources, k.path.Child("resources"))
	k.mounts()
	k.probes()
	k.lifecycle()
	k.security(k.path.Child("securityContext"))
}

func (k *containerChecker) name() {
	at := k.path.Child("name")
	switch {
	case k.c.Name == "":
		k.required(at, "every container needs a name")
		return
	case k.names[k.c.Name]:
		k.add(field.Duplicate(at, clip(k.c.Name)))
	}
	k.names[k.c.Name] = true
	k.all(at, k.c.Name, validation.IsDNS1123Label(k.c.Name))
	if slices.Contains(reservedContainers, k.c.Name) {
		k.refuse(at, "the name is used by magikpod itself")
	}
}

// reservedContainers are names that units and files of a pod have already: its pause process, and
// its VM.
var reservedContainers = []string{"pause", "vm"}

// maxImageName bounds a reference to an image; a repository's name has at most 255 characters, a
// tag 128.
const maxImageName = 1024

func (k *containerChecker) image() {
	at := k.path.Child("image")
	switch image := k.c.Image; {
	case image == "":
		k.required(at, "every container needs an image")
	case len(image) > maxImageName:
		k.add(field.TooLong(at, "", maxImageName))
	case strings.ContainsFunc(image, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		k.invalid(at, image, "must be printable ASCII without blanks")
	}
}

func (k *containerChecker) words(at *field.Path, list []string) {
	for i, word := range list {
		if strings.ContainsRune(word, 0) {
			k.invalid(at.Index(i), word, "must not contain a NUL byte")
		}
	}
}

func (c *checker) noControl(at *field.Path, value string) bool {
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		c.invalid(at, value, "must not contain control characters")
		return false
	}
	return true
}

func (k *containerChecker) termination() {
	c := k.c
	at := k.path.Child("terminationMessagePath")
	k.noControl(at, c.TerminationMessagePath)
	if p := c.TerminationMessagePath; p != "" && (!strings.HasPrefix(p, "/") || p == "/") {
		k.invalid(at, p, "must be the absolute path of a file")
	} else if KernelPath(p) {
		k.invalid(at, p, kernelPathReason)
	}
	oneOf(k.checker, k.path.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
}

// lifecycle: handlers run inside the container at moments that the runtime classes do not stop at.
func (k *containerChecker) lifecycle() {
	l := k.c.Lifecycle
	if l == nil {
		return
	}
	at := k.path.Child("lifecycle")
	if k.init && !k.sidecar() {
		k.refuse(at, "an init container that is no sidecar has no lifecycle")
		return
	}
	if l.PostStart != nil {
		k.refuse(at.Child("postStart"), "handlers are not supported; let the container's command do it")
	}
	if l.PreStop != nil {
		k.refuse(at.Child("preStop"), "handlers are not supported; let the container handle its stop signal")
	}
	if l.StopSignal != nil && !signalName.MatchString(string(*l.StopSignal)) {
		k.invalid(at.Child("stopSignal"), string(*l.StopSignal), "must be a signal such as SIGTERM, SIGUSR1 or SIGRTMIN+3")
	}
}

// signalName are the signals of Linux that Kubernetes knows by name (core/v1, Signal).
var signalName = regexp.MustCompile(`^SIG(ABRT|ALRM|BUS|CHLD|CLD|CONT|FPE|HUP|ILL|INT|IO|IOT|KILL|PIPE|POLL|PROF|PWR|QUIT|SEGV|STKFLT|STOP|SYS|` +
	`TERM|TRAP|TSTP|TTIN|TTOU|URG|USR1|USR2|VTALRM|WINCH|XCPU|XFSZ|RTMIN(\+([1-9]|1[0-5]))?|RTMAX(-([1-9]|1[0-4]))?)$`)

func (k *containerChecker) mounts() {
	seen := make(map[string]bool)
	for i := range k.c.VolumeMounts {
		m := &k.c.VolumeMounts[i]
		at := k.path.Child("volumeMounts").Index(i)
		if m.Name == "" {
			k.required(at.Child("name"), "")
		} else if !k.volumes[m.Name] {
			k.add(field.NotFound(at.Child("name"), clip(m.Name)))
		}
		k.mountPath(at.Child("mountPath"), m.MountPath, seen)
		k.subPath(at.Child("subPath"), m.SubPath)
		if m.SubPathExpr != "" {
			k.refuse(at.Child("subPathExpr"), "is not supported; use subPath")
		}
		if len(m.BindMountOptions) > 0 {
			k.refuse(at.Child("bindMountOptions"), "mount options are not supported")
		}
		if r := m.RecursiveReadOnly; r != nil && *r != corev1.RecursiveReadOnlyDisabled {
			k.refuse(at.Child("recursiveReadOnly"), "only Disabled is supported")
		}
		if p := m.MountPropagation; p != nil {
			if *p == corev1.MountPropagationBidirectional {
				k.refuse(at.Child("mountPropagation"), "mounts of a container never reach the host; HostToContainer and None are supported")
			} else {
				oneOf(k.checker, at.Child("mountPropagation"), *p, corev1.MountPropagationNone, corev1.MountPropagationHostToContainer)
			}
		}
	}
}

func (k *containerChecker) mountPath(at *field.Path, dest string, seen map[string]bool) {
	clean := path.Clean("/" + dest) // a relative path starts at the root, as in Kubernetes
	switch {
	case dest == "":
		k.required(at, "")
	case !k.noControl(at, dest):
	case len(dest) > maxPath:
		k.add(field.TooLong(at, "", maxPath))
	case slices.Contains(strings.Split(dest, "/"), ".."):
		k.invalid(at, dest, "must be a path without ..")
	case clean == "/":
		k.invalid(at, dest, "must not be the container's root")
	case KernelPath(clean):
		k.invalid(at, dest, kernelPathReason)
	case seen[clean]:
		k.add(field.Duplicate(at, clip(dest)))
	}
	seen[clean] = true
}

const kernelPathReason = "must not be /proc, /sys or below them: they are the kernel's, and a volume there would hide what confines the container"

// KernelPath says whether an absolute path of a container is /proc, /sys or below one of them. What
// security rests on is there (/proc/self/attr, masked files), so OCI runtimes refuse mounts in most
// places of it.
func KernelPath(p string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+p), "/"), "/")
	return first == "proc" || first == "sys"
}

// maxPath is the kernel's PATH_MAX, without the NUL.
const maxPath = 4095

// subPath checks a path inside a volume.
func (c *checker) subPath(at *field.Path, value string) {
	switch {
	case value == "" || !c.noControl(at, value):
	case len(value) > maxPath:
		c.add(field.TooLong(at, "", maxPath))
	case path.IsAbs(value) || slices.Contains(strings.Split(value, "/"), ".."):
		c.invalid(at, value, "must be a relative path without ..")
	}
}
