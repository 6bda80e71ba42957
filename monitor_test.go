package litestream

import (
	"errors"
	"testing"
	"time"
)

func TestPollPaceNext(t *testing.T) {
	p := func(d time.Duration) pollPace { return pollPace{d} }
	for _, test := range []struct {
		name string
		from pollPace
		view pollView
		want pollPace
	}{
		{"first", p(0), pollView{}, p(minPoll)},
		{"slower", p(minPoll), pollView{}, p(2 * minPoll)},
		{"slowest", p(400 * time.Millisecond), pollView{}, p(unwatchedPoll)},
		{"starts over with a change", p(unwatchedPoll), pollView{changed: true}, p(minPoll)},
		{"watched", p(minPoll), pollView{watching: true}, p(watchedPoll)},
		{"watched, at rest", p(watchedPoll), pollView{watching: true}, p(restingPoll)},
		{"watched, at rest for long", p(restingPoll), pollView{watching: true}, p(restingPoll)},
		{"watched, and changes after a rest", p(restingPoll), pollView{watching: true, changed: true}, p(watchedPoll)},
		{"watched and changing", p(minPoll), pollView{watching: true, changed: true}, p(watchedPoll)},
		{"no database: soon at first", p(0), pollView{missing: true, watching: true}, p(minPoll)},
		{"no database: slow at last", p(900 * time.Millisecond), pollView{missing: true}, p(missingPoll)},
		{"failed in spite of a watch", p(900 * time.Millisecond), pollView{failed: true, watching: true}, p(missingPoll)},
		{"from a watch to a failure", p(watchedPoll), pollView{failed: true}, p(missingPoll)},
	} {
		if got := test.from.next(test.view); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got.wait, test.want.wait)
		}
	}
}

func TestCaptureViewWait(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name string
		view captureView
		want time.Duration
	}{
		{"a lone commit", captureView{delay: 10 * ms, useless: time.Second, checkpoint: -time.Hour}, 10 * ms},
		{"steady, and a replica waits", captureView{delay: 10 * ms, steady: true, checkpoint: time.Hour}, 10 * ms},
		{"steady, and a replica is overdue", captureView{delay: 10 * ms, steady: true, useless: -time.Hour, checkpoint: time.Hour}, 10 * ms},
		{"steady, and nobody waits", captureView{delay: 10 * ms, steady: true, useless: time.Minute, checkpoint: time.Hour}, maxCaptureWait},
		{"until a replica can use it", captureView{delay: 10 * ms, steady: true, useless: 40 * ms, checkpoint: time.Hour}, 40 * ms},
		{"the host asks for a longer delay", captureView{delay: time.Second, steady: true, checkpoint: time.Hour}, time.Second},
		{"the wal grows fast", captureView{delay: 10 * ms, steady: true, useless: time.Second, checkpoint: 4 * ms}, 4 * ms},
		{"a checkpoint is overdue", captureView{delay: 10 * ms, steady: true, checkpoint: -time.Second}, minCaptureWait},
		{"a large transaction is open", captureView{delay: 10 * ms, steady: true, checkpoint: ms, fruitless: 50 * ms}, 200 * ms},
		{"a very large one", captureView{delay: 10 * ms, steady: true, checkpoint: ms, fruitless: 5000 * ms}, 2000 * ms},
	} {
		if got := test.view.wait(); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestPositionDue(t *testing.T) {
	const s = time.Second
	now := time.Unix(1e9, 0)
	for _, test := range []struct {
		name            string
		wrote, activity time.Duration // ago
		want            time.Duration // from now
	}{
		{"after a pause", 30 * s, 0, -20 * s},
		{"changes go on", 4 * s, 0, 2 * s},
		{"changes have gone on for long", 9 * s, 0, 1 * s},
		{"the last change is a second old", 3 * s, 1 * s, 1 * s},
		{"and two", 4 * s, 2 * s, 0},
	} {
		if got := positionDue(now.Add(-test.wrote), now.Add(-test.activity)).Sub(now); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	if due := positionDue(time.Time{}, now); due.After(now) {
		t.Errorf("never written: due %v, after now", due)
	}
}

// PITFALLS row 9
func TestBackoffNext(t *testing.T) {
	var b backoff
	fail := errors.New("fails")
	for n, base := 0, minBackoff; n < 20; n++ {
		b = b.next(fail)
		if b.wait < base/2 || b.wait >= base {
			t.Fatalf("pause %d is %v, want [%v, %v)", n, b.wait, base/2, base)
		}
		base = min(2*base, maxBackoff)
	}
	if b = b.next(nil); b != (backoff{}) {
		t.Errorf("after a success: %+v", b)
	}
	if b = b.next(fail); b.wait >= minBackoff {
		t.Errorf("does not start over: %v", b.wait)
	}
}

func TestLastInLine(t *testing.T) {
	seg := func(index int, offset int64) WALSegmentInfo {
		return WALSegmentInfo{Generation: "0123456789abcdef", Index: index, Offset: offset}
	}
	for _, test := range []struct {
		name     string
		segments []WALSegmentInfo
		start    int
		index    int
		offset   int64
		n        int
	}{
		{"none", nil, 3, 0, 0, 0},
		{"one", []WALSegmentInfo{seg(3, 0)}, 3, 3, 0, 1},
		{"several", []WALSegmentInfo{seg(3, 0), seg(3, 50), seg(4, 0), seg(4, 70)}, 3, 4, 70, 4},
		{"older ones do not count", []WALSegmentInfo{seg(1, 0), seg(2, 0), seg(3, 0), seg(3, 9)}, 3, 3, 9, 2},
		{"older ones alone", []WALSegmentInfo{seg(1, 0), seg(2, 0)}, 3, 0, 0, 0},
		{"start is missing", []WALSegmentInfo{seg(2, 0), seg(4, 0)}, 3, 0, 0, 0},
		{"start begins late", []WALSegmentInfo{seg(3, 50)}, 3, 0, 0, 0},
		{"an index is missing", []WALSegmentInfo{seg(3, 0), seg(5, 0)}, 3, 3, 0, 1},
		{"a next index begins late", []WALSegmentInfo{seg(3, 0), seg(3, 8), seg(4, 50)}, 3, 3, 8, 2},
	} {
		last, n := lastInLine(test.segments, test.start)
		if n != test.n || n > 0 && (last.Index != test.index || last.Offset != test.offset) {
			t.Errorf("%s: got %v, %d", test.name, last, n)
		}
	}
}
