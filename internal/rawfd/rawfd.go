// Package rawfd lends the descriptor of an open file or connection.
package rawfd

import "syscall"

// Use calls use with the descriptor of f, which stays open until then, and returns its error.
// Unlike [os.File.Fd] it does not make the file blocking.
func Use(f syscall.Conn, use func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var used error
	if err := conn.Control(func(fd uintptr) { used = use(int(fd)) }); err != nil {
		return err
	}
	return used
}
