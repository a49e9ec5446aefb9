// Package arch holds the import table of the architecture as a test: layers, and imports forbidden with a reason.
package arch
