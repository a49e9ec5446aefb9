//go:build race

package client

// raceDetector makes everything slower and larger.
const raceDetector = true
