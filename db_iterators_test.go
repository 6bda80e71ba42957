package litestream_test

import (
	"context"
	"testing"

	"example.com/litestream"
)

// visit moves itr to its present end and checks that what it visits begins at
// next (I1). It returns the end.
func visit(t testing.TB, fx *fixture, itr *litestream.FileWALSegmentIterator, next litestream.Pos) litestream.Pos {
	t.Helper()
	for itr.Next() {
		info := itr.WALSegment()
		if info.Offset == 0 && info.Index == next.Index+1 {
			next = info.Pos()
		}
		if info.Pos() != next || info.Size <= 0 || info.CreatedAt.IsZero() {
			t.Fatalf("visited %+v, want position %s", info, next)
		}
		rc, err := fx.db.WALSegmentReader(ctx, info.Pos())
		if err != nil {
			t.Fatal(err)
		}
		next.Offset += segmentLen(t, rc)
	}
	if err := itr.Err(); err != nil {
		t.Fatal(err)
	}
	return next
}

func TestWALSegments_GoOnWithWhatIsCaptured(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	pos := fx.db.Pos()
	itr, err := fx.db.WALSegments(ctx, pos.Generation)
	if err != nil {
		t.Fatal(err)
	}
	at := visit(t, fx, itr, pos.Truncate())
	if at != pos {
		t.Errorf("visited up to %s, want %s", at, pos)
	}
	for i := range 6 {
		fx.insertBlob(t, 5000)
		if i%2 == 1 {
			if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
			fx.insertBlob(t, 10)
		}
		if err := fx.db.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		<-itr.NotifyCh()
		if at = visit(t, fx, itr, at); at != fx.db.Pos() {
			t.Errorf("visited up to %s, want %s", at, fx.db.Pos())
		}
	}
	if at.Index == 0 {
		t.Error("the WAL never restarted")
	}
	for range 2 {
		if err := fx.db.CloseWALSegmentIterator(itr); err != nil {
			t.Error(err)
		}
	}
	if err := fx.db.CloseWALSegmentIterator(nil); err != nil {
		t.Error(err)
	}
}

func TestWALSegments_WhatIsNotVisitedIsNotPruned(t *testing.T) {
	fx := newFixture(t, func(db *litestream.DB) { db.ShadowRetentionN = 1 })
	fx.db.StopMonitor()
	start := fx.db.Pos().Truncate()
	itr, err := fx.db.WALSegments(ctx, start.Generation)
	if err != nil {
		t.Fatal(err)
	}
	restarts := func(n int) {
		t.Helper()
		for range n {
			if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
			fx.insertBlob(t, 5000)
			mustSync(t, fx.db)
		}
	}
	restarts(5)
	if at := visit(t, fx, itr, start); at != fx.db.Pos() {
		t.Errorf("visited up to %s, want %s", at, fx.db.Pos())
	}
	if err := itr.Close(); err != nil {
		t.Fatal(err)
	}
	restarts(2)
	if n := shadowIndexes(t, fx.db); n > 3 {
		t.Errorf("%d indexes are kept that nobody needs", n)
	}
}

func TestWALSegments_EndWithTheGenerationAndTheDB(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	generation := fx.db.Pos().Generation
	for _, wrong := range []string{"", "0123456789abcdef"} {
		_, err := fx.db.WALSegments(ctx, wrong)
		mustErrorIs(t, err, litestream.ErrGenerationChanged)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err := fx.db.WALSegments(ended, generation)
	mustErrorIs(t, err, context.Canceled)

	itr, err := fx.db.WALSegments(ctx, generation)
	if err != nil {
		t.Fatal(err)
	}
	defer itr.Close()
	if _, err := fx.db.ReleasePin(); err != nil {
		t.Fatal(err)
	}
	restartWAL(t, fx.host)
	mustSync(t, fx.db)
	<-itr.NotifyCh()
	if itr.Next() {
		t.Error("the iterator went on in a generation that was given up")
	}
	mustErrorIs(t, itr.Err(), litestream.ErrGenerationChanged)

	itr, err = fx.db.WALSegments(ctx, fx.db.Pos().Generation)
	if err != nil {
		t.Fatal(err)
	}
	defer itr.Close()
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	<-itr.NotifyCh()
	if itr.Next() {
		t.Error("the iterator went on after Close")
	}
	mustErrorIs(t, itr.Err(), litestream.ErrDBClosed)
}
