package litestream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// RestorePlan says what a restore fetches and which state it reaches.
type RestorePlan struct {
	Generation string
	Snapshot   SnapshotInfo
	Segments   []WALSegmentInfo // in the order of the WAL: by index, then offset
	Size       int64            // of all of them, compressed, in bytes

	// Pos is where the last segment begins, or the start of the snapshot's
	// index if there is none. The restored state is that at the segment's end,
	// a position that RestoreLatest and RestoreAt return.
	Pos Pos

	// CreatedAt is when the last segment, or else the snapshot, was stored.
	CreatedAt time.Time

	// Skipped tells why generations that rank higher cannot be restored.
	Skipped []error

	rank generationRank
}

// String describes the plan for people, in a few lines.
func (p *RestorePlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "generation %s\n", p.Generation)
	fmt.Fprintf(&b, "snapshot   %s, %d bytes, %s\n", FormatIndex(p.Snapshot.Index), p.Snapshot.Size, formatMoment(p.Snapshot.CreatedAt))
	if n := len(p.Segments); n > 0 {
		fmt.Fprintf(&b, "wal        %s to %s, %d segments, %d bytes\n",
			FormatIndex(p.Segments[0].Index), FormatIndex(p.Segments[n-1].Index), n, p.Size-p.Snapshot.Size)
	}
	fmt.Fprintf(&b, "total      %d files, %d bytes\n", len(p.Segments)+1, p.Size)
	fmt.Fprintf(&b, "reaches    %s, %s\n", p.Pos, formatMoment(p.CreatedAt))
	for _, err := range p.Skipped {
		fmt.Fprintf(&b, "skipped    %v\n", err)
	}
	return b.String()
}

func formatMoment(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// PlanRestore returns what [RestoreAt] would do for t, and what
// [RestoreLatest] would do if t is the zero time. It reads listings only.
//
// The error matches ErrNoGeneration if the replica has no generation and
// ErrNoSnapshots if none of them has a snapshot. A replica that has snapshots
// but cannot be restored, or not at t, matches neither.
func PlanRestore(ctx context.Context, client ReplicaClient, t time.Time) (*RestorePlan, error) {
	// Retention that runs between the two listings of a generation looks like
	// a missing index, so one is believed only when it persists.
	for attempt := 1; ; attempt++ {
		infos, err := listGenerations(ctx, client, DefaultRestoreParallelism)
		if err != nil {
			return nil, fmt.Errorf("plan restore: %w", err)
		}
		plan, err := planRestore(infos, t)
		if attempt < restoreAttempts && sawGap(plan, err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("plan restore: %w", err)
		}
		return plan, nil
	}
}

func sawGap(plan *RestorePlan, err error) bool {
	if plan != nil {
		err = errors.Join(plan.Skipped...)
	}
	var missing *WALNotFoundError
	return errors.As(err, &missing)
}

// generationInfos is what a replica lists of one generation.
type generationInfos struct {
	name      string
	snapshots []SnapshotInfo
	segments  []WALSegmentInfo
}

// listGenerations lists a replica, some generations at a time. Snapshots come
// before segments, so that the segments reach at least as far as each snapshot
// was taken.
func listGenerations(ctx context.Context, client ReplicaClient, parallelism int) ([]generationInfos, error) {
	names, err := listGenerationNames(ctx, client)
	if err != nil {
		return nil, err
	}
	infos := make([]generationInfos, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelism)
	for i, name := range names {
		g.Go(func() (err error) {
			infos[i], err = listGeneration(ctx, client, name)
			return err
		})
	}
	return infos, g.Wait()
}

func listGeneration(ctx context.Context, client ReplicaClient, name string) (gi generationInfos, err error) {
	gi.name = name
	if gi.snapshots, err = listSnapshots(ctx, client, name); err != nil || len(gi.snapshots) == 0 {
		return gi, err // without one it cannot be restored, whatever its segments
	}
	gi.segments, err = listWALSegments(ctx, client, name)
	return gi, err
}

// tooEarlyError reports a moment from before the first snapshot.
type tooEarlyError struct{ t, earliest time.Time }

func (e *tooEarlyError) Error() string {
	return fmt.Sprintf("nothing was stored by %s: the earliest moment that can be restored is %s",
		formatMoment(e.t), formatMoment(e.earliest))
}

// planRestore chooses among generations: the latest, as of t, comes first. One
// that cannot be restored never hides another that can. The zero time stands for
// the end of time.
func planRestore(infos []generationInfos, t time.Time) (*RestorePlan, error) {
	if len(infos) == 0 {
		return nil, ErrNoGeneration
	}
	infos = slices.Clone(infos)
	sort.Slice(infos, func(i, j int) bool {
		return infos[i].rank(t).compare(infos[j].rank(t)) > 0
	})
	var skipped []error
	for _, gi := range infos {
		plan, err := planGeneration(gi, t)
		if err == nil {
			plan.Skipped, plan.rank = skipped, gi.rank(t)
			return plan, nil
		}
		skipped = append(skipped, fmt.Errorf("generation %s: %w", gi.name, err))
	}
	return nil, refusal(infos, skipped)
}

// refusal sums up why no generation can be restored: a broken one first, then
// a moment that is too early, and ErrNoSnapshots only if there is no snapshot.
func refusal(infos []generationInfos, skipped []error) error {
	var early *tooEarlyError
	for _, err := range skipped {
		var e *tooEarlyError
		switch {
		case errors.As(err, &e):
			if early == nil || e.earliest.Before(early.earliest) {
				early = e
			}
		case !errors.Is(err, ErrNoSnapshots):
			return err
		}
	}
	if early != nil {
		return early
	}
	return fmt.Errorf("%w in any of %d generations", ErrNoSnapshots, len(infos))
}

// generationRank tells which of two generations is the later one.
type generationRank struct {
	name                 string
	createdAt, updatedAt time.Time
}

// rank is that of the generation as it was at t.
//
// Of the snapshots, only the oldest counts as an update. The others add nothing
// to what the segments hold, and the upload of one may end long after the
// generation did, when there is news of the next.
func (gi generationInfos) rank(t time.Time) generationRank {
	rank := generationRank{name: gi.name}
	for _, s := range gi.snapshots {
		if within(s.CreatedAt, t) && (rank.createdAt.IsZero() || s.CreatedAt.Before(rank.createdAt)) {
			rank.createdAt = s.CreatedAt
		}
	}
	rank.updatedAt = rank.createdAt
	for _, s := range gi.segments {
		if within(s.CreatedAt, t) && s.CreatedAt.After(rank.updatedAt) {
			rank.updatedAt = s.CreatedAt
		}
	}
	return rank
}

// compare orders by the last update, then by the beginning: a replica's times
// may be of whole seconds. The name comes last, so that the order of a listing
// never matters.
func (g generationRank) compare(h generationRank) int {
	return cmp.Or(g.updatedAt.Compare(h.updatedAt), g.createdAt.Compare(h.createdAt), cmp.Compare(g.name, h.name))
}

func within(at, t time.Time) bool { return t.IsZero() || !at.After(t) }

// planGeneration restores one generation to t.
//
// Order is that of the WAL, not of the clock: the plan ends with the last
// segment, by position, that was stored at or before t. Segments before it are
// part of the plan even if a clock that jumped stamped them later, since a
// segment cannot have been stored before its predecessors.
func planGeneration(gi generationInfos, t time.Time) (*RestorePlan, error) {
	snapshots, segments := slices.Clone(gi.snapshots), compactSegments(gi.segments)
	sort.Sort(SnapshotInfoSlice(snapshots))
	if len(snapshots) == 0 {
		return nil, ErrNoSnapshots
	}
	earliest := slices.MinFunc(snapshots, func(a, b SnapshotInfo) int { return a.CreatedAt.Compare(b.CreatedAt) })
	snapshots = slices.DeleteFunc(snapshots, func(s SnapshotInfo) bool { return !within(s.CreatedAt, t) })
	if len(snapshots) == 0 {
		return nil, &tooEarlyError{t: t, earliest: earliest.CreatedAt}
	}
	for len(segments) > 0 && !within(segments[len(segments)-1].CreatedAt, t) {
		segments = segments[:len(segments)-1]
	}
	// The newest snapshot with an unbroken chain to the end needs the least.
	var firstErr error
	for _, snapshot := range slices.Backward(snapshots) {
		chain, err := chainFrom(snapshot, segments)
		if err == nil {
			return newRestorePlan(snapshot, chain), nil
		}
		if firstErr == nil {
			firstErr = err
		}
	}
	return nil, firstErr
}

// planIndex restores one generation from a given snapshot to the end of a
// given index.
func planIndex(gi generationInfos, snapshotIndex, targetIndex int) (*RestorePlan, error) {
	i := slices.IndexFunc(gi.snapshots, func(s SnapshotInfo) bool { return s.Index == snapshotIndex })
	if i < 0 {
		return nil, fmt.Errorf("generation %s: index %s: %w", gi.name, FormatIndex(snapshotIndex), ErrNoSnapshots)
	}
	segments := slices.DeleteFunc(compactSegments(gi.segments), func(s WALSegmentInfo) bool { return s.Index > targetIndex })
	chain, err := chainFrom(gi.snapshots[i], segments)
	if err != nil {
		return nil, fmt.Errorf("generation %s: %w", gi.name, err)
	}
	plan := newRestorePlan(gi.snapshots[i], chain)
	if plan.Pos.Index < targetIndex {
		missing := plan.Pos.Index + 1
		if len(chain) == 0 {
			missing = snapshotIndex
		}
		return nil, &WALNotFoundError{Generation: gi.name, Index: missing}
	}
	return plan, nil
}

// chainFrom returns the segments that complete a snapshot, of sorted ones.
// Their indexes must be dense from the snapshot's and each begin at offset 0
// (I1); whether the segments of an index touch is known when they are read. An
// empty chain is complete: the WAL was empty when the snapshot was taken.
func chainFrom(snapshot SnapshotInfo, segments []WALSegmentInfo) ([]WALSegmentInfo, error) {
	start, _ := slices.BinarySearchFunc(segments, snapshot.Index, func(s WALSegmentInfo, index int) int {
		return cmp.Compare(s.Index, index)
	})
	chain := segments[start:]
	want := snapshot.Index // the index that must come next
	for i, s := range chain {
		if i > 0 && s.Index == chain[i-1].Index {
			continue
		}
		if s.Index != want {
			return nil, &WALNotFoundError{Generation: snapshot.Generation, Index: want}
		}
		if s.Offset != 0 {
			return nil, fmt.Errorf("%s is missing: the first segment of the index begins at offset %d: %w",
				segmentName(Pos{Generation: snapshot.Generation, Index: want}), s.Offset,
				&WALNotFoundError{Generation: snapshot.Generation, Index: want})
		}
		want++
	}
	return chain, nil
}

func newRestorePlan(snapshot SnapshotInfo, chain []WALSegmentInfo) *RestorePlan {
	plan := &RestorePlan{
		Generation: snapshot.Generation,
		Snapshot:   snapshot,
		Segments:   chain,
		Size:       snapshot.Size,
		Pos:        snapshot.Pos(),
		CreatedAt:  snapshot.CreatedAt,
	}
	for i := range chain {
		plan.Size += chain[i].Size
		plan.Pos, plan.CreatedAt = chain[i].Pos(), chain[i].CreatedAt
	}
	return plan
}

// compactSegments returns a sorted copy in which each segment stands once: a
// listing in pages may repeat one.
func compactSegments(a []WALSegmentInfo) []WALSegmentInfo {
	a = slices.Clone(a)
	sort.Sort(WALSegmentInfoSlice(a))
	return slices.CompactFunc(a, func(a, b WALSegmentInfo) bool { return a.Pos() == b.Pos() })
}

// segmentsByIndex splits sorted segments.
func segmentsByIndex(segments []WALSegmentInfo) (groups [][]WALSegmentInfo) {
	for start, i := 0, 1; i <= len(segments); i++ {
		if i == len(segments) || segments[i].Index != segments[start].Index {
			groups = append(groups, segments[start:i])
			start = i
		}
	}
	return groups
}

// snapshotName and segmentName are the names of a replica's files in errors.
func snapshotName(generation string, index int) string {
	return "generations/" + generation + "/snapshots/" + FormatIndex(index) + SnapshotExt
}

func segmentName(pos Pos) string {
	return "generations/" + pos.Generation + "/wal/" + FormatIndex(pos.Index) + "/" + FormatOffset(pos.Offset) + WALSegmentExt
}
