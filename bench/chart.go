package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Sizes of the chart, in pixels.
const (
	panelWidth, panelHeight = 420, 260
	panelColumns            = 2
	marginLeft, marginRight = 58, 24
	marginTop, marginBottom = 52, 42
)

var (
	curveColors = []string{"#1f6feb", "#d1632f"}
	axisColor   = "#57606a"
	gridColor   = "#d8dee4"
)

// drawPanels draws the panels as one SVG. Both axes are logarithmic: a
// straight line of slope 1, drawn dashed, is a cost that grows in proportion.
func drawPanels(panels []panel) []byte {
	rows := (len(panels) + panelColumns - 1) / panelColumns
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", panelColumns*panelWidth, rows*panelHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i%panelColumns*panelWidth, i/panelColumns*panelHeight)
		p.draw(&b)
		fmt.Fprintln(&b, "</g>")
	}
	fmt.Fprintln(&b, "</svg>")
	return b.Bytes()
}

// axis maps values to pixels by their logarithm.
type axis struct {
	lo, hi     float64 // powers of ten
	from, upTo float64 // pixels
}

func newAxis(values []float64, from, upTo float64) axis {
	return axis{
		lo:   math.Floor(math.Log10(slices.Min(values))),
		hi:   math.Ceil(math.Log10(slices.Max(values)) + 1e-9),
		from: from, upTo: upTo,
	}
}

func (a axis) at(v float64) float64 {
	return a.from + (math.Log10(v)-a.lo)/max(a.hi-a.lo, 1)*(a.upTo-a.from)
}

// ticks are the powers of ten within the axis.
func (a axis) ticks() (vs []float64) {
	for e := a.lo; e <= a.hi; e++ {
		vs = append(vs, math.Pow10(int(e)))
	}
	return vs
}

// tick formats a power of ten.
func tick(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// visible is the least value that a logarithmic axis shows.
func visible(v float64) float64 { return max(v, 1e-5) }

func (p panel) draw(b *bytes.Buffer) {
	var xs, ys []float64
	for _, c := range p.curves {
		for _, pt := range c.points {
			xs = append(xs, visible(pt.x))
			for _, y := range pt.y {
				ys = append(ys, visible(y))
			}
		}
	}
	if len(ys) == 0 {
		return
	}
	x := newAxis(xs, marginLeft, panelWidth-marginRight)
	y := newAxis(ys, panelHeight-marginBottom, marginTop)
	text := func(px, py float64, anchor, color, s string) {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", px, py, anchor, color, escapeXML(s))
	}
	line := func(x1, y1, x2, y2 float64, color, style string) {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" %s/>`+"\n", x1, y1, x2, y2, color, style)
	}
	fmt.Fprintf(b, `<text x="%d" y="18" font-size="13" font-weight="bold">%s</text>`+"\n", marginLeft, escapeXML(p.title))
	for _, v := range y.ticks() {
		line(x.from, y.at(v), x.upTo, y.at(v), gridColor, "")
		text(x.from-6, y.at(v)+4, "end", axisColor, tick(v))
	}
	for _, v := range x.ticks() {
		line(x.at(v), y.from, x.at(v), y.upTo, gridColor, "")
		text(x.at(v), y.from+14, "middle", axisColor, tick(v))
	}
	text((x.from+x.upTo)/2, y.from+32, "middle", axisColor, p.x)

	label := float64(marginLeft)
	for i, c := range p.curves {
		color := curveColors[i%len(curveColors)]
		name := c.name + ", " + c.unit
		fmt.Fprintf(b, `<circle cx="%.1f" cy="32" r="4" fill="%s"/>`+"\n", label+4, color)
		text(label+12, 36, "start", color, name)
		label += 24 + 5.6*float64(len(name))

		var path []string
		for _, pt := range c.points {
			px, py := x.at(visible(pt.x)), y.at(visible(pt.y.median()))
			path = append(path, fmt.Sprintf("%.1f,%.1f", px, py))
			line(px, y.at(visible(slices.Min(pt.y))), px, y.at(visible(slices.Max(pt.y))), color, `stroke-width="1"`)
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px, py, color)
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", strings.Join(path, " "), color)
		if last := len(c.points) - 1; last > 0 {
			first, end := c.points[0], c.points[last]
			from := visible(first.y.median())
			to := from * end.x / first.x
			cut := min(to, math.Pow(10, y.hi)) // where the line leaves the chart
			line(x.at(first.x), y.at(from), x.at(first.x*cut/from), y.at(cut), color, `stroke-dasharray="3 4" stroke-opacity="0.6"`)
		}
	}
}

var escapeXML = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace
