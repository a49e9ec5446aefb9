package bench

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// chart is a picture of curves over the number of pods.
type chart struct {
	title string
	lines []series
}

type series struct {
	name   string
	points []point
}

const (
	chartWidth, chartHeight                          = 720, 320
	marginLeft, marginRight, marginTop, marginBottom = 48, 16, 56, 40
)

// svg draws the chart. Its background is the page's, and its colours follow whether that is dark.
func (c chart) svg() string {
	var top time.Duration
	pods := 1
	for _, line := range c.lines {
		for _, p := range line.points {
			top, pods = max(top, p.took), max(pods, p.pods+window/2)
		}
	}
	tick := tickOf(float64(top) / float64(time.Millisecond))
	ceiling := tick * math.Ceil(float64(top)/float64(time.Millisecond)/tick)
	x := func(n float64) float64 {
		return marginLeft + n/float64(pods)*(chartWidth-marginLeft-marginRight)
	}
	y := func(ms float64) float64 {
		return chartHeight - marginBottom - ms/ceiling*(chartHeight-marginTop-marginBottom)
	}
	var b strings.Builder
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="sans-serif" font-size="12">`, chartWidth, chartHeight, chartWidth, chartHeight)
	p(`<title>%s</title>`, html.EscapeString(c.title))
	p(`<style>
text { fill: #24292f } .grid { stroke: #d0d7de } .line { fill: none; stroke-width: 2 }
.c0 { stroke: #0969da } .c1 { stroke: #bc4c00 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .grid { stroke: #3d444d } .c0 { stroke: #58a6ff } .c1 { stroke: #f0883e } }
</style>`)
	p(`<text x="%d" y="18" font-size="14">%s</text>`, marginLeft, html.EscapeString(c.title))
	for ms := 0.0; ms <= ceiling+tick/2; ms += tick {
		p(`<path class="grid" d="M%d %.1fH%d"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`, marginLeft, y(ms), chartWidth-marginRight, marginLeft-6, y(ms)+4, ms)
	}
	for i := range 9 {
		n := float64(pods) * float64(i) / 8
		p(`<text x="%.1f" y="%d" text-anchor="middle">%.0f</text>`, x(n), chartHeight-marginBottom+18, max(n, 1))
	}
	p(`<text x="%d" y="%d" text-anchor="end">pods</text>`, chartWidth-marginRight, chartHeight-6)
	legend := marginLeft
	for i, line := range c.lines {
		var path strings.Builder
		for j, point := range line.points {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(j, 1)], x(float64(point.pods)), y(float64(point.took)/float64(time.Millisecond)))
		}
		p(`<path class="line c%d" d="%s"/>`, i, path.String())
		p(`<path class="line c%d" d="M%d 36h20"/><text x="%d" y="40">%s</text>`, i, legend, legend+26, html.EscapeString(line.name))
		legend += 60 + 7*len(line.name)
	}
	p(`</svg>`)
	return b.String()
}

// tickOf is a round distance of lines, of which 4 to 10 reach top.
func tickOf(top float64) float64 {
	tick := math.Pow(10, math.Floor(math.Log10(top)))
	for _, part := range []float64{1, 2, 5} {
		if top/(tick/part) >= 4 {
			return tick / part
		}
	}
	return tick / 10
}
