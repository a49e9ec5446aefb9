package pod

import (
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The fields that are not honoured, by the name in the manifest, with the reason. Where the value
// matters the code is beside the checks of the fields around it; a test makes sure that every field
// of the API is in one of these places.
var (
	podRefused = map[string]string{
		"ephemeralContainers": "ephemeral containers are not supported; use magikpodctl exec",
		"readinessGates":      "nothing on this host sets conditions of pods, so the pod would never be ready",
		"schedulingGates":     "nothing on this host removes gates, so the pod would never start",
		"resourceClaims":      "dynamic resource allocation is not supported",
	}
	podIgnored = map[string]string{
		"nodeSelector":              noScheduler,
		"nodeName":                  noScheduler,
		"affinity":                  noScheduler,
		"tolerations":               noScheduler,
		"topologySpreadConstraints": noScheduler,
		"schedulingGroup":           noScheduler,
		"priorityClassName":         noPriority,
		"priority":                  noPriority,
		"preemptionPolicy":          noPriority,
		"evictionResponders":        "is ignored: pods are never evicted",
		"serviceAccountName":        noAPIServer,
		"serviceAccount":            noAPIServer,
		"imagePullSecrets":          "is ignored: images are pulled with the credentials of the host",
	}
	containerRefused = map[string]string{
		"restartPolicyRules": "restart rules of a container are not supported",
		"volumeDevices":      "block devices as volumes are not supported; use a hostPath volume of type BlockDevice",
		"stdin":              "a container's stdin is /dev/null; use magikpodctl exec -it for a shell",
		"stdinOnce":          "a container's stdin is /dev/null",
		"tty":                "a container gets no terminal; use magikpodctl exec -it for a shell",
	}
	containerIgnored = map[string]string{
		"resizePolicy": "is ignored: a container's resources are not changed while it runs",
	}
)

const (
	noScheduler = "is ignored: there is no scheduler, the pod runs on this host"
	noPriority  = "is ignored: there is no scheduler, and no pod makes way for another one"
	noAPIServer = "is ignored: there is no API server, so the pod gets no token"
)

// unheard reports the fields of a pod's spec that are not honoured whatever they say.
func (c *checker) unheard(s *corev1.PodSpec, path *field.Path) {
	c.fields(reflect.ValueOf(*s), path, podRefused, podIgnored)
	if t := s.AutomountServiceAccountToken; isTrue(t) {
		c.warn(path.Child("automountServiceAccountToken"), noAPIServer)
	}
	if s.SchedulerName != corev1.DefaultSchedulerName && s.SchedulerName != "" {
		c.warn(path.Child("schedulerName"), noScheduler)
	}
}

// fields reports each field of a struct that is set and in one of the tables.
func (c *checker) fields(v reflect.Value, path *field.Path, refused, ignored map[string]string) {
	for f, value := range v.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if value.IsZero() || (value.Kind() == reflect.Slice || value.Kind() == reflect.Map) && value.Len() == 0 {
			continue
		}
		if why, ok := refused[name]; ok {
			c.refuse(path.Child(name), why)
		}
		if what, ok := ignored[name]; ok {
			c.warn(path.Child(name), what)
		}
	}
}
