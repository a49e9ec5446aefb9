// Package arch checks the architecture: the table of layers in HACKING.md against what packages
// import, and imports that are forbidden with a reason.
package arch
