// Package golden compares what a test makes to files that are kept with it. `go test PACKAGE -update`
// rewrites them: read the diff. Only tests import it.
//
// Layer: none.
package golden
