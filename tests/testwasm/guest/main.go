// Command guest is what the tests of WebAssembly run, built for wasip1: its first argument says
// what it does. An argument that is "--" begins the next command.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	for args := os.Args[1:]; len(args) > 0; {
		n := len(args)
		for i, arg := range args {
			if arg == "--" {
				n = i
				break
			}
		}
		if err := do(args[0], args[1:n]); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
		args = args[min(n+1, len(args)):]
	}
}

// do is one command.
func do(verb string, args []string) error {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	number, _ := strconv.Atoi(arg(0))
	switch verb {
	case "args":
		fmt.Println(strings.Join(os.Args, "|"))
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "echoerr":
		fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	case "stdin":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "exit":
		os.Exit(number)
	case "time":
		fmt.Println(time.Now().Unix())
	case "sleep":
		time.Sleep(time.Duration(number) * time.Millisecond)
	case "spin":
		for n := 0; ; n++ {
			sink = n
		}
	case "alloc":
		memory := make([]byte, number<<20)
		for i := 0; i < len(memory); i += 4096 {
			memory[i] = 1
		}
		sink = len(memory)
		fmt.Println("allocated", sink>>20)
	case "serve":
		return serve(number)
	case "serve-all":
		return serveAll(number)
	default:
		return file(verb, arg(0), arg(1))
	}
	return nil
}

// file is a command about files.
func file(verb, path, other string) error {
	switch verb {
	case "read":
		data, err := os.ReadFile(path)
		if err == nil {
			fmt.Print(string(data))
		}
		return err
	case "write":
		return os.WriteFile(path, []byte(other), 0o644)
	case "append":
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteString(other)
		return errors.Join(err, f.Close())
	case "mkdir":
		return os.MkdirAll(path, 0o755)
	case "symlink":
		return os.Symlink(other, path)
	case "ls":
		list, err := os.ReadDir(path)
		for _, entry := range list {
			fmt.Println(entry.Name())
		}
		return err
	case "try": // reads a file, and says what happened
		data, err := os.ReadFile(path)
		fmt.Printf("%s: %q %v\n", path, data[:min(len(data), 200)], err)
	case "escape":
		escape(path, other)
	default:
		return fmt.Errorf("unknown command %q", verb)
	}
	return nil
}

// escape tries to read the host's file secret from a writable directory, by all ways there are.
func escape(dir, secret string) {
	up := strings.Repeat("../", 20)
	ways := []string{secret, filepath.Join(dir, up, secret), dir + "/" + up + secret, up + secret}
	for i, target := range []string{secret, up + strings.TrimPrefix(secret, "/"), up + "proc/self/root" + secret, up + "proc/1/root" + secret} {
		link := fmt.Sprintf("%s/link%d", dir, i)
		_ = os.Remove(link)
		if err := os.Symlink(target, link); err == nil {
			ways = append(ways, link)
		}
		deep := fmt.Sprintf("%s/up%d", dir, i)
		_ = os.Remove(deep)
		if err := os.Symlink(up, deep); err == nil {
			ways = append(ways, deep+secret, deep+"/proc/1/root"+secret)
		}
	}
	// Links that somebody else has made.
	for _, name := range []string{"absolute", "relative"} {
		ways = append(ways, filepath.Join(dir, name))
	}
	ways = append(ways, "/proc/1/root"+secret, "/proc/self/environ", "/proc/1/environ", "/proc/self/maps", "/sys/kernel/notes")
	for _, way := range ways {
		if data, err := os.ReadFile(way); err == nil {
			fmt.Printf("ESCAPED by %s: %q\n", way, data[:min(len(data), 100)])
		}
	}
	fmt.Println("tried", len(ways), "ways")
}

// serve answers each connection to a socket that was passed with what came first.
func serve(fd int) error {
	l, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
	if err != nil {
		return err
	}
	fmt.Println("serving")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		request := make([]byte, 1024)
		n, err := conn.Read(request)
		if err == nil {
			_, err = fmt.Fprintf(conn, "hello from wasm: %s", request[:n])
		}
		if err := errors.Join(err, conn.Close()); err != nil {
			fmt.Println("connection:", err)
		}
	}
}

// serveAll serves all connections at once, as net/http does: an idle one holds up no other, and an
// hour's timer none of them.
func serveAll(fd int) error {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
	if err != nil {
		return err
	}
	time.AfterFunc(time.Hour, func() {})
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			request := make([]byte, 1024)
			n, err := conn.Read(request)
			if err == nil {
				_, err = fmt.Fprintf(conn, "hello from wasm: %s", request[:n])
			}
			if err := errors.Join(err, conn.Close()); err != nil {
				fmt.Println("connection:", err)
			}
		}()
	}
}

// sink keeps the compiler from leaving out what is not used.
var sink int
