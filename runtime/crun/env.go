package crun

import "strings"

// Env is an environment. A later value takes the place of an earlier one, so that every name occurs
// once.
type Env struct {
	list  []string
	index map[string]int
}

// Set sets a variable.
func (e *Env) Set(name, value string) {
	if i, ok := e.index[name]; ok {
		e.list[i] = name + "=" + value
		return
	}
	if e.index == nil {
		e.index = map[string]int{}
	}
	e.index[name] = len(e.list)
	e.list = append(e.list, name+"="+value)
}

// SetDefault sets a variable that is missing.
func (e *Env) SetDefault(name, value string) {
	if _, ok := e.index[name]; !ok {
		e.Set(name, value)
	}
}

// Add sets the variable of an entry, NAME=VALUE. It returns false for what is none: an OCI runtime
// may take it for the name of a variable of its own environment, and leak that into the container
// (CVE-2026-57231).
func (e *Env) Add(entry string) bool {
	name, value, ok := strings.Cut(entry, "=")
	if !ok || name == "" || strings.ContainsRune(entry, 0) {
		return false
	}
	e.Set(name, value)
	return true
}

// List are the entries, in the order in which their names came.
func (e *Env) List() []string { return e.list }
