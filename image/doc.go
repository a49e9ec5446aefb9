// Package image is the content store: references, archives, registries, layers unpacked once, and the images made of them.
//
// What does not belong here: mounting (magikagent launch), pull policies' consequences (pod).
//
// Layer L2: it may import pod and runtime.
package image
