package microvm

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
)

// Validate returns what a pod cannot have in a VM of this host. What it cannot have in any,
// [pod.Validate] refuses.
func (r *Runtime) Validate(p *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	spec, why := field.NewPath("spec"), r.noShare()
	if r.manyImages(p) && why != "" {
		errs = append(errs, field.Forbidden(spec.Child("containers"),
			fmt.Sprintf("%d images, and a VM of %s has disks for %d: %s", r.countImages(p), r.driver.Name(), r.maxImages(), why)))
	}
	for i, v := range p.Spec.Volumes {
		if why != "" && v.HostPath != nil && mountedWritable(p, v.Name) {
			errs = append(errs, field.Forbidden(spec.Child("volumes").Index(i).Child("hostPath"),
				why+": a VM gets a copy, and all mounts of the volume must be readOnly"))
		}
	}
	return errs
}

// mountedWritable says whether a container of the pod may write to a volume.
func mountedWritable(p *corev1.Pod, volume string) bool {
	for c := range pod.AllContainers(&p.Spec) {
		for _, m := range c.VolumeMounts {
			if m.Name == volume && !m.ReadOnly {
				return true
			}
		}
	}
	return false
}
