//go:build race

package guest_test

// raceDetector makes everything slower and larger.
const raceDetector = true
