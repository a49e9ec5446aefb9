package pod

import (
	"math"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (k *containerChecker) probes() {
	c := k.c
	for name, p := range map[string]*corev1.Probe{"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe} {
		at := k.path.Child(name)
		switch {
		case p == nil:
		case k.init && !k.sidecar():
			k.refuse(at, "an init container that is no sidecar has no probes")
		default:
			k.probe(at, p, p == c.ReadinessProbe)
		}
	}
}

func (k *containerChecker) probe(at *field.Path, p *corev1.Probe, readiness bool) {
	k.between(at.Child("initialDelaySeconds"), int64(p.InitialDelaySeconds), 0, math.MaxInt32)
	k.between(at.Child("timeoutSeconds"), int64(p.TimeoutSeconds), 1, math.MaxInt32)
	k.between(at.Child("periodSeconds"), int64(p.PeriodSeconds), 1, math.MaxInt32)
	k.between(at.Child("failureThreshold"), int64(p.FailureThreshold), 1, math.MaxInt32)
	if readiness {
		k.between(at.Child("successThreshold"), int64(p.SuccessThreshold), 1, math.MaxInt32)
	} else if p.SuccessThreshold != 1 {
		k.invalid(at.Child("successThreshold"), p.SuccessThreshold, "must be 1")
	}
	if grace := p.TerminationGracePeriodSeconds; grace != nil {
		if readiness {
			k.refuse(at.Child("terminationGracePeriodSeconds"), "a readiness probe stops nothing")
		} else {
			k.between(at.Child("terminationGracePeriodSeconds"), *grace, 1, int64(MaxGracePeriod.Seconds()))
		}
	}
	k.handler(at, &p.ProbeHandler)
}

func (k *containerChecker) handler(at *field.Path, h *corev1.ProbeHandler) {
	handlers := 0
	for f, value := range reflect.ValueOf(*h).Fields() {
		if value.IsZero() {
			continue
		}
		if handlers++; handlers > 1 {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			k.refuse(at.Child(name), "a probe has only one handler")
		}
	}
	switch {
	case handlers == 0:
		k.required(at, "a probe needs a handler: exec, httpGet or tcpSocket")
	case h.Exec != nil:
		if len(h.Exec.Command) == 0 {
			k.required(at.Child("exec", "command"), "")
		}
		k.words(at.Child("exec", "command"), h.Exec.Command)
	case h.HTTPGet != nil:
		k.httpGet(at.Child("httpGet"), h.HTTPGet)
	case h.TCPSocket != nil:
		k.port(at.Child("tcpSocket", "port"), h.TCPSocket.Port)
		k.word(at.Child("tcpSocket", "host"), h.TCPSocket.Host)
	case h.GRPC != nil:
		k.refuse(at.Child("grpc"), "gRPC probes are not supported; use exec, httpGet or tcpSocket")
	}
}

func (k *containerChecker) httpGet(at *field.Path, h *corev1.HTTPGetAction) {
	k.port(at.Child("port"), h.Port)
	k.word(at.Child("host"), h.Host)
	if h.Path == "" {
		k.required(at.Child("path"), "")
	}
	k.noControl(at.Child("path"), h.Path)
	oneOf(k.checker, at.Child("scheme"), h.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	if h.Protocol != nil && *h.Protocol != corev1.HTTPProtocolHTTP1 {
		k.refuse(at.Child("protocol"), "probes speak HTTP/1.1")
	}
	for i, header := range h.HTTPHeaders {
		h := at.Child("httpHeaders").Index(i)
		if header.Name == "" {
			k.required(h.Child("name"), "")
		} else {
			k.all(h.Child("name"), header.Name, validation.IsHTTPHeaderName(header.Name))
		}
		k.noControl(h.Child("value"), header.Value)
	}
}

// port checks a number, or the name of one of the container's ports.
func (k *containerChecker) port(at *field.Path, port intstr.IntOrString) {
	if port.Type == intstr.Int {
		k.between(at, int64(port.IntVal), 1, maxPort)
		return
	}
	for _, p := range k.c.Ports {
		if p.Name == port.StrVal && p.Name != "" {
			return
		}
	}
	k.invalid(at, port.StrVal, "must be a number, or the name of a port of this container")
}
