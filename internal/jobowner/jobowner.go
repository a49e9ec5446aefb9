// Package jobowner carries the client that asks for a job from the bus server to the daemon, in a
// context: the job says in its news who is to hear of it.
package jobowner

import "context"

type key struct{}

// With returns a context in which the client named owner asks for a job.
func With(ctx context.Context, owner string) context.Context {
	return context.WithValue(ctx, key{}, owner)
}

// Of returns who asks for a job; "" when nobody on the bus does.
func Of(ctx context.Context) string {
	owner, _ := ctx.Value(key{}).(string)
	return owner
}
