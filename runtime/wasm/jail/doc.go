// Package jail is all that magikwasm does: [Run] makes a container's process a jail, and runs the guest in it; [Compile] fills the cache of machine code.
//
// Package wasm says what the jail is made of. It is not a part of that package, since magikwasm starts with every container: what knows Kubernetes' API takes longer to start.
//
// Layer L2.
package jail
