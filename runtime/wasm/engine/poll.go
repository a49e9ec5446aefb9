package engine

import (
	"context"
	"encoding/binary"
	"os"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// wazero's own poll_oneoff says to a guest at once that each of its sockets is ready, so that a
// server that waits for a connection computes all the time; with a clock beside the sockets it
// sleeps the whole time, whatever comes. This one waits.

// WASI preview 1: subscriptions, events and error numbers.
const (
	subscriptionBytes, eventBytes = 48, 32
	maxSubscriptions              = 4096

	eventClock, eventRead, eventWrite = 0, 1, 2

	errnoSuccess, errnoFault, errnoInval = 0, 21, 28

	clockAbsolute = 1
)

// forever is longer than any guest lives.
const forever = time.Duration(1<<63 - 1)

// poller is poll_oneoff for one guest.
type poller struct {
	began   time.Time // the zero of the monotonic clock
	stdin   *os.File  // nil: nothing that one could wait for
	sockets *sockets
}

// instantiateWASI makes the host module that guests import.
func instantiateWASI(ctx context.Context, r wazero.Runtime, p *poller) error {
	b := r.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	i32 := api.ValueTypeI32
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
		stack[0] = uint64(p.poll(ctx, m.Memory(), uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])))
	}), []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i32}).Export("poll_oneoff")
	_, err := b.Instantiate(experimental.WithFunctionListenerFactory(ctx, p.sockets))
	return err
}

// nanotime is the monotonic clock of the guest, in nanoseconds.
func (p *poller) nanotime() int64 { return int64(time.Since(p.began)) }

// poll waits until one of the subscriptions at in has happened, and writes the events to out and
// their number to count.
func (p *poller) poll(ctx context.Context, memory api.Memory, in, out, n, count uint32) uint32 {
	if n == 0 || n > maxSubscriptions {
		return errnoInval
	}
	subscriptions, ok := memory.Read(in, n*subscriptionBytes)
	if !ok {
		return errnoFault
	}
	events, ok := memory.Read(out, n*eventBytes)
	if !ok {
		return errnoFault
	}
	asked := parse(subscriptions, p)
	if asked == nil {
		return errnoInval
	}
	ready := p.wait(ctx, asked)
	written := uint32(0)
	for i, one := range asked {
		if !ready(i) {
			continue
		}
		event := events[written*eventBytes:][:eventBytes]
		userdata := [8]byte(subscriptions[i*subscriptionBytes:]) // in and out may overlap
		clear(event)
		copy(event, userdata[:])
		binary.LittleEndian.PutUint16(event[8:], errnoSuccess)
		event[10] = one.kind
		written++
	}
	if !memory.WriteUint32Le(count, written) {
		return errnoFault
	}
	return errnoSuccess
}

// subscription is one thing that a guest waits for.
type subscription struct {
	kind byte
	at   time.Time // of a clock
	fd   int32     // of another
}

// parse reads subscriptions; nil when one of them makes no sense.
func parse(data []byte, p *poller) []subscription {
	var list []subscription
	now := time.Now()
	for ; len(data) > 0; data = data[subscriptionBytes:] {
		one := subscription{kind: data[8]}
		switch one.kind {
		case eventClock:
			clock, timeout, flags := binary.LittleEndian.Uint32(data[16:]), binary.LittleEndian.Uint64(data[24:]), binary.LittleEndian.Uint16(data[40:])
			one.at = now.Add(time.Duration(min(timeout, uint64(forever))))
			switch {
			case flags > clockAbsolute:
				return nil
			case flags == clockAbsolute && clock == 0:
				one.at = time.Unix(0, int64(min(timeout, uint64(forever))))
			case flags == clockAbsolute:
				one.at = p.began.Add(time.Duration(min(timeout, uint64(forever))))
			}
		case eventRead, eventWrite:
			one.fd = int32(binary.LittleEndian.Uint32(data[16:]))
		default:
			return nil
		}
		list = append(list, one)
	}
	return list
}

// wait waits until at least one subscription has happened, and returns which of them have. Nothing
// has when ctx has ended.
func (p *poller) wait(ctx context.Context, asked []subscription) func(i int) bool {
	until := time.Now().Add(forever)
	for _, one := range asked {
		if one.kind == eventClock && one.at.Before(until) {
			until = one.at
		}
	}
	for {
		ready := p.waitFor(ctx, asked, max(time.Until(until), 0))
		now := time.Now()
		if len(ready) > 0 || ctx.Err() != nil || !now.Before(until) {
			return func(i int) bool { return ready[i] || asked[i].kind == eventClock && !asked[i].at.After(now) }
		}
	}
}

// sleep sleeps that long, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
