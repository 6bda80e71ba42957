package litestream_test

import (
	"context"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"example.com/litestream"
)

// laggard is a client of a replica whose clock is behind, which stamps
// accordingly.
type laggard struct {
	litestream.ReplicaClient
	rt     *retainer
	behind time.Duration
}

func (c laggard) stamp(t time.Time, elem ...string) (time.Time, error) {
	t = t.Add(-c.behind)
	return t, os.Chtimes(c.rt.path(elem...), t, t)
}

func (c laggard) WriteSnapshot(ctx context.Context, generation string, index int, rd io.Reader) (info litestream.SnapshotInfo, err error) {
	if info, err = c.ReplicaClient.WriteSnapshot(ctx, generation, index, rd); err == nil {
		info.CreatedAt, err = c.stamp(info.CreatedAt, generation, "snapshots", litestream.FormatIndex(index)+litestream.SnapshotExt)
	}
	return info, err
}

func (c laggard) WriteWALSegment(ctx context.Context, pos litestream.Pos, rd io.Reader) (info litestream.WALSegmentInfo, err error) {
	if info, err = c.ReplicaClient.WriteWALSegment(ctx, pos, rd); err == nil {
		info.CreatedAt, err = c.stamp(info.CreatedAt, pos.Generation, "wal", litestream.FormatIndex(pos.Index), litestream.FormatOffset(pos.Offset)+litestream.WALSegmentExt)
	}
	return info, err
}

// A replica whose clock is behind this machine's by more than Retention keeps
// what is younger than that, and gets no snapshot for its stamps alone.
// PITFALLS row 41
func TestRetention_ReplicaClockBehindDeletesNothing(t *testing.T) {
	rt := newRetainer(t)
	movable := rt.client.Unwrap().(*movableClient)
	movable.ReplicaClient = laggard{movable.ReplicaClient, rt, 48 * time.Hour}
	rt.age(t, 48*time.Hour)
	rt.generation(t)
	rt.phase(t)
	rt.phase(t)
	before, segments := rt.files(t)
	rt.db.StopMonitor()
	rt.insert(t, "in the next index")
	if err := rt.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	rt.insert(t, "in the next index")
	mustSync(t, rt.db)
	rt.enforce(t)
	after, kept := rt.files(t)
	for _, s := range slices.Concat(before, segments) {
		if !slices.Contains(after, s) && !slices.Contains(kept, s) {
			t.Errorf("%s was deleted", s)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d snapshots, want %d", len(after), len(before))
	}
	mustEqualRestore(t, rt.db, rt.client)

	// By the replica's clock, too, it goes when its time has come.
	rt.age(t, 60*time.Hour)
	rt.phase(t)
	rt.age(t, retention+time.Hour)
	rt.phase(t)
	rt.enforce(t)
	if after, _ := rt.files(t); slices.Contains(after, before[0]) {
		t.Errorf("%s is still there", before[0])
	}
	mustEqualRestore(t, rt.db, rt.client)
}
