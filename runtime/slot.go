package runtime

import "context"

// Slot is one of so many places of which there are not enough for all that may want one, such as
// those for starts of containers. Who has got one may let it go while it waits for something that
// takes long. It belongs to one goroutine.
type Slot struct {
	places chan struct{} // holds one for each that is taken
	taken  bool
}

// NewSlot returns one that is not taken yet. places has as much room as there are places.
func NewSlot(places chan struct{}) *Slot { return &Slot{places: places} }

// Take waits until a place is free.
func (s *Slot) Take(ctx context.Context) error {
	select {
	case s.places <- struct{}{}:
		s.taken = true
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TryTake takes a place if one is free now.
func (s *Slot) TryTake() bool {
	select {
	case s.places <- struct{}{}:
		s.taken = true
	default:
	}
	return s.taken
}

// Release frees the place, if it is taken.
func (s *Slot) Release() {
	if s.taken {
		<-s.places
		s.taken = false
	}
}

type slotKey struct{}

// WithSlot makes the slot known to [Wait].
func WithSlot(ctx context.Context, s *Slot) context.Context {
	return context.WithValue(ctx, slotKey{}, s)
}

// Wait calls wait without the slot of ctx, if that has one, and takes it again afterwards. An error
// means that the slot is not taken.
func Wait(ctx context.Context, wait func() error) error {
	s, _ := ctx.Value(slotKey{}).(*Slot)
	if s == nil {
		return wait()
	}
	s.Release()
	if err := wait(); err != nil {
		return err
	}
	return s.Take(ctx)
}
