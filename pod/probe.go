package pod

import "time"

// ProbeState is what one probe has found so far on one attempt at a container. It is a value: [ProbeState.Record] returns the next one.
type ProbeState struct {
	// Attempt is the attempt that the results belong to; results of another attempt count as none.
	Attempt   int       `json:"attempt,omitempty"`
	Successes int       `json:"successes,omitempty"` // in a row
	Failures  int       `json:"failures,omitempty"`  // in a row
	Passed    bool      `json:"passed,omitempty"`    // successThreshold was reached, and failureThreshold not since
	Failed    bool      `json:"failed,omitempty"`    // failureThreshold was reached, and successThreshold not since
	LastAt    time.Time `json:"lastAt,omitzero"`
	Message   string    `json:"message,omitempty"` // of the newest failure
}
