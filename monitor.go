package litestream

import (
	"context"
	"errors"
	"time"
)

// How often the monitor looks without having been told of a change.
const (
	watchedPoll   = 5 * time.Second        // with a watch, after a change: events are hints, this is the truth
	restingPoll   = 1 * time.Minute        // with a watch, when that found nothing
	unwatchedPoll = 500 * time.Millisecond // without one, when nothing changes
	missingPoll   = 1 * time.Second        // while there is no database
	minPoll       = 10 * time.Millisecond
)

// When the position file is written. Each time deletes an inode, the old
// version's, and ext4 without a journal searches those deleted of late whenever
// it creates a file: with a thousand databases that was half of all they cost.
const (
	positionInterval = 10 * time.Second // while changes go on
	positionRest     = 2 * time.Second  // after the last change
)

// monitor is the run loop of a DB: it captures when the WAL changes, and
// checkpoints when that is due.
type monitor struct {
	db    *DB
	watch fileWatch
	pace  pollPace

	pos      Pos // at the last step
	written  Pos // in the position file
	wrote    time.Time
	resting  bool      // the spare connection is closed
	activity time.Time // of the last change
}

func newMonitor(db *DB) *monitor {
	return &monitor{db: db, watch: newFileWatch(db.notify), activity: time.Now()}
}

// run steps until ctx ends.
func (m *monitor) run(ctx context.Context) {
	defer m.watch.close()
	timer := time.NewTimer(m.pace.wait)
	defer timer.Stop()
	for {
		timer.Reset(m.nextStep(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.db.notify:
			if !m.await(ctx, m.captureView(time.Now())) {
				return
			}
			select { // what came meanwhile is seen by this step
			case <-m.db.notify:
			default:
			}
		}
		m.step(ctx)
	}
}

// await waits as v says, or until the WAL has grown by a checkpoint: a load that
// was slow before may turn into a burst. It returns false if ctx is done.
func (m *monitor) await(ctx context.Context, v captureView) bool {
	for d := v.wait(); ; {
		slice := min(d, max(v.delay, maxBlindWait))
		if !sleep(ctx, slice) {
			return false
		}
		if d -= slice; d <= 0 || m.db.walAhead() {
			return true
		}
	}
}

// step arms the watch, then captures: a change that the capture misses comes
// after the arming and wakes the loop again.
func (m *monitor) step(ctx context.Context) {
	db := m.db
	watching := m.watch.arm(db.WALPath()) == nil
	err := db.sync(ctx, tierRestart)
	if errors.Is(err, context.Canceled) {
		return
	}
	db.errs.note("capture", err)
	pos, now := db.Pos(), time.Now()
	changed := pos != m.pos
	m.pos = pos
	if changed {
		m.activity, m.resting = now, false
	} else if !m.resting && now.Sub(m.activity) >= watchedPoll {
		m.resting = true
		db.rest()
	}
	if pos != m.written && !now.Before(positionDue(m.wrote, m.activity)) {
		db.errs.note("write position", db.writePosition())
		m.written, m.wrote = pos, now
	}
	m.pace = m.pace.next(pollView{watching: watching, missing: pos.IsZero(), failed: err != nil, changed: changed})
}

// nextStep is how long the loop may wait for a change.
func (m *monitor) nextStep(now time.Time) time.Duration {
	d := m.pace.wait
	if m.pos != m.written {
		d = min(d, max(positionDue(m.wrote, m.activity).Sub(now), 0))
	}
	return d
}

// positionDue is when a position file that was written at wrote is written
// again, the last change being that of activity.
func positionDue(wrote, activity time.Time) time.Time {
	due, rest := wrote.Add(positionInterval), activity.Add(positionRest)
	if rest.Before(due) {
		return rest
	}
	return due
}

// captureView is what the time from the notice of a change to its capture
// depends on.
type captureView struct {
	delay      time.Duration // DB.MonitorDelayInterval
	steady     bool          // a capture found a change a moment ago, too
	useless    time.Duration // until a replica or an iterator can use a capture
	checkpoint time.Duration // until the WAL, growing as of late, calls for a checkpoint
	fruitless  time.Duration // that the last capture took, if it found nothing
}

const (
	// maxCaptureWait is the longest time that a capture is put off because
	// nobody can use it yet. Under steady load, fewer and larger segments cost
	// less.
	maxCaptureWait = 1 * time.Second

	// maxBlindWait is the longest time for which nobody looks how the WAL grows.
	maxBlindWait = 100 * time.Millisecond

	// minCaptureWait keeps a checkpoint that is overdue from making the loop
	// spin.
	minCaptureWait = 1 * time.Millisecond

	// steadyTime is how long a change says that others follow. It spans the
	// pause of writers that wait for a lock of ours in SQLite's busy handler.
	steadyTime = 50 * time.Millisecond

	// fruitlessRest bounds the share of a processor that goes into reading a
	// large transaction again and again before it commits: to a fifth.
	fruitlessRest = 4

	// maxFruitlessRest bounds how late its commit is seen for that.
	maxFruitlessRest = 2 * time.Second
)

// wait returns that time.
func (v captureView) wait() time.Duration {
	d := v.delay
	if v.steady {
		d = max(d, min(v.useless, maxCaptureWait))
		d = min(d, max(v.checkpoint, minCaptureWait))
	}
	return max(d, min(fruitlessRest*v.fruitless, maxFruitlessRest))
}

func (m *monitor) captureView(now time.Time) captureView {
	v := captureView{
		delay:      m.db.MonitorDelayInterval,
		steady:     !m.pos.IsZero() && now.Sub(m.activity) < steadyTime,
		checkpoint: time.Unix(0, m.db.count.checkpointAt.Load()).Sub(now),
		fruitless:  m.db.fruitless(),
	}
	if v.steady && len(m.db.openIterators()) == 0 && m.db.streams.empty() {
		v.useless = maxCaptureWait
		for _, r := range m.db.Replicas {
			v.useless = min(v.useless, r.untilDue(now))
		}
	}
	return v
}

// pollView is what the last step found.
type pollView struct {
	watching, missing, failed, changed bool
}

// pollPace is how long to wait for the next look.
type pollPace struct {
	wait time.Duration
}

// next slows down while nothing changes, and starts over with each change.
func (p pollPace) next(v pollView) pollPace {
	limit := unwatchedPoll
	switch {
	case v.missing || v.failed:
		limit = missingPoll
	case v.watching && (v.changed || p.wait < watchedPoll):
		return pollPace{watchedPoll}
	case v.watching:
		return pollPace{restingPoll}
	}
	if v.changed {
		return pollPace{minPoll}
	}
	return pollPace{min(max(2*p.wait, minPoll), limit)}
}

// rest gives back what only a busy database needs.
func (db *DB) rest() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if s := db.mu.session; s != nil {
		if err := s.keep.rest(); err != nil {
			tracef("%s: %v", db.path, err)
		}
	}
}
