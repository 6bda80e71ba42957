package litestream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
	"example.com/litestream/replicatest"
)

func noInterval(db *litestream.DB) {
	for _, r := range db.Replicas {
		r.SyncInterval = 0
	}
}

// PITFALLS row 9
func TestPitfall_FailedUploadIsRetriedWithoutANewWrite(t *testing.T) {
	for _, method := range []string{"WriteWALSegment", "WriteSnapshot", "Snapshots", "WALSegments", "WALSegmentReader"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			fx := newFixture(t, noInterval)
			if method != "WriteWALSegment" {
				fx.reopen(t, noInterval, func(*litestream.DB) {
					if method == "WriteSnapshot" { // an empty replica needs one
						if err := os.RemoveAll(filepath.Join(fx.dir, "file")); err != nil {
							t.Fatal(err)
						}
					}
					fx.client.SetPlans(replicatest.FailNth(method, 1, errInjected))
				})
			} else {
				fx.client.SetPlans(replicatest.FailNth(method, 1, errInjected))
			}
			fx.insert(t, "the only write")
			r := fx.db.Replica("file")
			if err := fx.db.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, "the replica is at the database's position", func() bool { return r.Pos() == fx.db.Pos() })
			if n := fx.client.Calls(method); n < 2 {
				t.Errorf("%s was called %d times: the test made nothing fail", method, n)
			}
			eventually(t, 10*time.Second, "the error ends", func() bool { return fx.db.Stats().Replicas[0].LastError == nil })
			mustEqualRestore(t, fx.db, fx.client)
		})
	}
}

// PITFALLS row 10
func TestPitfall_IteratorErrorEndsTheIteratorAlone(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	generation := fx.db.Pos().Generation
	itr, err := fx.db.WALSegments(ctx, generation)
	if err != nil {
		t.Fatal(err)
	}
	defer itr.Close()
	if !itr.Next() {
		t.Fatalf("no segment: %v", itr.Err())
	}
	itr.SetErr(errInjected)
	fx.insert(t, "behind the error")
	mustSync(t, fx.db) // neither capture nor upload depends on the iterator
	if itr.Next() {
		t.Error("a failed iterator went on")
	}
	mustErrorIs(t, itr.Err(), errInjected)
	if err := itr.Append(itr.WALSegment()); !errors.Is(err, errInjected) {
		t.Errorf("append to a failed iterator: %v", err)
	}

	again, err := fx.db.WALSegments(ctx, generation)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	var end int
	for again.Next() {
		info := again.WALSegment()
		if err := again.Append(info); err != nil { // it has that one
			t.Fatal(err)
		}
		if end++; end > 2 {
			break
		}
	}
	if end != 2 || again.Err() != nil {
		t.Errorf("visited %d segments, error %v; want 2", end, again.Err())
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 10
func TestPitfall_ListingErrorIsReportedAndRecoveredFrom(t *testing.T) {
	for _, method := range []string{"Snapshots", "WALSegments"} {
		t.Run(method, func(t *testing.T) {
			fx := newFixture(t)
			fx.reopen(t, manually)
			fx.insert(t, "behind the listing")
			fx.client.SetPlans(replicatest.On(failIteration, method)) // the call succeeds, the iterator fails
			for range 2 {
				mustErrorIs(t, fx.db.SyncAndWait(ctx), errIteration)
			}
			mustErrorIs(t, fx.db.Stats().Replicas[0].LastError, errIteration)
			if n := fx.client.Calls("WriteSnapshot", "WriteWALSegment"); n != 0 {
				t.Errorf("%d writes without knowing what the replica holds", n)
			}
			fx.client.SetPlans()
			mustSync(t, fx.db)
			if n := fx.client.Calls("WriteSnapshot"); n != 0 {
				t.Errorf("%d snapshots, want the segments continued", n)
			}
			mustEqualRestore(t, fx.db, fx.client)
		})
	}
}

// PITFALLS row 11
func TestPitfall_ClientThatReturnsUnreadLeavesNothingBehind(t *testing.T) {
	fx := newFixture(t, manually)
	fx.insertBlob(t, 1<<20)
	before := runtime.NumGoroutine()

	fx.client.SetPlans(replicatest.FailAll(errInjected, "WriteWALSegment"))
	for range 5 {
		mustErrorIs(t, fx.db.SyncAndWait(ctx), errInjected)
	}
	goroutinesSettle(t, before)

	fx.client.SetPlans()
	mustSync(t, fx.db)
	fx.insertBlob(t, 5<<20) // more than the spool holds in memory
	fx.nextIndex(t)
	fx.client.SetPlans(replicatest.FailAll(errInjected, "WriteSnapshot"))
	for range 5 {
		_, err := fx.db.Replica("file").Snapshot(ctx)
		mustErrorIs(t, err, errInjected)
	}
	goroutinesSettle(t, before)
	if names := tempFiles(t, fx.dir); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}

	fx.client.SetPlans()
	fx.mustReplicate(t)
}

// lyingClient takes no byte of what it says that it stored.
type lyingClient struct {
	litestream.ReplicaClient
	method string
}

func (c lyingClient) WriteSnapshot(_ context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	if c.method != "WriteSnapshot" {
		return c.ReplicaClient.WriteSnapshot(ctx, generation, index, r)
	}
	_, err := io.CopyN(io.Discard, r, 1)
	return litestream.SnapshotInfo{Generation: generation, Index: index}, err
}

func (c lyingClient) WriteWALSegment(_ context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
	if c.method != "WriteWALSegment" {
		return c.ReplicaClient.WriteWALSegment(ctx, pos, r)
	}
	_, err := io.CopyN(io.Discard, r, 1)
	return litestream.WALSegmentInfo{Generation: pos.Generation, Index: pos.Index, Offset: pos.Offset}, err
}

// PITFALLS row 12
func TestPitfall_WhatTheClientDidNotReadIsNotTakenForStored(t *testing.T) {
	for _, method := range []string{"WriteWALSegment", "WriteSnapshot"} {
		t.Run(method, func(t *testing.T) {
			db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
			db.Logger = testLogger(t)
			r := litestream.NewReplica(db, "lying", lyingClient{fileclient.NewFileReplicaClient(t.TempDir()), method})
			r.Logger = db.Logger
			r.MonitorEnabled = false
			db.Replicas = []*litestream.Replica{r}
			checkAtEnd(t, db)
			host := openHost(t, db.Path())
			mustExec(t, host, `CREATE TABLE t (x)`)
			mustOpen(t, db)
			if err := db.SyncAndWait(ctx); err == nil || !r.Pos().IsZero() {
				t.Errorf("sync: %v; the replica is said to be at %s", err, r.Pos())
			}
			if err := db.Close(); err == nil {
				t.Error("close succeeded though nothing was stored")
			}
		})
	}
}

// PITFALLS row 12
func TestPitfall_DamagedShadowSegmentIsNoSuccess(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"truncated": func(t *testing.T, path string) {
			b := readFile(t, path)
			writeFile(t, path, b[:len(b)/2])
		},
		"emptied":   func(t *testing.T, path string) { writeFile(t, path, nil) },
		"cut short": func(t *testing.T, path string) { b := readFile(t, path); writeFile(t, path, b[:len(b)-1]) },
		"removed": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			fx := newFixture(t, manually)
			at := fx.db.Pos()
			fx.insertBlob(t, 10000)
			if err := fx.db.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(fx.db.ShadowWALDir(at.Generation), litestream.FormatIndex(at.Index),
				litestream.FormatOffset(at.Offset)+litestream.WALSegmentExt)
			damage(t, path)
			fx.insert(t, "after the damage")

			if err := fx.db.SyncAndWait(ctx); err != nil {
				t.Errorf("sync does not heal: %v", err)
			}
			if got := fx.db.Pos().Generation; got == at.Generation {
				t.Error("went on in a generation whose captured wal is damaged")
			}
			mustEqualRestore(t, fx.db, fx.client)
		})
	}
}

// PITFALLS row 12
func TestPitfall_ShadowSegmentTornByAPowerLossIsNotUploaded(t *testing.T) {
	fx := newFixture(t, manually)
	at := fx.db.Pos()
	fx.insertBlob(t, 100_000)
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	fx.insert(t, "the end of the index, which resuming looks at")
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	fx.insert(t, "a later index, which it looks at, too")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	mustErrorIs(t, fx.db.Shutdown(ended), context.Canceled) // nothing is uploaded

	path := filepath.Join(fx.db.ShadowWALDir(at.Generation), litestream.FormatIndex(at.Index),
		litestream.FormatOffset(at.Offset)+litestream.WALSegmentExt)
	b := readFile(t, path)
	clear(b[len(b)/2 : len(b)/2+4096])
	writeFile(t, path, b)

	fx.reopen(t, manually)
	if got := fx.db.Pos().Generation; got != at.Generation {
		t.Fatalf("generation %s, want %s: the test does not resume", got, at.Generation)
	}
	mustSync(t, fx.db)
	if got := fx.db.Pos().Generation; got == at.Generation {
		t.Error("went on in a generation whose captured wal is torn")
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 16
func TestPitfall_LaggingReplicaIsNotPrunedAway(t *testing.T) {
	fx := &fixture{dir: t.TempDir()}
	fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
	fx.db.Logger = testLogger(t)
	fx.db.ShadowRetentionN = 2
	good, bad := fx.addReplica(t, "good"), fx.addReplica(t, "bad")
	manually(fx.db)
	fx.host = openHost(t, fx.db.Path())
	mustExec(t, fx.host, `CREATE TABLE t (x)`)
	mustOpen(t, fx.db)
	mustSync(t, fx.db)
	generation := fx.db.Pos().Generation

	bad.SetPlans(replicatest.FailAll(errInjected))
	for range 8 {
		fx.insertBlob(t, 5000)
		if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			t.Fatal(err)
		}
		fx.insertBlob(t, 5000)
		mustErrorIs(t, fx.db.SyncAndWait(ctx), errInjected)
		if fx.db.Replica("good").Pos() != fx.db.Pos() {
			t.Fatal("the failing replica holds the other one up")
		}
	}
	if pos := fx.db.Pos(); pos.Generation != generation || pos.Index < 8 {
		t.Fatalf("position is %s, want index 8 or more of %s", pos, generation)
	}
	if n := shadowIndexes(t, fx.db); n < 8 {
		t.Errorf("%d indexes are left for the failing replica", n)
	}

	bad.SetPlans()
	mustSync(t, fx.db)
	if n := bad.Calls("WriteSnapshot"); n != 0 {
		t.Errorf("%d snapshots, though nothing was pruned", n)
	}
	fx.insertBlob(t, 10)
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	fx.insertBlob(t, 10)
	mustSync(t, fx.db)
	if n := shadowIndexes(t, fx.db); n > 3 {
		t.Errorf("%d indexes are kept that nobody needs", n)
	}
	mustEqualRestore(t, fx.db, good)
	mustEqualRestore(t, fx.db, bad)
}

// A replica that has all of one index and nothing of the next is found again
// by the last frame that it has: until it has a frame of the next index, that
// one is needed.
//
// PITFALLS row 16
func TestPitfall_IndexOfTheReplicasLastFrameIsNotPruned(t *testing.T) {
	fx := newFixture(t, manually, func(db *litestream.DB) { db.ShadowRetentionN = 1 })
	nextIndex := func() {
		t.Helper()
		if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			t.Fatal(err)
		}
		fx.insertBlob(t, 5000)
		if err := fx.db.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	fx.client.SetPlans()
	nextIndex()
	fx.client.SetPlans(replicatest.FailAll(errInjected, "WriteWALSegment"))
	mustErrorIs(t, fx.db.SyncAndWait(ctx), errInjected)
	nextIndex()
	nextIndex()
	fx.client.SetPlans()
	mustSync(t, fx.db)
	if n := fx.client.Calls("WriteSnapshot"); n != 0 {
		t.Errorf("%d snapshots, though nothing was missing", n)
	}
	fx.mustReplicate(t)
	nextIndex() // prunes
	if n := shadowIndexes(t, fx.db); n > 3 {
		t.Errorf("%d indexes are kept that nobody needs", n)
	}
}

// A generation that begins while a snapshot is asked for has nothing to be
// restored from until that snapshot is written: if it fails, the next sync makes
// another.
//
// PITFALLS row 7
func TestPitfall_FailedFirstSnapshotIsMadeUpFor(t *testing.T) {
	fx := newFixture(t, manually)
	fx.db.StopMonitor() // it would notice that the pin is gone
	old := fx.db.Pos().Generation
	again, err := fx.db.ReleasePin()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // nobody can prove what was in between
		mustExec(t, fx.host, `PRAGMA wal_checkpoint(TRUNCATE)`)
		fx.insertBlob(t, 5000)
	}
	if err := again(); err != nil {
		t.Fatal(err)
	}
	fx.client.SetPlans(replicatest.FailNth("WriteSnapshot", 1, errInjected))
	_, err = fx.db.Replicas[0].Snapshot(ctx)
	mustErrorIs(t, err, errInjected)
	if fx.db.Pos().Generation == old {
		t.Fatal("no new generation began")
	}
	fx.client.SetPlans()
	mustSync(t, fx.db)
	fx.mustReplicate(t)
}

// A power loss that tears the captured segment at which a lagging replica
// stands costs a new generation, and does not stop the replica for good.
//
// PITFALLS row 9
func TestPitfall_TornSegmentAtTheReplicasPositionIsNoStandstill(t *testing.T) {
	fx := newFixture(t, manually)
	fx.insertBlob(t, 5000)
	mustSync(t, fx.db)
	at := fx.db.Pos()
	fx.client.SetPlans(replicatest.FailAll(errInjected, "WriteWALSegment"))
	fx.insertBlob(t, 5000)
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	fx.insertBlob(t, 5000)
	mustErrorIs(t, fx.db.SyncAndWait(ctx), errInjected)
	mustErrorIs(t, fx.db.Close(), errInjected)
	fx.client.SetPlans()
	dir := filepath.Join(fx.db.ShadowWALDir(at.Generation), litestream.FormatIndex(at.Index))
	names, err := filepath.Glob(filepath.Join(dir, "*"+litestream.WALSegmentExt))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	last := "" // whose end is the replica's position
	for _, name := range names {
		if filepath.Base(name) < litestream.FormatOffset(at.Offset) {
			last = name
		}
	}
	info, err := os.Stat(last)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(last, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, fx.db)
	mustSync(t, fx.db)
	fx.mustReplicate(t)
}

// PITFALLS row 36
func TestPitfall_FullDiskHarmsNeitherHostNorReplica(t *testing.T) {
	for _, short := range []bool{false, true} {
		names := []string{faultfs.Create, faultfs.Write, faultfs.Mkdir, faultfs.Rename}
		if short {
			names = []string{faultfs.Write}
		}
		for n, more := 1, true; more; n++ {
			more = false
			t.Run(fmt.Sprintf("short=%v/%d", short, n), func(t *testing.T) {
				fx := &fixture{dir: t.TempDir()}
				fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
				fx.db.Logger = testLogger(t)
				full := faultfs.New(fsys.OS)
				fx.db.SetFS(full)
				fx.client = fx.addReplica(t, "file")
				manually(fx.db)
				fx.host = openHost(t, fx.db.Path())
				mustExec(t, fx.host, `CREATE TABLE t (x)`)

				writes := 0
				full.SetHook(func(op faultfs.Op) error {
					if !slices.Contains(names, op.Name) {
						return nil
					}
					if writes++; writes < n { // the hook's calls are serial here
						return nil
					}
					if short {
						return faultfs.ShortWrite
					}
					return faultfs.ENOSPC
				})
				err := fx.db.Open()
				if err != nil {
					mustErrorIs(t, err, syscall.ENOSPC)
				} else {
					fx.db.StopMonitor()
					for range 2 {
						fx.insertBlob(t, 5000) // the host does not notice
						if serr := fx.db.Sync(ctx); serr != nil {
							err = serr
						}
						if cerr := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); cerr != nil {
							err = cerr
						}
					}
					if err != nil {
						mustErrorIs(t, err, syscall.ENOSPC)
					}
				}
				if _, more = full.Fault(); more != (err != nil) {
					t.Errorf("a write failed: %v; error: %v", more, err)
				}
				full.Reset() // there is space again
				if names := tempFiles(t, fx.dir); len(names) > 0 {
					t.Errorf("left behind: %v", names)
				}
				if err := fx.db.Open(); err != nil && !strings.Contains(err.Error(), "already open") {
					t.Fatal(err)
				}
				fx.insertBlob(t, 5000)
				fx.mustReplicate(t)
			})
		}
	}
}

// PITFALLS row 42
func TestPitfall_IdleDatabasesAskTheReplicaNothing(t *testing.T) {
	t.Parallel()
	// All settings are the defaults. Retention lists the replica on its own
	// schedule, whether the database is idle or not: the first time within two
	// minutes of the start, here at the end of them.
	late := func(limit time.Duration) time.Duration {
		if limit < time.Minute {
			t.Errorf("retention is enforced first within %s", limit)
		}
		return limit
	}
	var all []*fixture
	for range 5 {
		all = append(all, newFixture(t, func(db *litestream.DB) { litestream.SetJitter(db.Replicas[0], late) }))
	}
	// A replica at the DB's position has nothing to ask for: a sync that its run
	// loop begins only now makes no call.
	for _, fx := range all {
		r := fx.db.Replica("file")
		eventually(t, 10*time.Second, "the replica rests", func() bool { return r.Pos() == fx.db.Pos() })
	}
	for _, fx := range all {
		fx.client.SetPlans() // count from 0
	}
	pass(idleTime())
	for _, fx := range all {
		if n := fx.client.Calls(); n > 0 {
			t.Errorf("%d calls while idle", n)
		}
	}
	all[0].insert(t, "still alive")
	eventually(t, 10*time.Second, "an upload", func() bool { return all[0].client.Calls("WriteWALSegment") > 0 })
}

// idleTime is for how long tests watch that nothing happens.
func idleTime() time.Duration {
	if testing.Short() {
		return 1 * time.Second
	}
	return 3 * time.Second
}
