// Package arch holds the import table of DESIGN.md 3 as a test.
package arch
