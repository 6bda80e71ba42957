package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// samples are the values of one metric of one contender, one a round.
type samples []float64

// median returns the middle value, or the mean of the two in the middle.
func (s samples) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	t := slices.Sorted(slices.Values(s))
	return (t[len(t)/2] + t[(len(t)-1)/2]) / 2
}

// over returns s[i]/t[i]: what was measured in one round is compared.
func (s samples) over(t samples) samples {
	r := make(samples, min(len(s), len(t)))
	for i := range r {
		r[i] = s[i] / t[i]
	}
	return r
}

// minus returns s[i]-t[i].
func (s samples) minus(t samples) samples {
	r := make(samples, min(len(s), len(t)))
	for i := range r {
		r[i] = s[i] - t[i]
	}
	return r
}

func (s samples) times(f float64) samples {
	r := make(samples, len(s))
	for i := range s {
		r[i] = s[i] * f
	}
	return r
}

// String returns the median and the range.
func (s samples) String() string {
	if len(s) == 0 {
		return ""
	}
	if len(s) == 1 {
		return short(s[0])
	}
	return fmt.Sprintf("%s (%s to %s)", short(s.median()), short(slices.Min(s)), short(slices.Max(s)))
}

// short formats v with about three digits.
func short(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// contender is one of what is compared.
type contender struct {
	name string
	run  func() (metrics, error)
}

// series holds the samples by contender and metric.
type series map[string]map[string]samples

func (s series) get(contender, metric string) samples { return s[contender][metric] }

// compare runs the contenders in turn, n times.
func (b *bench) compare(contenders ...contender) (series, error) {
	all := series{}
	for round := range b.n {
		for _, c := range contenders {
			m, err := c.run()
			if err != nil {
				return nil, err
			}
			if all[c.name] == nil {
				all[c.name] = map[string]samples{}
			}
			var text []string
			for _, k := range slices.Sorted(maps.Keys(m)) {
				all[c.name][k] = append(all[c.name][k], m[k])
				text = append(text, fmt.Sprintf("%s %s", k, short(m[k])))
			}
			b.logf("   round %d, %s: %s", round+1, c.name, strings.Join(text, ", "))
		}
	}
	return all, nil
}

// contenders returns a contender for each of the systems, except for the peers when
// they are not wanted.
func (b *bench) contenders(template func(system string) job, systems ...string) (cs []contender) {
	for _, name := range systems {
		if !b.peers && (name == theirs || name == sqliteAPI) {
			continue
		}
		cs = append(cs, contender{name, func() (metrics, error) {
			j := template(name)
			j.System = name
			return b.run(j)
		}})
	}
	return cs
}
