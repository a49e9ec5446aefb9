package dbus

import (
	"encoding/json"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// properties are the values of one interface of one object.
type properties map[string]godbus.Variant

// podProperties makes the properties of org.magikpod1.Pod.
func podProperties(d *pod.Detail) properties {
	p := summaryProperties(&d.Summary)
	status := "{}"
	if d.Pod != nil {
		if text, err := json.Marshal(d.Pod.Status); err == nil {
			status = string(text)
		}
	}
	p["Status"] = godbus.MakeVariant(status)
	return p
}

func isReady(s *pod.Summary) bool {
	return s.Total > 0 && s.Ready == s.Total && s.Phase == "Running"
}

// summaryProperties makes those of them that are in a list: all but Status.
func summaryProperties(s *pod.Summary) properties {
	return properties{
		"Namespace":       godbus.MakeVariant(s.Namespace),
		"Name":            godbus.MakeVariant(s.Name),
		"UID":             godbus.MakeVariant(string(s.UID)),
		"Phase":           godbus.MakeVariant(s.Phase),
		"State":           godbus.MakeVariant(s.State),
		"RuntimeClass":    godbus.MakeVariant(s.Class),
		"Ready":           godbus.MakeVariant(isReady(s)),
		"ReadyContainers": godbus.MakeVariant(uint32(s.Ready)),
		"TotalContainers": godbus.MakeVariant(uint32(s.Total)),
		"Restarts":        godbus.MakeVariant(uint32(s.Restarts)),
		"PodIPs":          godbus.MakeVariant(notNil(s.IPs)),
		"CreatedUSec":     godbus.MakeVariant(contract.USec(s.Created)),
		"Slice":           godbus.MakeVariant(s.Slice),
	}
}

// jobProperties makes the properties of org.magikpod1.Job.
func jobProperties(j pod.JobInfo) properties {
	text := ""
	if j.Err != nil {
		text = busText(j.Err.Error())
	}
	status := int32(-1)
	if j.ExitStatus != nil {
		status = int32(*j.ExitStatus)
	}
	return properties{
		"Id":           godbus.MakeVariant(j.ID),
		"Kind":         godbus.MakeVariant(j.Kind),
		"Objects":      godbus.MakeVariant(notNil(j.Objects)),
		"Progress":     godbus.MakeVariant(busText(j.Progress)),
		"Fraction":     godbus.MakeVariant(j.Fraction),
		"State":        godbus.MakeVariant(j.State),
		"ErrorName":    godbus.MakeVariant(errorName(j.Err)),
		"ErrorMessage": godbus.MakeVariant(text),
		"Warnings":     godbus.MakeVariant(notNil(j.Warnings)),
		"Output":       godbus.MakeVariant(notNil(j.Output)),
		"ExitStatus":   godbus.MakeVariant(status),
	}
}

// managerProperties returns the properties of org.magikpod1.Manager.
func managerProperties(c *call) (string, properties, error) {
	if err := c.authorise(ActionRead); err != nil {
		return "", nil, err
	}
	return ManagerInterface, properties{"Version": godbus.MakeVariant(c.server.backend.Info().Version)}, nil
}

// podPropertiesOf returns the properties of the pod that the call is for.
func podPropertiesOf(c *call) (string, properties, error) {
	if err := c.authorise(ActionRead); err != nil {
		return "", nil, err
	}
	d, err := c.detail()
	if err != nil {
		return "", nil, err
	}
	return PodInterface, podProperties(&d), nil
}

// jobPropertiesOf returns the properties of the job that the call is for. Who started a job may
// look at it.
func jobPropertiesOf(c *call) (string, properties, error) {
	id, _ := contract.JobOfPath(c.path)
	job, ok := c.server.job(id)
	if !ok || job.Owner != c.sender {
		if err := c.authorise(ActionRead); err != nil {
			return "", nil, err
		}
	}
	if !ok {
		return "", nil, pod.Errorf(pod.NotFound, "cannot find job %d: no such job", id)
	}
	return JobInterface, jobProperties(job), nil
}

// propertyMethods is org.freedesktop.DBus.Properties for the objects whose interface and properties
// read returns.
func propertyMethods(read func(c *call) (string, properties, error)) []method {
	get := func(c *call) ([]any, error) {
		var name, property string
		if err := c.store(&name, &property); err != nil {
			return nil, err
		}
		own, all, err := read(c)
		if err != nil {
			return nil, err
		}
		v, ok := all[property]
		if !ok || name != own && name != "" {
			return nil, pod.Errorf(pod.Unsupported, "cannot get the property %s.%s: no such property", name, property)
		}
		return []any{v}, nil
	}
	getAll := func(c *call) ([]any, error) {
		var name string
		if err := c.store(&name); err != nil {
			return nil, err
		}
		own, all, err := read(c)
		if err != nil {
			return nil, err
		}
		if name != own && name != "" {
			all = properties{} // the standard interfaces have none
		}
		return []any{all}, nil
	}
	set := func(c *call) ([]any, error) {
		name, _ := c.body[1].(string)
		return nil, pod.Errorf(pod.Unsupported, "cannot set the property %s: it is read-only", name)
	}
	return []method{
		{name: "Get", in: "ss", out: "v", handle: get},
		{name: "GetAll", in: "s", out: "a{sv}", handle: getAll},
		{name: "Set", in: "ssv", handle: set},
	}
}

func notNil(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = busText(s)
	}
	return out
}
