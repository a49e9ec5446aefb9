package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/internal/printable"
	"github.com/magikrun/magikpod/pod"
)

func validateCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "validate -f FILE|-", Short: "Print every problem of a manifest, one a line; no daemon is needed", Args: noArgs,
		Example: `  magikpodctl validate -f web.yaml`,
		RunE: func(*cobra.Command, []string) error {
			if file == "" {
				return usagef("which manifest? (usage: magikpodctl validate -f FILE|-)")
			}
			text, err := readFile(file)
			if err != nil {
				return err
			}
			wrong := false
			for _, p := range check(text, a.namespace) {
				wrong = wrong || p.Severity == pod.SeverityError
				line := p.Severity + ": "
				if p.Path != "" {
					line += p.Path + ": "
				}
				if _, err := fmt.Fprintln(a.out, printable.Line(line+p.Message)); err != nil {
					return err
				}
			}
			if wrong {
				return exitStatus(exitInvalid)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "the manifest; - is standard input")
	return cmd
}

// check does what the daemon does first with a manifest. It needs no daemon, so it cannot know what
// this host lacks for a runtime class, nor which names are taken.
func check(text []byte, namespace string) []pod.Problem {
	_, errs, warnings, err := pod.Read(text, namespace, nil)
	if err != nil {
		return pod.ProblemsOf(err)
	}
	return pod.Problems(errs, warnings)
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
