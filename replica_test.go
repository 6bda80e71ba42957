package litestream_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/replicatest"
)

func TestReplica_LoneCommitDoesNotWaitForTheInterval(t *testing.T) {
	t.Parallel()
	const interval = 1 * time.Hour
	fx := newFixture(t, manually, func(db *litestream.DB) { db.Replicas[0].SyncInterval = interval })
	r := fx.db.Replica("file")
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	r.MonitorEnabled = true
	mustOpen(t, fx.db) // the replica has everything: nothing is sent
	fx.insert(t, "alone")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the commit is on the replica", func() bool { return r.Pos() == fx.db.Pos() })

	// The second within the interval waits for its end.
	at := r.Pos()
	fx.insert(t, "soon after")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	pass(500 * time.Millisecond)
	if got := r.Pos(); got != at {
		t.Errorf("replica went from %s to %s within SyncInterval", at, got)
	}
	if lag := fx.db.Stats().Replicas[0].Lag; lag <= 0 {
		t.Errorf("lag is %s while a commit waits", lag)
	}
	mustSync(t, fx.db) // but not a call for it
	if got := r.Pos(); got != fx.db.Pos() {
		t.Errorf("replica is at %s, the database at %s", got, fx.db.Pos())
	}
}

func TestReplica_CommitWithinTheIntervalIsSentAtItsEnd(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, func(db *litestream.DB) { db.Replicas[0].SyncInterval = 300 * time.Millisecond })
	r := fx.db.Replica("file")
	for range 3 {
		fx.insert(t, "one of many")
		if err := fx.db.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		pos := fx.db.Pos()
		eventually(t, 20*time.Second, "the commit is on the replica", func() bool { return r.Pos() == pos })
	}
}

func TestReplica_WaitPosReturnsWhenDurable(t *testing.T) {
	fx := newFixture(t, manually)
	r := fx.db.Replica("file")
	fx.insert(t, "awaited")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	pos := fx.db.Pos()
	done := make(chan error, 2)
	go func() { done <- r.WaitPos(ctx, pos) }()
	go func() { done <- fx.db.WaitPos(ctx, pos) }()
	select {
	case err := <-done:
		t.Fatalf("wait ended before the upload: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, pos := range []litestream.Pos{{}, pos, pos.Truncate()} { // reached long ago
		if err := r.WaitPos(ctx, pos); err != nil {
			t.Errorf("wait for %s: %v", pos, err)
		}
	}
}

func TestReplica_WaitPosEndsWithContextGenerationAndClose(t *testing.T) {
	fx := newFixture(t, manually)
	r := fx.db.Replica("file")
	ahead := fx.db.Pos()
	ahead.Index++
	limited, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	mustErrorIs(t, r.WaitPos(limited, ahead), context.DeadlineExceeded)
	mustErrorIs(t, fx.db.WaitPos(limited, ahead), context.DeadlineExceeded)

	other := ahead
	other.Generation = "0123456789abcdef"
	mustErrorIs(t, r.WaitPos(ctx, other), litestream.ErrGenerationChanged)

	done := make(chan error)
	go func() { done <- r.WaitPos(ctx, ahead) }()
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	mustErrorIs(t, <-done, litestream.ErrDBClosed)
}

func TestDB_SyncAndWaitServesTheGoodReplicaAndReportsTheOther(t *testing.T) {
	fx := &fixture{dir: t.TempDir()}
	fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
	fx.db.Logger = testLogger(t)
	good, bad := fx.addReplica(t, "good"), fx.addReplica(t, "bad")
	manually(fx.db)
	fx.host = openHost(t, fx.db.Path())
	mustExec(t, fx.host, `CREATE TABLE t (x)`)
	mustOpen(t, fx.db)
	mustSync(t, fx.db)

	bad.SetPlans(replicatest.FailAll(errInjected))
	fx.insert(t, "one of two")
	mustErrorIs(t, fx.db.SyncAndWait(ctx), errInjected)
	if n := countRows(t, mustRestore(t, good)); n != 1 {
		t.Errorf("good replica has %d rows, want 1", n)
	}
	stats := fx.db.Stats()
	if stats.Replicas[0].LastError != nil || !errors.Is(stats.Replicas[1].LastError, errInjected) {
		t.Errorf("last errors are %v and %v", stats.Replicas[0].LastError, stats.Replicas[1].LastError)
	}

	// One that hangs ends with the context, and does not hold up the other.
	hung := hangOn(bad, "Snapshots")
	fx.insert(t, "two of two")
	limited, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- fx.db.SyncAndWait(limited) }()
	<-hung
	eventually(t, 10*time.Second, "the good replica has the commit", func() bool {
		return fx.db.Replica("good").Pos() == fx.db.Pos()
	})
	cancel()
	mustErrorIs(t, <-done, context.Canceled)
	bad.SetPlans()
	mustSync(t, fx.db)
	mustEqualRestore(t, fx.db, bad)
}

func TestReplica_SnapshotBeforeTheFirstCapture(t *testing.T) {
	db := newDB(t, t.TempDir())
	mustOpen(t, db)
	_, err := db.Replicas[0].Snapshot(ctx)
	mustErrorIs(t, err, litestream.ErrNoGeneration)

	host := openHost(t, db.Path())
	mustExec(t, host, `CREATE TABLE t (x)`)
	mustSync(t, db)
	info, err := db.Replicas[0].Snapshot(ctx)
	if err != nil || info.Generation != db.Pos().Generation || info.Size <= 0 || info.CreatedAt.IsZero() {
		t.Errorf("snapshot %+v, error %v", info, err)
	}
}

func TestReplica_PositionIsReadFromTheClient(t *testing.T) {
	fx := newFixture(t)
	fx.insert(t, "two")
	mustSync(t, fx.db)
	pos := fx.db.Pos()
	fx.client.SetPlans()
	fx.reopen(t, manually) // another DB object, which knows nothing
	r := fx.db.Replica("file")
	if got := r.Pos(); !got.IsZero() {
		t.Errorf("replica is at %s before anyone looked", got)
	}
	mustSync(t, fx.db)
	if got := r.Pos(); got != pos {
		t.Errorf("replica is at %s, want %s", got, pos)
	}
	if n := fx.client.Calls("WriteSnapshot", "WriteWALSegment"); n != 0 {
		t.Errorf("%d writes of what the replica has", n)
	}
}

// forkReplica returns a fixture whose database was put back to an earlier
// state, while its replica has what followed: what lose did to the database.
// Then after was done to it.
func forkReplica(t *testing.T, lose, after func(fx *fixture)) *fixture {
	t.Helper()
	fx := newFixture(t)
	stop := func() {
		t.Helper()
		if err := errors.Join(fx.host.Close(), fx.db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	backup := t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(fx.dir)); err != nil {
		t.Fatal(err)
	}
	fx.host = openHost(t, fx.db.Path())
	fx.reopen(t)
	lose(fx)
	mustSync(t, fx.db)
	stop()

	if err := os.RemoveAll(filepath.Join(backup, "file")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(fx.dir, "file"), filepath.Join(backup, "file")); err != nil {
		t.Fatal(err)
	}
	fx.dir = backup
	fx.client.Unwrap().(*movableClient).ReplicaClient = fileclient.NewFileReplicaClient(filepath.Join(backup, "file"))
	fx.db = litestream.NewDB(filepath.Join(backup, "db"))
	fx.host = openHost(t, fx.db.Path())
	after(fx)
	fx.reopen(t)
	return fx
}

func TestReplica_AheadOfTheDatabaseBeginsANewGeneration(t *testing.T) {
	inserts := func(n int) func(fx *fixture) {
		return func(fx *fixture) {
			for i := range n {
				fx.insert(t, fmt.Sprint(fx.dir, i)) // other bytes on either side of the fork
			}
		}
	}
	restarts := func(fx *fixture) {
		if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			t.Fatal(err)
		}
		fx.insert(t, "next index")
	}
	for name, tt := range map[string]struct{ lose, after func(fx *fixture) }{
		"ahead":                          {inserts(2), inserts(0)},
		"ahead by an index":              {restarts, inserts(0)},
		"other frames at the same place": {inserts(2), inserts(2)},
		"behind other frames":            {inserts(2), inserts(9)},
	} {
		t.Run(name, func(t *testing.T) {
			fx := forkReplica(t, tt.lose, tt.after)
			mustSync(t, fx.db)
			fx.insert(t, "after the fork")
			fx.mustReplicate(t)
			generations, err := fx.client.Generations(ctx)
			if err != nil || len(generations) != 2 {
				t.Errorf("generations %v, error %v; want the old and the new", generations, err)
			}
		})
	}
}

func TestReplica_StopEndsARunningUploadAndLosesNothing(t *testing.T) {
	fx := newFixture(t, noInterval)
	r := fx.db.Replica("file")
	hung := hangOn(fx.client, "WriteWALSegment")
	fx.insert(t, "in a hanging upload")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	<-hung
	r.Stop()
	r.Stop()
	fx.client.SetPlans()
	fx.insert(t, "while stopped")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if n := fx.client.Calls(); n != 0 {
		t.Errorf("%d calls after Stop", n)
	}
	r.Start(ctx)
	r.Start(ctx) // does nothing
	eventually(t, 10*time.Second, "the replica is at the database's position", func() bool { return r.Pos() == fx.db.Pos() })
	mustEqualRestore(t, fx.db, fx.client)
}

func TestReplica_AccessorsAndDefaults(t *testing.T) {
	db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
	client := fileclient.NewFileReplicaClient(t.TempDir())
	named, unnamed := litestream.NewReplica(db, "name", client), litestream.NewReplica(db, "", client)
	if got := []string{named.Name(), unnamed.Name()}; !slices.Equal(got, []string{"name", "file"}) {
		t.Errorf("names %q", got)
	}
	if named.DB() != db || named.Client() != litestream.ReplicaClient(client) || !named.Pos().IsZero() {
		t.Error("the replica forgot what it was made of")
	}
	if named.SyncInterval != litestream.DefaultSyncInterval || named.Retention != litestream.DefaultRetention ||
		named.RetentionCheckInterval != litestream.DefaultRetentionCheckInterval || !named.MonitorEnabled {
		t.Errorf("defaults are %+v", named)
	}
	db.Replicas = []*litestream.Replica{named, unnamed}
	if db.Replica("name") != named || db.Replica("file") != unnamed || db.Replica("none") != nil {
		t.Error("DB.Replica does not find by name")
	}
}

// A newest segment that cannot be read must not stop the replica for ever.
func TestReplica_DamagedNewestSegmentIsReplacedByANewGeneration(t *testing.T) {
	fx := newFixture(t, manually)
	at := fx.db.Pos()
	fx.insertBlob(t, 50_000)
	mustSync(t, fx.db)
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	path, err := fx.client.Unwrap().(*movableClient).ReplicaClient.(*fileclient.FileReplicaClient).WALSegmentPath(at.Generation, at.Index, at.Offset)
	if err != nil {
		t.Fatal(err)
	}
	b := readFile(t, path)
	writeFile(t, path, b[:len(b)/2])

	fx.reopen(t, manually)
	if err := fx.db.SyncAndWait(ctx); err == nil {
		t.Error("the first sync took the damaged segment for good, or did not look")
	}
	mustSync(t, fx.db)
	if got := fx.db.Pos().Generation; got == at.Generation {
		t.Error("went on behind a damaged segment")
	}
	mustEqualRestore(t, fx.db, fx.client)
	if err := fx.client.DeleteGeneration(ctx, at.Generation); err != nil {
		t.Fatal(err)
	}
}

// An error says what failed, and on what, once, whether the client does or not.
func TestReplica_ErrorsSayOnceWhatFailed(t *testing.T) {
	fx := newFixture(t, manually)
	generation := fx.db.Pos().Generation
	for _, tt := range []struct {
		method, op, what string
		call             func() error
	}{
		{"Generations", "list generations", "", func() error {
			_, err := litestream.FindLatestGeneration(ctx, fx.client)
			return err
		}},
		{"Snapshots", "list snapshots", generation, func() error {
			_, err := litestream.FindMaxIndexByGeneration(ctx, fx.client, generation)
			return err
		}},
		{"WALSegments", "list wal segments", generation, func() error {
			_, err := litestream.FindMaxWALIndexByGeneration(ctx, fx.client, generation)
			return err
		}},
		{"WriteWALSegment", "write wal segment", generation, func() error {
			fx.insert(t, "x")
			return fx.db.SyncAndWait(ctx)
		}},
	} {
		for _, prefix := range []string{"", tt.op + " as told: "} {
			fx.client.SetPlans(replicatest.FailAll(fmt.Errorf("%s%w", prefix, errInjected), tt.method))
			err := tt.call()
			if !errors.Is(err, errInjected) || strings.Count(err.Error(), tt.op) != 1 || !strings.Contains(err.Error(), tt.what) {
				t.Errorf("%s: %v", tt.method, err)
			}
			fx.client.SetPlans()
		}
	}
}
