package supervise

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// watchPings is how many requests in a row a guest may leave unanswered: they are sent evenly over
// the time that it has.
const watchPings = 6

// watch ends with an error when a guest that has answered once does not answer any more: its kernel
// hangs, or the VMM does, and nobody else would ever see that. It counts requests, not time, so
// that a VM that was frozen together with its supervisor (systemctl freeze), or with the host, has
// its time when it goes on.
func (s *supervisor) watch(ctx context.Context) error {
	limit := s.config.watchdog()
	if limit == 0 {
		return nil
	}
	tick := time.NewTicker(limit / watchPings)
	defer tick.Stop()
	answers := make(chan error)
	answered, missed := false, 0
	var last error
	for {
		select {
		case last = <-answers:
			if last == nil {
				answered, missed = true, 0
			}
			continue
		case <-tick.C:
		case <-ctx.Done():
			return nil
		case <-s.ended:
			return nil // run returns it
		}
		if answered {
			missed++
		}
		if missed > watchPings {
			return errors.Join(fmt.Errorf("the guest has not answered for %s", limit), last)
		}
		go func() {
			// One that is not answered stays until the VM has ended: see client.Hybrid.
			err := s.ping(time.Now().Add(24 * time.Hour))
			select {
			case answers <- err:
			case <-ctx.Done():
			}
		}()
	}
}

// ping asks the agent for any answer: one that refuses is alive, too. A guest whose answer has a
// wrong time (the host was suspended, its own clock was set, or theirs have drifted apart) gets the
// right one.
func (s *supervisor) ping(deadline time.Time) error {
	begin := time.Now()
	answer, err := s.request(deadline, `{"action":"ping"}`)
	if err != nil {
		return err
	}
	now := time.Now()
	if clockWrong(answer, now, now.Sub(begin)) {
		// Whether it has helped is seen by the next ping.
		_, _ = s.request(deadline, `{"action":"ping","time":"`+time.Now().UTC().Format(time.RFC3339Nano)+`"}`)
	}
	return nil
}

// clockWrong says whether an answer that came now, and took so long, has a time that it cannot have
// been in the meantime. One without a time is that of an older agent.
func clockWrong(answer []byte, now time.Time, took time.Duration) bool {
	var pong struct{ Data struct{ Time time.Time } }
	if json.Unmarshal(answer, &pong) != nil || pong.Data.Time.IsZero() {
		return false
	}
	behind := now.Sub(pong.Data.Time)
	return behind < -wire.MaxClockError || behind > took+wire.MaxClockError
}

// request sends the agent one line and returns what it answers. Nothing, and in order: an agent
// with too many connections, or one that is about to power off.
func (s *supervisor) request(deadline time.Time, line string) ([]byte, error) {
	conn, err := dialAgent(&s.config.VM, deadline)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return nil, err
	}
	answer, err := bufio.NewReader(io.LimitReader(conn, 4096)).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return answer, nil
}

// errNoAnswer is what is wrong with a request that was sent.
var errNoAnswer = errors.New("the agent does not answer")
