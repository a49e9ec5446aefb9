// Package ownthread runs functions that change their thread for good: its namespaces, its working
// directory.
package ownthread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs fn in a goroutine of its own whose thread ends with it, so that fn may do to the thread
// what it likes. It never runs on the process's main thread, which does not end and is what
// /proc/self shows. Programs that fn starts begin as the thread is; goroutines that it starts do
// not.
func Run(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- Run(fn) // while we occupy the main thread the other goroutine cannot get it
			return
		}
		done <- fn()
	}()
	return <-done
}
