// Package jail is all that magikwasm does: [Run] makes a container's process a jail, and runs the
// module in it; [Compile] fills the cache of machine code.
//
// Package wasm says what the jail is made of. This is a package of its own since magikwasm starts
// with every container: what knows Kubernetes' API takes longer to start.
//
// Layer L2.
package jail
