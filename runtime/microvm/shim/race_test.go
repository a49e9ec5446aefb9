//go:build race

package shim

// raceDetector makes everything slower and larger.
const raceDetector = true
