package bench

import (
	"fmt"
	"slices"
	"time"
)

// times are the durations of one thing, one for each round.
type times []time.Duration

func (t times) median() time.Duration {
	sorted := slices.Sorted(slices.Values(t))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[len(sorted)/2] + sorted[(len(sorted)-1)/2]) / 2
}

func (t times) quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(t))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// String is the median with the lower and upper decile.
func (t times) String() string {
	return fmt.Sprintf("%s (%s-%s)", ms(t.median()), ms(t.quantile(0.1)), ms(t.quantile(0.9)))
}

func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond))
}

// results are what things have taken, by contender and thing.
type results map[string]map[string]times

func (r results) add(contender, thing string, took ...time.Duration) {
	if r[contender] == nil {
		r[contender] = map[string]times{}
	}
	r[contender][thing] = append(r[contender][thing], took...)
}

func (r results) join(other results) {
	for contender, things := range other {
		for thing, took := range things {
			r.add(contender, thing, took...)
		}
	}
}

// ratio is how much longer one contender's median is than another's.
func (r results) ratio(thing, slow, quick string) float64 {
	return float64(r[slow][thing].median()) / float64(r[quick][thing].median())
}

// medianRatio is the median of how much longer is took than was in the same round.
func medianRatio(was, is times) float64 {
	ratios := make([]float64, len(is))
	for i := range is {
		ratios[i] = float64(is[i]) / float64(was[i])
	}
	slices.Sort(ratios)
	return (ratios[len(ratios)/2] + ratios[(len(ratios)-1)/2]) / 2
}

// medianMore is the median of how much more is took than was in the same round.
func medianMore(was, is times) time.Duration {
	more := make(times, len(is))
	for i := range is {
		more[i] = is[i] - was[i]
	}
	return more.median()
}
