package main

import (
	"github.com/magikrun/magikpod/pod"
)

// check does what the daemon does first with a manifest. It needs no daemon, so it cannot know what
// this host lacks for a runtime class, nor which names are taken.
func check(text []byte, namespace string) (lines []string, ok bool) {
	var problems []pod.Problem
	if _, errs, warnings, err := pod.Read(text, namespace, nil); err != nil {
		problems = pod.ProblemsOf(err)
	} else {
		problems = pod.Problems(errs, warnings)
	}
	ok = true
	for _, p := range problems {
		ok = ok && p.Severity != pod.SeverityError
		line := p.Severity + ": "
		if p.Path != "" {
			line += p.Path + ": "
		}
		lines = append(lines, line+p.Message)
	}
	return lines, ok
}

// podNames returns the pods of a manifest as NAMESPACE/NAME. Only names matter here: the pod may
// have been made from an older manifest, or may be one that this version would not accept any more.
func podNames(text []byte, namespace string) ([]string, error) {
	m, err := pod.Parse(text)
	if err == nil {
		err = m.SetNamespace(namespace)
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range m.Pods {
		if err := pod.ValidateName(p.Name); err != nil {
			return nil, err
		}
		names = append(names, p.Namespace+"/"+p.Name)
	}
	if len(names) == 0 {
		return nil, pod.Errorf(pod.Invalid, "cannot delete: there is no pod in the manifest")
	}
	return names, nil
}
