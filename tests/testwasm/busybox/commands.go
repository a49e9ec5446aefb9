package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// task is one call of a command.
type task struct {
	args     []string
	in       io.Reader
	out, err io.Writer
	env      func(name string) string
	path     func(name string) string // makes a name absolute
}

func (t *task) run(command func(*task) error) int {
	err := command(t)
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	if err != nil {
		fmt.Fprintln(t.err, err)
		return 1
	}
	return 0
}

// exitCode ends a command without a word.
type exitCode int

func (exitCode) Error() string { return "exit" }

var commands map[string]func(*task) error

func init() {
	commands = map[string]func(*task) error{
		"true":  func(*task) error { return nil },
		"false": func(*task) error { return exitCode(1) },
		"echo":  func(t *task) error { _, err := fmt.Fprintln(t.out, strings.Join(t.args, " ")); return err },
		"env":   func(t *task) error { _, err := fmt.Fprintln(t.out, strings.Join(os.Environ(), "\n")); return err },
		"uptime": func(t *task) error {
			_, err := fmt.Fprintf(t.out, "%.2f\n", float64(time.Now().UnixMilli())/1000)
			return err
		},
		"sleep":  func(t *task) error { return t.sleep(time.Second) },
		"usleep": func(t *task) error { return t.sleep(time.Microsecond) },
		"seq":    seq,
		"cat":    cat,
		"wc":     count,
		"touch":  touch,
		"rm":     func(t *task) error { return t.each(os.Remove) },
		"mkdir":  func(t *task) error { return t.each(func(p string) error { return os.MkdirAll(p, 0o755) }) },
		"ln":     link,
		"ls":     list,
		"httpd":  httpd,
	}
}

// operands are the arguments that are no flags.
func (t *task) operands() []string {
	var list []string
	for _, a := range t.args {
		if !strings.HasPrefix(a, "-") {
			list = append(list, a)
		}
	}
	return list
}

func (t *task) each(do func(path string) error) error {
	var errs []error
	for _, name := range t.operands() {
		errs = append(errs, do(t.path(name)))
	}
	return errors.Join(errs...)
}

func (t *task) sleep(unit time.Duration) error {
	if len(t.args) != 1 {
		return errors.New("usage: sleep N")
	}
	n, err := strconv.ParseFloat(t.args[0], 64)
	if err == nil {
		time.Sleep(time.Duration(n * float64(unit)))
	}
	return err
}

func seq(t *task) error {
	n, err := strconv.Atoi(t.args[len(t.args)-1])
	w := bufio.NewWriter(t.out)
	for i := 1; i <= n; i++ {
		fmt.Fprintln(w, i)
	}
	return errors.Join(err, w.Flush())
}

func cat(t *task) error {
	if len(t.args) == 0 {
		_, err := io.Copy(t.out, t.in)
		return err
	}
	return t.each(func(p string) error {
		data, err := os.ReadFile(p)
		if err == nil {
			_, err = t.out.Write(data)
		}
		return err
	})
}

// count is wc -l.
func count(t *task) error {
	data, err := io.ReadAll(t.in)
	if err == nil {
		_, err = fmt.Fprintln(t.out, strings.Count(string(data), "\n"))
	}
	return err
}

func touch(t *task) error {
	return t.each(func(p string) error {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// link is ln -s.
func link(t *task) error {
	o := t.operands()
	if len(o) != 2 {
		return errors.New("usage: ln -s TARGET LINK")
	}
	return os.Symlink(o[0], t.path(o[1]))
}

func list(t *task) error {
	return t.each(func(p string) error {
		entries, err := os.ReadDir(p)
		for _, e := range entries {
			fmt.Fprintln(t.out, e.Name())
		}
		return err
	})
}

// httpd is httpd -f -p PORT -h DIRECTORY, on the socket that was opened for the port.
func httpd(t *task) error {
	var port, dir string
	for i := 0; i+1 < len(t.args); i++ {
		switch t.args[i] {
		case "-p":
			port = t.args[i+1]
		case "-h":
			dir = t.path(t.args[i+1])
		}
	}
	fd := -1
	for socket := range strings.SplitSeq(t.env("MAGIKPOD_LISTEN_FDS"), ",") {
		name, number, _ := strings.Cut(socket, "=")
		if n, err := strconv.Atoi(number); err == nil && (name == port || fd < 0) {
			fd = n // the first one, where none has the port for a name
		}
	}
	if fd < 0 {
		return errors.New("httpd: the container has no port " + port)
	}
	l, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if err := errors.Join(answer(conn, dir), conn.Close()); err != nil {
			fmt.Fprintln(t.err, "httpd:", err)
		}
	}
}

// answer answers one request.
func answer(conn net.Conn, dir string) error {
	r := bufio.NewReader(io.LimitReader(conn, 64<<10))
	first, err := r.ReadString('\n')
	if err != nil {
		return nil // a probe that only connects
	}
	for line := ""; err == nil && strings.TrimSpace(line) != "" || line == ""; {
		line, err = r.ReadString('\n')
		if err != nil {
			break
		}
	}
	words := strings.Fields(first)
	if len(words) < 2 {
		return errors.New("it is no request: " + first)
	}
	where, _, _ := strings.Cut(words[1], "?")
	data, err := os.ReadFile(path.Join(dir, path.Clean("/"+where)))
	status := "200 OK"
	if err != nil {
		status, data = "404 Not Found", nil
	}
	_, err = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, len(data), data)
	return err
}
