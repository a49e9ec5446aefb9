package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/tests/vm/wire"
)

// outputGrace is how long output may still come after the end of a command, from children that hold
// its pipes.
const outputGrace = 2 * time.Second

// process is a command that runs.
type process struct {
	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr *os.File // stderr is nil with a terminal
	terminal       bool
	in             chan []byte // for stdin; empty: its end
	done           chan struct{}
}

func newProcess(c wire.Command) (*process, error) {
	if len(c.Argv) == 0 {
		return nil, errors.New("the command is empty")
	}
	p := &process{cmd: exec.Command(c.Argv[0], c.Argv[1:]...), terminal: c.TTY != nil, in: make(chan []byte, 64), done: make(chan struct{})}
	p.cmd.Dir = c.Dir
	p.cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}, c.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	theirs, err := p.connect(c.TTY)
	if err == nil {
		err = p.cmd.Start()
	}
	for _, f := range theirs {
		_ = f.Close()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// connect gives the command its files; it returns those to close once it has them.
func (p *process) connect(tty *wire.Size) ([]*os.File, error) {
	if tty != nil {
		master, slave, err := openTerminal()
		if err != nil {
			return nil, err
		}
		p.stdin, p.stdout = master, master
		p.resize(*tty)
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
		p.cmd.SysProcAttr.Setctty = true
		return []*os.File{slave}, nil
	}
	inR, inW, err1 := os.Pipe()
	outR, outW, err2 := os.Pipe()
	errR, errW, err3 := os.Pipe()
	p.stdin, p.stdout, p.stderr = inW, outR, errR
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inR, outW, errW
	return []*os.File{inR, outW, errW}, errors.Join(err1, err2, err3)
}

// feed writes what comes to standard input until the command ends.
func (p *process) feed() {
	open := true
	for {
		select {
		case data := <-p.in:
			switch {
			case len(data) > 0 && open:
				_, err := p.stdin.Write(data)
				open = err == nil
			case open && !p.terminal:
				_ = p.stdin.Close()
				open = false
			}
		case <-p.done:
			p.close()
			return
		}
	}
}

// wait waits for the end of the command and of its output.
func (p *process) wait(streams *sync.WaitGroup) wire.Status {
	status := code(p.cmd.Wait())
	ended := make(chan struct{})
	go func() { streams.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(outputGrace):
		deadline := time.Now()
		_ = p.stdout.SetReadDeadline(deadline)
		if p.stderr != nil {
			_ = p.stderr.SetReadDeadline(deadline)
		}
		<-ended
	}
	return status
}

func (p *process) close() {
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (p *process) resize(size wire.Size) {
	if p.terminal {
		control(p.stdin, func(fd int) {
			_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols}) // cosmetics
		})
	}
}

// control calls do with a file's descriptor and leaves the file non-blocking.
func control(f *os.File, do func(fd int)) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) })
	}
}

// openTerminal makes a pseudoterminal.
func openTerminal() (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	var number int
	var err1, err2 error
	control(master, func(fd int) {
		err1 = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
		number, err2 = unix.IoctlGetInt(fd, unix.TIOCGPTN)
	})
	if err = errors.Join(err1, err2); err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		_ = master.Close()
	}
	return master, slave, err
}
