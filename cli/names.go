package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/magikrun/magikpod/internal/errkind"
)

// podTypes are kubectl's words for what all names here are names of.
var podTypes = []string{"pod", "pods", "po"}

// otherTypes are kubectl's words for types that are not here (kubectl api-resources: names, short
// names, and the singular).
var otherTypes = strings.Fields(`all bindings binding clusterrolebindings clusterrolebinding clusterroles clusterrole componentstatuses componentstatus cs
	configmaps configmap cm controllerrevisions controllerrevision cronjobs cronjob cj csr certificatesigningrequests certificatesigningrequest
	customresourcedefinitions customresourcedefinition crd crds daemonsets daemonset ds deployments deployment deploy endpoints endpoint ep
	endpointslices endpointslice events event ev horizontalpodautoscalers horizontalpodautoscaler hpa ingressclasses ingressclass ingresses ingress ing
	jobs job leases lease limitranges limitrange limits namespaces namespace ns networkpolicies networkpolicy netpol nodes node no
	persistentvolumeclaims persistentvolumeclaim pvc persistentvolumes persistentvolume pv poddisruptionbudgets poddisruptionbudget pdb
	podtemplates podtemplate priorityclasses priorityclass pc replicasets replicaset rs replicationcontrollers replicationcontroller rc
	resourcequotas resourcequota quota rolebindings rolebinding roles role secrets secret serviceaccounts serviceaccount sa services service svc
	statefulsets statefulset sts storageclasses storageclass sc volumeattachments volumeattachment`)

func isPodType(word string) bool { return slices.Contains(podTypes, strings.ToLower(word)) }

// isType knows TYPE, TYPE.GROUP and TYPE,TYPE.
func isType(word string) bool {
	name, _, _ := strings.Cut(word, ".")
	return isPodType(word) || slices.Contains(otherTypes, strings.ToLower(name)) || strings.Contains(word, ",")
}

// names reads what a verb is to be done to, before it is done to any: POD..., NAMESPACE/POD...,
// TYPE POD... and TYPE/POD..., as kubectl does. What comes out is POD or NAMESPACE/POD. A single
// word is a name, be it "pod".
func (a *app) names(ctx context.Context, args []string) ([]string, error) {
	if len(args) > 1 && isType(args[0]) {
		if !isPodType(args[0]) {
			return nil, unknownType(args[0])
		}
		for _, arg := range args[1:] {
			if word, _, ok := strings.Cut(arg, "/"); ok && isType(word) && word != a.namespace {
				return nil, Usagef("%s names a type, and so does %q before it", arg, args[0])
			}
		}
		return args[1:], nil
	}
	names := make([]string, len(args))
	for i, arg := range args {
		var err error
		if names[i], err = a.withoutType(ctx, arg); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func unknownType(word string) error {
	return Usagef("unknown type %q: there are only pods here (a pod of that name is pod/%s)", word, strings.ToLower(word))
}

// withoutType reads TYPE/POD. A namespace may have the name of a type: a pod that is there is never
// taken for another one.
func (a *app) withoutType(ctx context.Context, arg string) (string, error) {
	word, name, ok := strings.Cut(arg, "/")
	if !ok || !isType(word) || word == a.namespace {
		return arg, nil
	}
	isPod := isPodType(word)
	there, err := a.exists(ctx, word, name)
	switch {
	case err != nil:
		return "", err
	case there && isPod:
		return "", Usagef("%s may be the pod %s or one in the namespace %s: say which with -n", arg, name, word)
	case there:
		return arg, nil
	case isPod:
		return name, nil
	}
	return "", unknownType(word)
}

func (a *app) exists(ctx context.Context, namespace, name string) (bool, error) {
	c, err := a.client()
	if err != nil {
		return false, err
	}
	_, err = c.Pod(ctx, namespace, name)
	if kind := errkind.KindOf(err); kind == errkind.NotFound || kind == errkind.Invalid {
		return false, nil
	}
	return err == nil, err
}

// onePod reads the one pod that a verb is for.
func (a *app) onePod(ctx context.Context, args []string) (string, error) {
	names, err := a.names(ctx, args)
	if err != nil {
		return "", err
	}
	if len(names) != 1 {
		return "", Usagef("one pod is wanted, and %d are named: %s", len(names), strings.Join(names, " "))
	}
	return names[0], nil
}
