package contract

import (
	"os"

	"github.com/magikrun/magikpod/internal/errkind"
)

// Pipes are made for one process; both the client and the server make such, so that neither gets a
// file of the other side.
type Pipes struct {
	Process [3]*os.File // what it gets
	To      *os.File    // its input
	From    []*os.File  // its output and error, or both in one
}

// NewPipes makes them; joined: the lines of output and error stay in their order.
func NewPipes(joined bool) (p Pipes, err error) {
	defer func() {
		if err != nil {
			p.Close()
			err = NoPipe(err)
		}
	}()
	if p.Process[0], p.To, err = os.Pipe(); err != nil {
		return p, err
	}
	for i := 1; i <= 2; i++ {
		if i == 2 && joined {
			p.Process[2] = p.Process[1]
			break
		}
		read, write, err := os.Pipe()
		if err != nil {
			return p, err
		}
		p.Process[i], p.From = write, append(p.From, read)
	}
	return p, nil
}

// CloseProcess closes the process's ends: it has them, or has ended.
func (p *Pipes) CloseProcess() {
	for _, f := range p.Process {
		_ = f.Close()
	}
}

// Close closes all of them.
func (p *Pipes) Close() {
	p.CloseProcess()
	_ = p.To.Close()
	for _, f := range p.From {
		_ = f.Close()
	}
}

// NoPipe is the error of a pipe that cannot be made.
func NoPipe(err error) error {
	return errkind.Errorf(errkind.Exhausted, "cannot make a pipe for the process: %w", err)
}
