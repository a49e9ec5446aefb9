package pod

import (
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// takeOut removes what a cluster generates, so that a pod which kubectl printed can be run here,
// and remembers what there was.
func (p *parser) takeOut(meta *metav1.ObjectMeta, status *corev1.PodStatus) {
	var ignored []string
	clean := metav1.ObjectMeta{Name: meta.Name, Namespace: meta.Namespace, Labels: meta.Labels, Annotations: meta.Annotations}
	if meta.Name == "" {
		clean.GenerateName = meta.GenerateName // it makes a better error
	}
	was, is := reflect.ValueOf(*meta), reflect.ValueOf(clean)
	for f := range was.Type().Fields() {
		if !was.FieldByIndex(f.Index).IsZero() && is.FieldByIndex(f.Index).IsZero() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			ignored = append(ignored, "metadata."+name)
		}
	}
	*meta = clean
	if status != nil {
		if !reflect.ValueOf(*status).IsZero() {
			ignored = append(ignored, "status")
		}
		*status = corev1.PodStatus{}
	}
	if len(ignored) > 0 {
		if p.manifest.ignored == nil {
			p.manifest.ignored = make(map[*metav1.ObjectMeta][]string)
		}
		p.manifest.ignored[meta] = ignored
	}
}
