// Package golden compares what a test makes to files that are kept with it. `go test PACKAGE -update` rewrites them: look at the difference. It is imported by tests only.
//
// Layer: none.
package golden
