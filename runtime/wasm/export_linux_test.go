package wasm

// Waiting is how many wait for the compilation of a module.
func (r *Runtime) Waiting(file string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.compiling[file]; c != nil {
		return c.waiting
	}
	return 0
}
