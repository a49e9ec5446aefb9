package wasm

// Waiting is how many wait for the compilation of a module.
func (l *Launcher) Waiting(file string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.compiling[file]; c != nil {
		return c.waiting
	}
	return 0
}
