package daemon

import (
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
)

// limiters are the controllers that the limits of pods need, and what they limit.
var limiters = []struct{ controller, what string }{{"cpu", "CPU time"}, {"memory", "memory"}, {"pids", "processes"}}

// missingControllers are those of limiters that this host does not have; none when that is not
// known. v2 is the root of cgroup version 2. On a hybrid host systemd uses the controllers of
// version 1, each in a directory of its name beside it.
func missingControllers(v2 string) []string {
	data, err := os.ReadFile(v2 + "/cgroup.controllers")
	if err != nil {
		return nil
	}
	have := strings.Fields(string(data))
	var missing []string
	for _, l := range limiters {
		v1, hybrid := strings.CutSuffix(v2, "/unified")
		if hybrid {
			_, err = os.Stat(v1 + "/" + l.controller + "/cgroup.procs")
			hybrid = err == nil
		}
		if !hybrid && !slices.Contains(have, l.controller) {
			missing = append(missing, l.controller)
		}
	}
	return missing
}

// unenforced says for people which limits of a class this host cannot enforce; empty: it enforces all.
func (h *Host) unenforced(class string) string {
	var what, missing []string
	for _, l := range limiters {
		if slices.Contains(h.MissingControllers, l.controller) && !enforcedByClass(class, l.controller) {
			what, missing = append(what, l.what), append(missing, l.controller)
		}
	}
	if what == nil {
		return ""
	}
	return fmt.Sprintf("limits of %s have no effect on this host: it does not have the cgroup controllers %s",
		strings.Join(what, ", "), strings.Join(missing, ", "))
}

// enforcedByClass says whether the limits of a container are enforced without the host's
// controller. A VM has its own, and its size is a limit; a module's memory is bounded by its
// engine.
func enforcedByClass(class, controller string) bool {
	return class == pod.ClassMicroVM || class == pod.ClassWasm && controller == "memory"
}

// ignoredLimits warns of the requests and limits of a pod that will have no effect on this host. Of
// a resource that has a limit, the limit is named alone: the request may come from it.
func (d *Daemon) ignoredLimits(p *corev1.Pod) field.ErrorList {
	class := pod.ClassOf(p)
	if len(d.host.MissingControllers) == 0 || class == pod.ClassMicroVM {
		return nil
	}
	var warnings field.ErrorList
	check := func(r corev1.ResourceRequirements, at *field.Path, ofContainer bool) {
		for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			controller := string(resource) // they have the same names
			if !slices.Contains(d.host.MissingControllers, controller) {
				continue
			}
			_, limited := r.Limits[resource]
			_, requested := r.Requests[resource]
			part := "limits"
			switch {
			case limited && ofContainer && enforcedByClass(class, controller), !limited && !requested:
				continue
			case !limited:
				part = "requests"
			}
			warnings = append(warnings, field.Forbidden(at.Child(part).Key(controller), "has no effect on this host, which does not have the cgroup controller "+controller))
		}
	}
	if p.Spec.Resources != nil {
		check(*p.Spec.Resources, field.NewPath("spec", "resources"), false)
	}
	for c, path := range pod.ContainerPaths(&p.Spec) {
		check(c.Resources, path.Child("resources"), true)
	}
	return warnings
}
