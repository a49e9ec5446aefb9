package dbus

import (
	_ "embed" // the XML below
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
)

// The contract, served as it is.
var (
	//go:embed introspect/manager.xml
	managerXML string
	//go:embed introspect/pod.xml
	podXML string
	//go:embed introspect/job.xml
	jobXML string
)

var introspectMethods = []method{{name: "Introspect", out: "s", handle: (*call).introspect}}

// introspect needs no permission: the contract is public. Which pods there are is not, so the nodes
// below /pod and /job are listed only for those who may read.
func (c *call) introspect() ([]any, error) {
	if c.path == ManagerPath {
		return []any{managerXML}, nil
	}
	if _, ok := contract.UIDOfPath(c.path); ok {
		return []any{podXML}, nil
	}
	if _, ok := contract.JobOfPath(c.path); ok {
		return []any{jobXML}, nil
	}
	var nodes []string
	switch path := string(c.path); {
	case path+"/" == contract.PodPrefix:
		if c.authorise(ActionRead) == nil {
			for _, p := range c.server.backend.List() {
				nodes = append(nodes, strings.TrimPrefix(string(contract.PodPath(p.UID)), contract.PodPrefix))
			}
		}
	case path+"/" == contract.JobPrefix:
		if c.authorise(ActionRead) == nil {
			for _, j := range c.server.backend.Jobs() {
				nodes = append(nodes, strings.TrimPrefix(string(contract.JobPath(j.ID)), contract.JobPrefix))
			}
		}
	default:
		nodes = parentNodes(c.path)
	}
	var b strings.Builder
	b.WriteString("<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n" +
		" \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n")
	for _, n := range nodes {
		b.WriteString(" <node name=\"" + n + "\"/>\n") // letters, digits and _ only
	}
	b.WriteString("</node>\n")
	return []any{b.String()}, nil
}

// parentNodes returns the next element on the way from path to the manager.
func parentNodes(path godbus.ObjectPath) []string {
	prefix := strings.TrimSuffix(string(path), "/") + "/"
	rest, ok := strings.CutPrefix(string(ManagerPath), prefix)
	if !ok {
		return nil
	}
	name, _, _ := strings.Cut(rest, "/")
	return []string{name}
}
