package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/vsockinit"
	"github.com/magikrun/magikpod/tests/vm/vsockserve"
)

// initPort is where vsockInit answers.
const initPort = "1024"

// vsockInit is PID 1: it loads the modules of /modules and answers over AF_VSOCK. It never returns
// without an error.
func vsockInit() error {
	if err := vsockinit.LoadModules("/modules"); err != nil {
		return err
	}
	return vsockServe(initPort)
}

// vsockServe sends everything that comes to a port back, one connection after the other.
func vsockServe(port string) error {
	number, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	return vsockserve.Serve(uint32(number), func() {}, func(conn vsockserve.Conn) {
		_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}) // the other side's business
		_ = conn.Close()
	})
}

// vsockAsk sends a text to a port of a VM, again and again for as long as timeout says, and prints
// the answer.
func vsockAsk(cid, port, text, timeout string) error {
	to, err1 := strconv.ParseUint(cid, 10, 32)
	number, err2 := strconv.ParseUint(port, 10, 32)
	limit, err3 := time.ParseDuration(timeout)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		answer, err := ask(&unix.SockaddrVM{CID: uint32(to), Port: uint32(number)}, text)
		if err == nil {
			fmt.Println(answer)
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer from CID %s port %s in %v: %w", cid, port, limit, err)
		}
	}
}

func ask(addr unix.Sockaddr, text string) (string, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	wait := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return "", err
	}
	if err := unix.Connect(fd, addr); err != nil {
		return "", err
	}
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return "", err
	}
	answer := make([]byte, len(text))
	for got := 0; got < len(answer); {
		n, err := unix.Read(fd, answer[got:])
		if err != nil {
			return "", err
		}
		if n == 0 {
			return "", io.ErrUnexpectedEOF
		}
		got += n
	}
	return string(answer), nil
}
