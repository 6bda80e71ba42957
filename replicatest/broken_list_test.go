package replicatest_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"example.com/litestream"
)

// brokenListings break promises of listings and deletions.
var brokenListings = []brokenClient{
	{"fails to list what is missing", "WALSegment/ListMissing", false, func(c *hooked) {
		c.walSegments = func(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
			names, err := c.MemClient.Generations(ctx)
			if err == nil && !slices.Contains(names, generation) {
				return nil, errBroken
			}
			return c.MemClient.WALSegments(ctx, generation)
		}
	}},
	{"lists without sizes", "WALSegment/List", false, func(c *hooked) {
		c.editSegments(func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
			for i := range a {
				a[i].Size = 0
			}
			return a
		})
	}},
	{"lists without times", "Snapshot/List", false, func(c *hooked) {
		c.editSnapshots(func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo {
			for i := range a {
				a[i].CreatedAt = time.Time{}
			}
			return a
		})
	}},
	{"lists the time of the listing", "WALSegment/ListTwice", true, func(c *hooked) {
		var listings atomic.Int64 // a coarse clock tells two listings one time
		c.editSegments(func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
			now := time.Now().Add(time.Duration(listings.Add(1)) * time.Microsecond)
			for i := range a {
				a[i].CreatedAt = now
			}
			return a
		})
	}},
	{"lists one twice", "Snapshot/List", false, func(c *hooked) {
		c.editSnapshots(func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo {
			return append(a, a[:min(len(a), 1)]...)
		})
	}},
	{"lists without generation", "WALSegment/List", false, func(c *hooked) {
		c.editSegments(func(a []litestream.WALSegmentInfo) []litestream.WALSegmentInfo {
			for i := range a {
				a[i].Generation = ""
			}
			return a
		})
	}},
	{"lists one page", "Snapshot/Many", true, func(c *hooked) {
		c.editSnapshots(func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo { return a[:min(len(a), 40)] })
	}},
	{"lists one page of generations", "ManyGenerations", false, func(c *hooked) {
		c.generations = func(ctx context.Context) ([]string, error) {
			names, err := c.MemClient.Generations(ctx)
			return names[:min(len(names), 25)], err
		}
	}},
	{"lists the newest later", "Snapshot/Write", false, func(c *hooked) {
		c.editSnapshots(func(a []litestream.SnapshotInfo) []litestream.SnapshotInfo {
			return slices.DeleteFunc(a, func(info litestream.SnapshotInfo) bool {
				return time.Since(info.CreatedAt) < time.Second
			})
		})
	}},
	{"remembers the generations", "Generations", false, func(c *hooked) {
		var known []string
		c.generations = func(ctx context.Context) (_ []string, err error) {
			temporary.mu.Lock()
			defer temporary.mu.Unlock()
			if known == nil {
				known, err = c.MemClient.Generations(ctx)
			}
			return slices.Clone(known), cmp.Or(err, ctx.Err())
		}
	}},
	{"lists snapshots as segments", "SnapshotsAreNotSegments", false, func(c *hooked) {
		c.walSegments = func(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
			itr, err := c.MemClient.WALSegments(ctx, generation)
			if err != nil {
				return nil, err
			}
			a, err := litestream.SliceWALSegmentIterator(itr)
			snapshots, err2 := c.MemClient.Snapshots(ctx, generation)
			if err := errors.Join(err, err2); err != nil {
				return nil, err
			}
			for snapshots.Next() {
				info := snapshots.Snapshot()
				a = append(a, litestream.WALSegmentInfo{Generation: generation, Index: info.Index, Size: info.Size, CreatedAt: info.CreatedAt})
			}
			return litestream.NewWALSegmentInfoSliceIterator(a), nil
		}
	}},
	{"ends a cancelled listing as if it were whole", "Snapshot/ListCancelled", true, func(c *hooked) {
		c.snapshots = func(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
			itr, err := c.MemClient.Snapshots(ctx, generation)
			return endedIterator{itr, ctx}, err
		}
	}},
	{"fails to close twice", "WALSegment/ListIterator", true, func(c *hooked) {
		c.walSegments = func(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
			itr, err := c.MemClient.WALSegments(ctx, generation)
			return &closedOnce{WALSegmentIterator: itr}, err
		}
	}},
	{"has numbers of 32 bits", "Snapshot/HighestNumbers", false, func(c *hooked) {
		c.writeSnapshot = func(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
			return c.MemClient.WriteSnapshot(ctx, generation, int(int32(index)), r)
		}
	}},
	{"fails to delete what is missing", "Snapshot/DeleteMissing", false, func(c *hooked) {
		c.deleteSnapshot = func(ctx context.Context, generation string, index int) error {
			rc, err := c.MemClient.SnapshotReader(ctx, generation, index)
			if err != nil {
				return err
			}
			return errors.Join(rc.Close(), c.MemClient.DeleteSnapshot(ctx, generation, index))
		}
	}},
	{"stops deleting at what is missing", "DeleteWALSegments", true, func(c *hooked) {
		c.deleteWALSegments = func(ctx context.Context, a []litestream.Pos) error {
			for i, pos := range a {
				rc, err := c.MemClient.WALSegmentReader(ctx, pos)
				if errors.Is(err, os.ErrNotExist) {
					return c.MemClient.DeleteWALSegments(ctx, a[:i])
				} else if err != nil {
					return err
				}
				rc.Close()
			}
			return c.MemClient.DeleteWALSegments(ctx, a)
		}
	}},
	{"sorts the caller's slice", "DeleteWALSegments", true, func(c *hooked) {
		c.deleteWALSegments = func(ctx context.Context, a []litestream.Pos) error {
			slices.SortFunc(a, func(a, b litestream.Pos) int {
				return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Offset, b.Offset))
			})
			return c.MemClient.DeleteWALSegments(ctx, a)
		}
	}},
	{"deletes one page", "DeleteWALSegments/Many", false, func(c *hooked) {
		c.deleteWALSegments = func(ctx context.Context, a []litestream.Pos) error {
			return c.MemClient.DeleteWALSegments(ctx, a[:min(len(a), 40)])
		}
	}},
	{"deletes what begins with the same digits", "WALSegment/Delete", false, func(c *hooked) {
		c.deleteWALSegments = func(ctx context.Context, a []litestream.Pos) error {
			for _, pos := range slices.Clone(a) {
				pos.Offset *= 0x10
				if pos.Offset > 0 {
					a = append(a, pos)
				}
			}
			return c.MemClient.DeleteWALSegments(ctx, a)
		}
	}},
	{"deletes for whom does not wait", "Snapshot/DeleteCancelled", true, func(c *hooked) {
		c.deleteSnapshot = func(ctx context.Context, generation string, index int) error {
			return c.MemClient.DeleteSnapshot(context.WithoutCancel(ctx), generation, index)
		}
	}},
	{"leaves the snapshots of a generation", "DeleteGeneration", false, func(c *hooked) {
		c.deleteGeneration = func(ctx context.Context, generation string) error {
			itr, err := c.MemClient.WALSegments(ctx, generation)
			if err != nil {
				return err
			}
			var a []litestream.Pos
			for itr.Next() {
				info := itr.WALSegment()
				a = append(a, info.Pos())
			}
			return c.MemClient.DeleteWALSegments(ctx, a)
		}
	}},
	{"deletes generations that begin alike", "DeleteGeneration", false, func(c *hooked) {
		c.deleteGeneration = func(ctx context.Context, generation string) error {
			names, err := c.MemClient.Generations(ctx)
			for _, name := range names {
				if len(generation) == len(name) && name[:15] == generation[:15] {
					err = errors.Join(err, c.MemClient.DeleteGeneration(ctx, name))
				}
			}
			return errors.Join(err, c.MemClient.DeleteGeneration(ctx, generation))
		}
	}},
	{"changes its type", "Type", true, func(c *hooked) {
		c.typ = func() string {
			names, _ := c.MemClient.Generations(context.Background())
			return "type"[:4-len(names)]
		}
	}},
}

// endedIterator ends quietly with its context.
type endedIterator struct {
	litestream.SnapshotIterator
	ctx context.Context
}

func (itr endedIterator) Next() bool { return itr.ctx.Err() == nil && itr.SnapshotIterator.Next() }

// closedOnce fails the second Close.
type closedOnce struct {
	litestream.WALSegmentIterator
	closed bool
}

func (itr *closedOnce) Close() error {
	if itr.closed {
		return errBroken
	}
	itr.closed = true
	return itr.WALSegmentIterator.Close()
}
