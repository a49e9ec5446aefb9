// Package image is the content store: references, archives, registries, layers unpacked once, and the
// images made of them.
//
// A store is one directory, locked by one process:
//
//	oci-layout, index.json, blobs/   an OCI image layout: what was pulled or loaded, byte for byte
//	layers/NAME, layers/NAME.json    each layer unpacked, as an overlay lower directory, and what it was made from
//	tmp/                             work in progress; Open empties it
//
// A layer is named by its chain ID (it and everything below it), because directories that a layer
// only implies take their owner and mode from the layers below. Everything is verified by digest
// while it is written, gets its name by a rename when it is complete, and is an image only when
// index.json says so: a crash leaves what Open removes. What is damaged is set aside as .bad-NAME,
// reported by Warnings, and never stops a store from opening.
//
// A WebAssembly module, bare or as an artifact of a registry, becomes an image of one layer with
// the module in it and a config that says to run it. So everything else has one kind of image to
// deal with. The digest that it was pulled by is kept.
//
// What does not belong here: mounting (magikshim launch), what follows from pull policies (pod).
//
// Layer L2: it may import pod and runtime.
package image
