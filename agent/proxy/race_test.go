//go:build race

package proxy

// raceDetector makes everything slower and larger.
const raceDetector = true
