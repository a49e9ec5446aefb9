// Package busgate stands between the message bus and godbus: it reads the head of each message, and asks before the body is read, decoded or given a goroutine.
//
// godbus decodes whatever comes, up to 128 MiB, in one goroutine, and starts another one for each call. The bus lets anyone send unicast signals to anyone,
// and every local user call magikpodd, so both must be decided about earlier. Who may send what is decided by the [Gate], not here.
package busgate
