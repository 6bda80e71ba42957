package replicatest_test

import (
	"context"
	"io"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

// hooked is a client some of whose methods are replaced.
type hooked struct {
	*replicatest.MemClient

	typ               func() string
	generations       func(context.Context) ([]string, error)
	deleteGeneration  func(context.Context, string) error
	snapshots         func(context.Context, string) (litestream.SnapshotIterator, error)
	writeSnapshot     func(context.Context, string, int, io.Reader) (litestream.SnapshotInfo, error)
	deleteSnapshot    func(context.Context, string, int) error
	snapshotReader    func(context.Context, string, int) (io.ReadCloser, error)
	walSegments       func(context.Context, string) (litestream.WALSegmentIterator, error)
	writeWALSegment   func(context.Context, litestream.Pos, io.Reader) (litestream.WALSegmentInfo, error)
	deleteWALSegments func(context.Context, []litestream.Pos) error
	walSegmentReader  func(context.Context, litestream.Pos) (io.ReadCloser, error)
}

func (c *hooked) Type() string {
	if c.typ != nil {
		return c.typ()
	}
	return c.MemClient.Type()
}

func (c *hooked) Generations(ctx context.Context) ([]string, error) {
	if c.generations != nil {
		return c.generations(ctx)
	}
	return c.MemClient.Generations(ctx)
}

func (c *hooked) DeleteGeneration(ctx context.Context, generation string) error {
	if c.deleteGeneration != nil {
		return c.deleteGeneration(ctx, generation)
	}
	return c.MemClient.DeleteGeneration(ctx, generation)
}

func (c *hooked) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	if c.snapshots != nil {
		return c.snapshots(ctx, generation)
	}
	return c.MemClient.Snapshots(ctx, generation)
}

func (c *hooked) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	if c.writeSnapshot != nil {
		return c.writeSnapshot(ctx, generation, index, r)
	}
	return c.MemClient.WriteSnapshot(ctx, generation, index, r)
}

func (c *hooked) DeleteSnapshot(ctx context.Context, generation string, index int) error {
	if c.deleteSnapshot != nil {
		return c.deleteSnapshot(ctx, generation, index)
	}
	return c.MemClient.DeleteSnapshot(ctx, generation, index)
}

func (c *hooked) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	if c.snapshotReader != nil {
		return c.snapshotReader(ctx, generation, index)
	}
	return c.MemClient.SnapshotReader(ctx, generation, index)
}

func (c *hooked) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	if c.walSegments != nil {
		return c.walSegments(ctx, generation)
	}
	return c.MemClient.WALSegments(ctx, generation)
}

func (c *hooked) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
	if c.writeWALSegment != nil {
		return c.writeWALSegment(ctx, pos, r)
	}
	return c.MemClient.WriteWALSegment(ctx, pos, r)
}

func (c *hooked) DeleteWALSegments(ctx context.Context, a []litestream.Pos) error {
	if c.deleteWALSegments != nil {
		return c.deleteWALSegments(ctx, a)
	}
	return c.MemClient.DeleteWALSegments(ctx, a)
}

func (c *hooked) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	if c.walSegmentReader != nil {
		return c.walSegmentReader(ctx, pos)
	}
	return c.MemClient.WALSegmentReader(ctx, pos)
}

// editSnapshots changes what listings of snapshots show.
func (c *hooked) editSnapshots(edit func([]litestream.SnapshotInfo) []litestream.SnapshotInfo) {
	c.snapshots = func(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
		itr, err := c.MemClient.Snapshots(ctx, generation)
		if err != nil {
			return nil, err
		}
		a, err := litestream.SliceSnapshotIterator(itr)
		return litestream.NewSnapshotInfoSliceIterator(edit(a)), err
	}
}

// editSegments changes what listings of segments show.
func (c *hooked) editSegments(edit func([]litestream.WALSegmentInfo) []litestream.WALSegmentInfo) {
	c.walSegments = func(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
		itr, err := c.MemClient.WALSegments(ctx, generation)
		if err != nil {
			return nil, err
		}
		a, err := litestream.SliceWALSegmentIterator(itr)
		return litestream.NewWALSegmentInfoSliceIterator(edit(a)), err
	}
}
