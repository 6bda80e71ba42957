package litestream

import (
	"cmp"
	"context"
	"slices"
)

// The functions of this file read a client's listings: sorted, whatever the
// client's order, and without what has no valid name. A listing that ends early
// is an error, never a shorter list; one that does not end, ends with ctx.

// listGenerationNames returns the generations in order of their names.
func listGenerationNames(ctx context.Context, client ReplicaClient) ([]string, error) {
	if isNil(client) {
		return nil, errNoClient
	}
	names, err := client.Generations(ctx)
	if err != nil {
		return nil, sayOnce("list generations", "", err)
	}
	names = slices.DeleteFunc(slices.Clone(names), func(s string) bool { return !IsGenerationName(s) })
	slices.Sort(names)
	return names, nil
}

// listSnapshots returns a generation's snapshots in order of their indexes.
func listSnapshots(ctx context.Context, client ReplicaClient, generation string) ([]SnapshotInfo, error) {
	if isNil(client) {
		return nil, errNoClient
	}
	itr, err := client.Snapshots(ctx, generation)
	if err != nil {
		return nil, sayOnce("list snapshots", "generation "+generation, err)
	}
	a, err := SliceSnapshotIterator(limitedSnapshots{itr, ctx})
	if err != nil {
		return nil, sayOnce("list snapshots", "generation "+generation, err)
	}
	a = slices.DeleteFunc(a, func(s SnapshotInfo) bool { return s.Index < 0 })
	for i := range a {
		a[i].Generation = generation
	}
	return a, nil
}

// listWALSegments returns a generation's segments in order of their positions.
func listWALSegments(ctx context.Context, client ReplicaClient, generation string) ([]WALSegmentInfo, error) {
	if isNil(client) {
		return nil, errNoClient
	}
	itr, err := client.WALSegments(ctx, generation)
	if err != nil {
		return nil, sayOnce("list wal segments", "generation "+generation, err)
	}
	a, err := SliceWALSegmentIterator(limitedSegments{itr, ctx})
	if err != nil {
		return nil, sayOnce("list wal segments", "generation "+generation, err)
	}
	a = slices.DeleteFunc(a, func(s WALSegmentInfo) bool { return s.Index < 0 || s.Offset < 0 })
	for i := range a {
		a[i].Generation = generation
	}
	return a, nil
}

// limitedSnapshots ends with an error when its context ends.
type limitedSnapshots struct {
	SnapshotIterator
	ctx context.Context
}

func (itr limitedSnapshots) Next() bool { return itr.ctx.Err() == nil && itr.SnapshotIterator.Next() }
func (itr limitedSnapshots) Err() error { return cmp.Or(itr.SnapshotIterator.Err(), itr.ctx.Err()) }

// limitedSegments ends with an error when its context ends.
type limitedSegments struct {
	WALSegmentIterator
	ctx context.Context
}

func (itr limitedSegments) Next() bool { return itr.ctx.Err() == nil && itr.WALSegmentIterator.Next() }
func (itr limitedSegments) Err() error { return cmp.Or(itr.WALSegmentIterator.Err(), itr.ctx.Err()) }
