package litestream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"example.com/litestream/internal/durable"
)

// Snapshots returns all snapshots on the replica, of all generations, sorted
// by generation and index.
func (r *Replica) Snapshots(ctx context.Context) ([]SnapshotInfo, error) {
	var a []SnapshotInfo
	err := r.eachGeneration(ctx, func(generation string, snapshots []SnapshotInfo) error {
		a = append(a, snapshots...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("snapshots of replica %q: %w", r.Name(), err)
	}
	return a, nil
}

// eachGeneration lists the generations, then calls fn with the snapshots of
// each, in order of the names.
func (r *Replica) eachGeneration(ctx context.Context, fn func(generation string, snapshots []SnapshotInfo) error) error {
	names, err := listGenerationNames(ctx, r.client)
	if err != nil {
		return err
	}
	for _, name := range names {
		snapshots, err := listSnapshots(ctx, r.client, name)
		if err != nil {
			return err
		}
		if err := fn(name, snapshots); err != nil {
			return err
		}
	}
	return nil
}

// SnapshotIndexAt returns the highest index of a snapshot that a generation
// had at a time; the zero time stands for now. The error matches
// ErrNoSnapshots if there is none.
func (r *Replica) SnapshotIndexAt(ctx context.Context, generation string, timestamp time.Time) (int, error) {
	snapshots, err := r.snapshotsOf(ctx, generation)
	if err != nil {
		return 0, fmt.Errorf("snapshot index at %s: %w", formatMoment(timestamp), err)
	}
	for _, s := range slices.Backward(snapshots) {
		if within(s.CreatedAt, timestamp) {
			return s.Index, nil
		}
	}
	return 0, fmt.Errorf("snapshot index at %s: generation %s: %w", formatMoment(timestamp), generation, ErrNoSnapshots)
}

// GenerationCreatedAt returns when the oldest snapshot of a generation was
// stored, and the zero time if there is none.
func (r *Replica) GenerationCreatedAt(ctx context.Context, generation string) (t time.Time, err error) {
	snapshots, err := r.snapshotsOf(ctx, generation)
	if err != nil {
		return t, fmt.Errorf("generation created at: %w", err)
	}
	for _, s := range snapshots {
		if t.IsZero() || s.CreatedAt.Before(t) {
			t = s.CreatedAt
		}
	}
	return t, nil
}

// snapshotsOf returns a generation's snapshots; there may be none.
func (r *Replica) snapshotsOf(ctx context.Context, generation string) ([]SnapshotInfo, error) {
	return listSnapshots(ctx, r.client, generation)
}

// EnforceRetention makes a snapshot if the newest one of the current
// generation is older than Retention, and then deletes what is no longer
// needed to restore any moment since Retention ago: it keeps the newest
// snapshot that is at least that old, and everything after it. It does nothing
// if Retention is 0. The error matches ErrNoGeneration before the first
// capture.
func (r *Replica) EnforceRetention(ctx context.Context) error {
	if r.Retention <= 0 {
		return nil
	}
	if err := r.enforceRetention(ctx); err != nil {
		return fmt.Errorf("enforce retention of replica %q: %w", r.Name(), err)
	}
	return nil
}

func (r *Replica) enforceRetention(ctx context.Context) error {
	if r.db == nil || r.client == nil {
		return errors.New("replica has no database or no client")
	}
	if st := r.db.status.Load(); !st.open {
		return errNotOpen
	} else if st.pos.IsZero() {
		return ErrNoGeneration
	}
	// What is born from here on is not in the list, and so is not deleted.
	ctx = durable.Listing(ctx) // what stays must survive what goes
	var listed []retainedGeneration
	current := r.db.Pos().Generation
	err := r.eachGeneration(ctx, func(name string, snapshots []SnapshotInfo) error {
		g := retainedGeneration{name: name, snapshots: snapshots}
		if name != current {
			segments, err := listWALSegments(ctx, r.client, name)
			if err != nil {
				return err
			}
			g.updated = newestSegment(segments)
		}
		listed = append(listed, g)
		return nil
	})
	if err != nil {
		return err
	}
	var names []string
	for _, g := range listed {
		if len(g.snapshots) > 0 {
			names = append(names, g.name)
		}
	}
	if err := r.checkLineage(ctx, names); errors.Is(err, ErrReplicaMoved) {
		return errors.Join(err, r.doubt(ctx))
	} else if err != nil {
		return err
	}
	// One that began while they were listed is the current one by now.
	current = r.db.Pos().Generation
	for i := range listed {
		listed[i].current = listed[i].name == current
	}
	r.noteEmpty(listed)
	if newest := newestSnapshot(listed); newest.IsZero() || r.replicaTime().Sub(newest) > r.Retention {
		if _, err := r.Snapshot(ctx); err != nil {
			return err
		}
	}
	for _, step := range planRetention(listed, r.replicaTime().Add(-r.Retention)) {
		if err := r.prune(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// doubt makes the next sync find out again where the replica stands.
func (r *Replica) doubt(ctx context.Context) error {
	u, err := r.acquire(ctx)
	if err != nil {
		return err
	}
	u.known = false
	r.release(u)
	return nil
}

// stampTime is the present, for comparison with what a replica says of its
// files: the earlier one of the machine's clock and of its steady course since
// the start. Neither a clock that is set forward nor one that is set back may
// make history look old enough to be deleted.
func (r *Replica) stampTime() time.Time {
	steady, set := r.now().Round(0), r.wall().Round(0) // without the monotonic reading
	if set.Before(steady) {
		return set
	}
	return steady
}

// replicaTime is the present by the replica's clock, as far as it is known to be
// behind: by how much it stamped what was written to it as older than the
// beginning of the write, at most. A clock that was corrected meanwhile has left
// stamps that are too old, so the worst one counts until the process ends.
func (r *Replica) replicaTime() time.Time {
	return r.stampTime().Add(-time.Duration(r.behind.Load()))
}

// noteStamp learns from the stamp of a file whose write began at a stampTime.
func (r *Replica) noteStamp(began, stamp time.Time) {
	d := began.Sub(stamp)
	if stamp.IsZero() || d <= stampPrecision {
		return
	}
	for old := r.behind.Load(); int64(d) > old && !r.behind.CompareAndSwap(old, int64(d)); {
		old = r.behind.Load()
	}
}

// noteEmpty dates generations that hold nothing: a crash in the middle of the
// first write leaves one, perhaps with an unfinished file. They count from when
// this replica saw them so first.
func (r *Replica) noteEmpty(listed []retainedGeneration) {
	r.empty.Lock()
	defer r.empty.Unlock()
	since := make(map[string]time.Time)
	for i, g := range listed {
		if len(g.snapshots) > 0 || !g.updated.IsZero() {
			continue
		}
		t, ok := r.empty.since[g.name]
		if !ok {
			t = r.now().Round(0)
		}
		since[g.name], listed[i].updated = t, t
	}
	r.empty.since = since
}

func newestSegment(segments []WALSegmentInfo) (t time.Time) {
	for _, s := range segments {
		if s.CreatedAt.After(t) {
			t = s.CreatedAt
		}
	}
	return t
}

// newestSnapshot returns when the last snapshot of the current generation was
// stored.
func newestSnapshot(listed []retainedGeneration) (t time.Time) {
	for _, g := range listed {
		for _, s := range g.snapshots {
			if g.current && s.CreatedAt.After(t) {
				t = s.CreatedAt
			}
		}
	}
	return t
}

// retainedGeneration is what retention knows of a generation.
type retainedGeneration struct {
	name      string
	current   bool           // the DB captures into it
	snapshots []SnapshotInfo // sorted by index
	updated   time.Time      // if not current: when the last segment was stored, or when it was seen empty first
}

// createdAt is the time of its first snapshot.
func (g retainedGeneration) createdAt() time.Time {
	if len(g.snapshots) == 0 {
		return time.Time{}
	}
	return g.snapshots[0].CreatedAt
}

// retentionStep deletes what one generation holds from before a snapshot, or
// all of it.
type retentionStep struct {
	generation string
	keepFrom   int // snapshot index
	all        bool
}

// planRetention keeps the newest snapshot at or before the cutoff and all that
// follows it.
//
// Generations come in the order of their first snapshots with the current one
// last, snapshots by index. A snapshot counts as no older than any before it, so
// that one stamped by a clock that was behind does not make its predecessors
// look superfluous. Nor does such a clock make a generation go that was still
// written to after the cutoff.
//
// A generation without a snapshot cannot be restored. It goes when its last
// segment, or the notice that it has none, is older than the cutoff: before
// that, it may be about to get its first snapshot.
func planRetention(listed []retainedGeneration, cutoff time.Time) (steps []retentionStep) {
	for _, g := range listed {
		if len(g.snapshots) == 0 && !g.current && !g.updated.IsZero() && g.updated.Before(cutoff) {
			steps = append(steps, retentionStep{generation: g.name, all: true})
		}
	}
	line := slices.DeleteFunc(slices.Clone(listed), func(g retainedGeneration) bool { return len(g.snapshots) == 0 })
	sort.SliceStable(line, func(i, j int) bool {
		a, b := &line[i], &line[j]
		if a.current != b.current {
			return b.current
		}
		return a.createdAt().Before(b.createdAt())
	})
	keep, keepFrom := -1, 0 // generation and snapshot index
	var at time.Time        // of the snapshot, at the earliest
	for i, g := range line {
		for _, s := range g.snapshots {
			if s.CreatedAt.After(at) {
				at = s.CreatedAt
			}
			if !at.After(cutoff) {
				keep, keepFrom = i, s.Index
			}
		}
	}
	for _, g := range line[:max(keep, 0)] {
		if !g.updated.After(cutoff) {
			steps = append(steps, retentionStep{generation: g.name, all: true})
		}
	}
	if keep >= 0 {
		steps = append(steps, retentionStep{generation: line[keep].name, keepFrom: keepFrom})
	}
	return steps
}

// prune carries out a step. Snapshots go first: what remains after a failure
// is WAL that nothing refers to, which the next enforcement deletes.
func (r *Replica) prune(ctx context.Context, step retentionStep) error {
	if step.all {
		if err := r.client.DeleteGeneration(ctx, step.generation); err != nil {
			return sayOnce("delete generation", "generation "+step.generation, err)
		}
		r.logf("retention: deleted generation %s", step.generation)
		return nil
	}
	snapshots, err := r.snapshotsOf(ctx, step.generation)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		if s.Index < step.keepFrom {
			if err := r.client.DeleteSnapshot(ctx, step.generation, s.Index); err != nil {
				return sayOnce("delete snapshot", s.Pos().String(), err)
			}
		}
	}
	segments, err := listWALSegments(ctx, r.client, step.generation)
	if err != nil {
		return err
	}
	var gone []Pos
	for _, seg := range segments {
		if seg.Index < step.keepFrom {
			gone = append(gone, seg.Pos())
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := r.client.DeleteWALSegments(ctx, gone); err != nil {
		return sayOnce("delete wal segment", "generation "+step.generation, err)
	}
	tracef("replica %s: retention: deleted %d segments before %s/%s", r.Name(), len(gone), step.generation, FormatIndex(step.keepFrom))
	return nil
}
