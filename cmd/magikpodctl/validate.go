package main

import (
	"bytes"
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/magikrun/magikpod/pod"
)

func validateCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "validate -f FILE|-", Short: "Print every problem of a manifest, one a line; no daemon is needed", Args: noArgs,
		Example: `  magikpodctl validate -f web.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("which manifest? (usage: magikpodctl validate -f FILE|-)")
			}
			text, err := readFile(file)
			if err != nil {
				return err
			}
			problems := check(text, a.namespace)
			wrong := false
			for _, p := range problems {
				wrong = wrong || p.Severity == "error"
				line := p.Severity + ": "
				if p.Path != "" {
					line += p.Path + ": "
				}
				_, _ = fmt.Fprintln(a.out, line+oneLine(p.Message))
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

// check returns every problem of a manifest. It needs no daemon, so it does not know what this host can do and has.
func check(text []byte, namespace string) []pod.Problem {
	m, err := pod.Parse(text)
	if err == nil {
		err = m.SetNamespace(namespace)
	}
	if err != nil {
		return pod.ProblemsOf(err)
	}
	for _, p := range m.Pods {
		pod.Default(p)
	}
	return pod.Problems(pod.Validate(&m))
}

// podNames returns the pods of a manifest as NAMESPACE/NAME. Only names matter here: the pod may have been made from an older manifest.
func podNames(text []byte, namespace string) ([]string, error) {
	var names []string
	for _, doc := range bytes.Split(append([]byte("\n"), text...), []byte("\n---")) {
		var head struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal(doc, &head); err != nil {
			return nil, pod.Errorf(pod.Invalid, "cannot read the manifest: %s", oneLine(err.Error()))
		}
		if head.Kind != "Pod" {
			continue
		}
		ns := head.Metadata.Namespace
		if ns == "" {
			ns = namespace
		}
		if ns == "" {
			ns = pod.DefaultNamespace
		}
		names = append(names, ns+"/"+head.Metadata.Name)
	}
	if len(names) == 0 {
		return nil, pod.Errorf(pod.Invalid, "cannot delete: there is no pod in the manifest")
	}
	return names, nil
}
