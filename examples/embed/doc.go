// Package embed has the README's example of magikpod as a Go library: its test runs it.
package embed
