package litestream

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// PITFALLS rows 15, 24 and 41
func TestPlanRetention(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	cutoff := now.Add(-24 * time.Hour)
	// at is a generation; ages are hours, of snapshots at index 10, 20 and so on.
	at := func(name string, ages ...float64) retainedGeneration {
		g := retainedGeneration{name: strings.TrimSuffix(name, "*"), current: strings.HasSuffix(name, "*")}
		for i, age := range ages {
			g.snapshots = append(g.snapshots, SnapshotInfo{Index: (i + 1) * 10, CreatedAt: now.Add(-time.Duration(age * float64(time.Hour)))})
		}
		return g
	}
	updated := func(g retainedGeneration, age float64) retainedGeneration {
		g.updated = now.Add(-time.Duration(age * float64(time.Hour)))
		return g
	}
	orphans := func(name string, age float64) retainedGeneration { return updated(at(name), age) }
	for _, tt := range []struct {
		name   string
		listed []retainedGeneration
		want   string // "-g" deletes g, "g<20" what is before index 20 in g
	}{
		{"nothing", nil, ""},
		{"nothing before the cutoff", []retainedGeneration{at("a*", 23, 10, 1)}, ""},
		{"all before the cutoff: the newest stays", []retainedGeneration{at("a*", 99, 50, 25)}, "a<30"},
		{"cutoff between snapshots: the one before it stays", []retainedGeneration{at("a*", 99, 50, 10, 1)}, "a<20"},
		{"a snapshot of the cutoff itself", []retainedGeneration{at("a*", 30, 24, 1)}, "a<20"},
		{"the first snapshot is the one", []retainedGeneration{at("a*", 30, 10)}, "a<10"},

		{"older generations go", []retainedGeneration{at("a", 99), at("b", 50), at("c*", 30, 1)}, "-a -b c<10"},
		{"listed in another order", []retainedGeneration{at("c*", 30, 1), at("b", 50), at("a", 99)}, "-a -b c<10"},
		{"the one that reaches over the cutoff stays", []retainedGeneration{at("a", 99, 50), at("b", 40, 30, 5), at("c*", 2)}, "-a b<20"},
		{"a current one without snapshot replaces none", []retainedGeneration{at("a", 50), at("b*")}, "a<10"},
		{"no current one is listed", []retainedGeneration{at("a", 50), at("b", 40)}, "-a b<10"},
		{"one behind the current is no reason to delete", []retainedGeneration{at("a*", 50, 30), at("b", 0)}, ""},

		{"empty generations are left alone", []retainedGeneration{at("a"), at("b", 50), at("c"), at("d*", 30)}, "-b d<10"},
		{"what an interrupted deletion left goes", []retainedGeneration{orphans("a", 30), at("b*", 10)}, "-a"},
		{"fresh segments await their snapshot", []retainedGeneration{orphans("a", 23), at("b*", 30)}, "b<10"},
		{"those of the current one anyway", []retainedGeneration{at("a", 50), orphans("b*", 30)}, "a<10"},

		{"stamped by a clock 48 h ahead: not what the cutoff needs", []retainedGeneration{at("a*", 60, 40-48, 30-48, 20)}, "a<10"},
		{"stamped by a clock 48 h behind: its predecessor is needed", []retainedGeneration{at("a*", 30, 10, 5+48, 1)}, "a<10"},
		{"generations: 48 h ahead", []retainedGeneration{at("a", 60), at("b", 40-48), at("c*", 20)}, "a<10"},
		{"generations: 48 h behind, the current one stays", []retainedGeneration{at("a", 60), at("b", 30), at("c*", 1+48)}, "-a -b c<10"},
		{"one behind, written to after the cutoff", []retainedGeneration{at("a", 30), updated(at("b", 31), 3), at("c*", 2)}, "a<10"},
		{"one behind, written to before the cutoff", []retainedGeneration{at("a", 30), updated(at("b", 31), 25), at("c*", 2)}, "-b a<10"},
		{"generations: 48 h behind, others are needed", []retainedGeneration{at("a", 60), at("b", 20), at("c*", 1+48)}, "a<10"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, step := range planRetention(tt.listed, cutoff) {
				if step.all {
					got = append(got, "-"+step.generation)
				} else {
					got = append(got, fmt.Sprintf("%s<%d", step.generation, step.keepFrom))
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("plan is %q, want %q", s, tt.want)
			}
		})
	}
}

// A clock that is set, in either direction, makes nothing look older.
// PITFALLS row 41
func TestReplica_StampTimeIsTheEarlierClock(t *testing.T) {
	r := NewReplica(nil, "r", nil)
	real := time.Now()
	if d := r.stampTime().Sub(real); d < -time.Minute || d > time.Minute {
		t.Errorf("stamp time is off by %v", d)
	}
	for set, want := range map[time.Duration]time.Duration{0: 0, 48 * time.Hour: 0, -48 * time.Hour: -48 * time.Hour} {
		r.now = func() time.Time { return real }
		r.wall = func() time.Time {
			// The monotonic reading does not follow the clock.
			return real.Add(set)
		}
		if got := r.stampTime().Sub(real.Round(0)); got != want {
			t.Errorf("clock set by %v: stamp time moves by %v, want %v", set, got, want)
		}
	}
}
