// Package buslink connects godbus to a message bus and keeps from it what it cannot take. Anybody on the
// system bus can send a daemon messages, signals and replies too, and godbus closes the connection, or
// panics, for some that the bus lets through:
//
//   - A dictionary whose keys are booleans or signatures (a{bs}, a{gs}) is right for the bus and wrong for
//     godbus, which closes the connection.
//   - A descriptor in an array (ah) makes it panic.
//   - Descriptors that come with a message, but are not in its body, are never closed.
//
// Layer: internal; it knows godbus and no package of magikpod's.
package buslink
