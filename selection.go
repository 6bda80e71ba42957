package litestream

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The functions of this file ask a replica what it holds. Their errors match
// ErrNoGeneration, ErrNoSnapshots or ErrNoWALSegments when it holds nothing of
// the kind, and never when the client failed, so that a host can start fresh
// on the first and stop on the second.

// FindLatestGeneration returns the generation that was updated last, of those
// that have a snapshot: the others cannot be restored. The error matches
// ErrNoGeneration if there is none.
func FindLatestGeneration(ctx context.Context, client ReplicaClient) (generation string, err error) {
	all, err := listGenerations(ctx, client, 1)
	if err != nil {
		return "", fmt.Errorf("find latest generation: %w", err)
	}
	var latest generationRank
	for _, g := range all {
		if rank := g.rank(time.Time{}); len(g.snapshots) > 0 && (latest.name == "" || rank.compare(latest) > 0) {
			latest = rank
		}
	}
	if latest.name == "" {
		return "", fmt.Errorf("find latest generation: %w", ErrNoGeneration)
	}
	return latest.name, nil
}

// ReplicaClientTimeBounds returns the time of the oldest snapshot and of the
// newest snapshot or segment over all generations that have a snapshot. The
// error matches ErrNoGeneration if there is none.
func ReplicaClientTimeBounds(ctx context.Context, client ReplicaClient) (min, max time.Time, err error) {
	all, err := listGenerations(ctx, client, 1)
	if err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("replica time bounds: %w", err)
	}
	var span timeSpan
	for _, g := range all {
		if len(g.snapshots) == 0 {
			continue
		}
		for _, s := range g.snapshots {
			span.add(s.CreatedAt)
		}
		for _, s := range g.segments {
			if s.CreatedAt.After(span.max) {
				span.max = s.CreatedAt
			}
		}
	}
	if !span.any {
		return time.Time{}, time.Time{}, fmt.Errorf("replica time bounds: %w", ErrNoGeneration)
	}
	return span.min, span.max, nil
}

// GenerationTimeBounds returns when the first snapshot of a generation was
// created and when its newest snapshot or segment was. The error matches
// ErrNoSnapshots if it has no snapshot.
func GenerationTimeBounds(ctx context.Context, client ReplicaClient, generation string) (createdAt, updatedAt time.Time, err error) {
	createdAt, updatedAt, err = SnapshotTimeBounds(ctx, client, generation)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	_, max, err := WALTimeBounds(ctx, client, generation)
	if errors.Is(err, ErrNoWALSegments) {
		return createdAt, updatedAt, nil
	} else if err != nil {
		return time.Time{}, time.Time{}, err
	}
	if max.After(updatedAt) {
		updatedAt = max
	}
	return createdAt, updatedAt, nil
}

// SnapshotTimeBounds returns when the first and the last snapshot of a
// generation were created. The error matches ErrNoSnapshots if it has none.
func SnapshotTimeBounds(ctx context.Context, client ReplicaClient, generation string) (min, max time.Time, err error) {
	a, err := someSnapshots(ctx, client, generation)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	var span timeSpan
	for _, info := range a {
		span.add(info.CreatedAt)
	}
	return span.min, span.max, nil
}

// WALTimeBounds returns when the first and the last segment of a generation
// were created. The error matches ErrNoWALSegments if it has none.
func WALTimeBounds(ctx context.Context, client ReplicaClient, generation string) (min, max time.Time, err error) {
	a, err := someWALSegments(ctx, client, generation)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	var span timeSpan
	for _, info := range a {
		span.add(info.CreatedAt)
	}
	return span.min, span.max, nil
}

// timeSpan is the smallest span that holds all times added to it.
type timeSpan struct {
	min, max time.Time
	any      bool
}

func (s *timeSpan) add(t time.Time) {
	if !s.any || t.Before(s.min) {
		s.min = t
	}
	if !s.any || t.After(s.max) {
		s.max = t
	}
	s.any = true
}

// FindMaxIndexByGeneration returns the highest index of a generation, of a
// snapshot or a segment. The error matches ErrNoSnapshots if the generation
// has no snapshot, since no index of it can be restored then.
func FindMaxIndexByGeneration(ctx context.Context, client ReplicaClient, generation string) (index int, err error) {
	index, err = FindMaxSnapshotIndexByGeneration(ctx, client, generation)
	if err != nil {
		return 0, err
	}
	walIndex, err := FindMaxWALIndexByGeneration(ctx, client, generation)
	if err != nil && !errors.Is(err, ErrNoWALSegments) {
		return 0, err
	}
	return max(index, walIndex), nil
}

// FindMaxSnapshotIndexByGeneration returns the index of the last snapshot of a
// generation. The error matches ErrNoSnapshots if it has none.
func FindMaxSnapshotIndexByGeneration(ctx context.Context, client ReplicaClient, generation string) (index int, err error) {
	a, err := someSnapshots(ctx, client, generation)
	if err != nil {
		return 0, err
	}
	return a[len(a)-1].Index, nil
}

// FindMaxWALIndexByGeneration returns the highest index of a generation's
// segments. The error matches ErrNoWALSegments if it has none.
func FindMaxWALIndexByGeneration(ctx context.Context, client ReplicaClient, generation string) (index int, err error) {
	a, err := someWALSegments(ctx, client, generation)
	if err != nil {
		return 0, err
	}
	return a[len(a)-1].Index, nil
}

// FindSnapshotForIndex returns the index of the last snapshot from which index
// can be restored: the highest at or before it. The error matches
// ErrNoSnapshots if the generation has no snapshot at all.
func FindSnapshotForIndex(ctx context.Context, client ReplicaClient, generation string, index int) (int, error) {
	a, err := someSnapshots(ctx, client, generation)
	if err != nil {
		return 0, err
	}
	for i := len(a) - 1; i >= 0; i-- {
		if a[i].Index <= index {
			return a[i].Index, nil
		}
	}
	return 0, fmt.Errorf("generation %s: no snapshot at or before index %s, the first is %s",
		generation, FormatIndex(max(index, 0)), FormatIndex(a[0].Index))
}

// FindIndexByTimestamp returns the highest index of a generation, of a
// snapshot or a segment, that was stored at or before a moment. A moment
// before the first snapshot cannot be restored: that is an error. The error
// matches ErrNoSnapshots if the generation has no snapshot at all.
func FindIndexByTimestamp(ctx context.Context, client ReplicaClient, generation string, timestamp time.Time) (index int, err error) {
	snapshots, err := someSnapshots(ctx, client, generation)
	if err != nil {
		return 0, err
	}
	segments, err := someWALSegments(ctx, client, generation)
	if err != nil && !errors.Is(err, ErrNoWALSegments) {
		return 0, err
	}
	var span timeSpan
	index = -1
	for _, info := range snapshots {
		span.add(info.CreatedAt)
		if !info.CreatedAt.After(timestamp) {
			index = info.Index
		}
	}
	if index < 0 {
		return 0, fmt.Errorf("generation %s: no snapshot at or before %s, the first is of %s",
			generation, timestamp.Format(time.RFC3339Nano), span.min.Format(time.RFC3339Nano))
	}
	for _, info := range segments {
		if !info.CreatedAt.After(timestamp) {
			index = max(index, info.Index)
		}
	}
	return index, nil
}

// FilterSnapshotsAfter returns the snapshots that were created at or after t.
func FilterSnapshotsAfter(a []SnapshotInfo, t time.Time) []SnapshotInfo {
	after := make([]SnapshotInfo, 0, len(a))
	for _, info := range a {
		if !info.CreatedAt.Before(t) {
			after = append(after, info)
		}
	}
	return after
}

// FindMinSnapshotByGeneration returns the element of a with the lowest index
// of a generation, or nil if there is none.
func FindMinSnapshotByGeneration(a []SnapshotInfo, generation string) *SnapshotInfo {
	var lowest *SnapshotInfo
	for i := range a {
		if a[i].Generation == generation && (lowest == nil || a[i].Index < lowest.Index) {
			lowest = &a[i]
		}
	}
	return lowest
}

// someSnapshots returns at least one snapshot, or an error that matches
// ErrNoSnapshots.
func someSnapshots(ctx context.Context, client ReplicaClient, generation string) ([]SnapshotInfo, error) {
	a, err := listSnapshots(ctx, client, generation)
	if err == nil && len(a) == 0 {
		err = fmt.Errorf("generation %s: %w", generation, ErrNoSnapshots)
	}
	return a, err
}

// someWALSegments returns at least one segment, or an error that matches
// ErrNoWALSegments.
func someWALSegments(ctx context.Context, client ReplicaClient, generation string) ([]WALSegmentInfo, error) {
	a, err := listWALSegments(ctx, client, generation)
	if err == nil && len(a) == 0 {
		err = fmt.Errorf("generation %s: %w", generation, ErrNoWALSegments)
	}
	return a, err
}
