// Package vsockserve answers over AF_VSOCK in the guests of tests.
package vsockserve
