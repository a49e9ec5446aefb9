package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// initPort is where vsockInit answers.
const initPort = "1024"

// vsockInit is PID 1: it loads the modules of /modules in the order of their names and answers over AF_VSOCK. It never returns without an error.
func vsockInit() error {
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(modules)
	for _, path := range modules {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cannot load %s: %w", path, err)
		}
		_ = f.Close()
	}
	return vsockServe(initPort)
}

// vsockServe sends everything that comes to a port back, one connection after the other.
func vsockServe(port string) error {
	number, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("cannot open an AF_VSOCK socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: uint32(number)}); err != nil {
		return fmt.Errorf("cannot bind to vsock port %s: %w", port, err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		return fmt.Errorf("cannot listen on vsock port %s: %w", port, err)
	}
	for {
		conn, _, err := unix.Accept(fd)
		if err != nil {
			return fmt.Errorf("cannot accept on vsock port %s: %w", port, err)
		}
		f := os.NewFile(uintptr(conn), "vsock")
		_, _ = io.Copy(struct{ io.Writer }{f}, struct{ io.Reader }{f}) // the other side's business
		_ = f.Close()
	}
}

// vsockAsk sends a text to a port of a machine, again and again for as long as timeout says, and prints the answer.
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
