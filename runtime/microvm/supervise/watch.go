package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// watchPings is how many requests in a row a guest may leave unanswered: they are sent evenly over the time that it has.
const watchPings = 6

// watch ends with an error when a guest that has answered once does not answer any more: its kernel hangs, or the monitor does, and nobody else would ever see that. It
// counts requests, not time, so that a machine that was frozen together with its supervisor (systemctl freeze), or with the host, has its time when it goes on.
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
			return nil // told by the other
		}
		if answered {
			missed++
		}
		if missed > watchPings {
			return errors.Join(fmt.Errorf("the guest has not answered for %s", limit), last)
		}
		go func() {
			// One that is not answered stays until the machine has ended: see client.Hybrid.
			err := s.ping(time.Now().Add(24 * time.Hour))
			select {
			case answers <- err:
			case <-ctx.Done():
			}
		}()
	}
}

// ping asks the agent for any answer: one that refuses is alive, too.
func (s *supervisor) ping(deadline time.Time) error {
	conn, err := dialAgent(&s.config.VM, deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"action":"ping"}`+"\n"); err != nil {
		return err
	}
	// Nothing, and in order: an agent with too many connections.
	if _, err := bufio.NewReader(io.LimitReader(conn, 4096)).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
