package litestream_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

// restartWAL commits, has the whole WAL backfilled by the host, and commits
// again, which restarts the WAL unless somebody pins it.
func restartWAL(t testing.TB, host *sql.DB) {
	t.Helper()
	var busy, frames, backfilled int
	if err := host.QueryRow(`PRAGMA wal_checkpoint(RESTART)`).Scan(&busy, &frames, &backfilled); err != nil {
		t.Fatal(err)
	}
	if busy != 0 || frames != backfilled {
		t.Fatalf("host's checkpoint is not complete: %d %d %d", busy, frames, backfilled)
	}
	mustExec(t, host, `INSERT INTO t VALUES (randomblob(100))`)
}

// walSalt1 returns the first salt of the WAL on disk.
func walSalt1(t testing.TB, db *litestream.DB) uint32 {
	t.Helper()
	return binary.BigEndian.Uint32(readFile(t, db.WALPath())[16:])
}

// PITFALLS row 5
func TestPitfall_TwoWALRestartsDoNotPassForOne(t *testing.T) {
	for _, restarts := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(restarts), func(t *testing.T) {
			fx := newFixture(t)
			fx.db.StopMonitor()
			mustSync(t, fx.db)
			before, salt := fx.db.Pos(), walSalt1(t, fx.db)
			again, err := fx.db.ReleasePin()
			if err != nil {
				t.Fatal(err)
			}
			for range restarts {
				restartWAL(t, fx.host)
			}
			if err := again(); err != nil {
				t.Fatal(err)
			}
			if got, want := walSalt1(t, fx.db), salt+uint32(restarts); got != want {
				t.Fatalf("salt is %d, want %d: the test does not restart the WAL", got, want)
			}
			mustSync(t, fx.db)
			after := fx.db.Pos()
			switch {
			case restarts == 1 && (after.Generation != before.Generation || after.Index != before.Index+1):
				t.Errorf("one restart led from %s to %s, want the next index", before, after)
			case restarts > 1 && after.Generation == before.Generation:
				t.Errorf("%d restarts led from %s to %s, want a new generation", restarts, before, after)
			}
			mustEqualRestore(t, fx.db, fx.client)
		})
	}
}

// PITFALLS row 5
func TestPitfall_LostPinBeginsANewGeneration(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	before := fx.db.Pos()
	if _, err := fx.db.ReleasePin(); err != nil {
		t.Fatal(err)
	}
	restartWAL(t, fx.host)
	restartWAL(t, fx.host)
	mustSync(t, fx.db)
	if after := fx.db.Pos(); after.Generation == before.Generation {
		t.Errorf("from %s to %s without a new generation", before, after)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 6
func TestPitfall_OneRestartUnderReadMarkZeroLosesNothing(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	before := fx.db.Pos()
	// All is backfilled, and the pin moves to the end: read mark 0.
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeFull); err != nil {
		t.Fatal(err)
	}
	salt := walSalt1(t, fx.db)
	for range 3 { // restarts the WAL, then grows it
		fx.insert(t, "behind the restart")
	}
	if got := walSalt1(t, fx.db); got != salt+1 {
		t.Fatalf("salt went from %d to %d: the WAL did not restart under the pin", salt, got)
	}
	// The host cannot backfill what is not captured, let alone overwrite it.
	var busy, frames, backfilled int
	if err := fx.host.QueryRow(`PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &frames, &backfilled); err != nil {
		t.Fatal(err)
	}
	if frames == 0 || backfilled != 0 {
		t.Errorf("host backfilled %d frames of %d that were not captured", backfilled, frames)
	}
	fx.insert(t, "more")
	if got := walSalt1(t, fx.db); got != salt+1 {
		t.Fatalf("the WAL restarted twice under one pin")
	}
	mustSync(t, fx.db)
	if after := fx.db.Pos(); after.Generation != before.Generation || after.Index != before.Index+1 {
		t.Errorf("from %s to %s, want the next index", before, after)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 8
func TestPitfall_TornFrameInTheMiddleBeginsANewGeneration(t *testing.T) {
	for _, hostFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("hostFirst=%v", hostFirst), func(t *testing.T) {
			fx := newFixture(t)
			for range 20 {
				fx.insertBlob(t, 3000)
			}
			mustSync(t, fx.db)
			if err := fx.host.Close(); err != nil {
				t.Fatal(err)
			}
			if err := fx.db.Close(); err != nil {
				t.Fatal(err)
			}
			before := fx.db.Pos()

			wal := readFile(t, fx.db.WALPath())
			frame := int64(24 + fx.db.PageSize())
			frames := (before.Offset - 32) / frame
			torn := 32 + frames/2*frame
			clear(wal[torn : torn+frame])
			writeFile(t, fx.db.WALPath(), wal)

			if hostFirst {
				fx.host = openHost(t, fx.db.Path())
				fx.insert(t, "after the power loss")
			}
			fx.reopen(t, manually)
			if !hostFirst {
				fx.host = openHost(t, fx.db.Path())
				fx.insert(t, "after the power loss")
			}
			// The database notices by itself, without looking at a replica.
			if err := fx.db.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if after := fx.db.Pos(); after.Generation == before.Generation {
				t.Errorf("from %s to %s without a new generation", before, after)
			}
			fx.mustReplicate(t)
		})
	}
}

// PITFALLS row 18
func TestPitfall_RemovedWALIsNoticed(t *testing.T) {
	for _, names := range [][]string{{"-wal"}, {"-wal", "-shm"}} {
		t.Run(strings.Join(names, ""), func(t *testing.T) {
			fx := newFixture(t)
			fx.db.StopMonitor()
			before := fx.db.Pos()
			if err := fx.host.Close(); err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := os.Remove(fx.db.Path() + name); err != nil {
					t.Fatal(err)
				}
			}
			if err := fx.db.Sync(ctx); err != nil { // as the monitor does at once
				t.Fatal(err)
			}
			fx.host = openHost(t, fx.db.Path())
			mustExec(t, fx.host, `CREATE TABLE IF NOT EXISTS t (x)`)
			fx.insert(t, "into the new wal")
			mustSync(t, fx.db)
			if after := fx.db.Pos(); after.Generation == before.Generation {
				t.Errorf("from %s to %s without a new generation", before, after)
			}
			mustEqualRestore(t, fx.db, fx.client)
		})
	}
}

// PITFALLS row 18
func TestPitfall_RemovedWALIsNoticedByTheMonitor(t *testing.T) {
	fx := newFixture(t)
	before := fx.db.Pos()
	if err := fx.host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(fx.db.WALPath()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "a new generation", func() bool {
		return fx.db.Pos().Generation != before.Generation
	})
}

// replacement returns the path of another database, with n rows, that nobody
// has open.
func replacement(t testing.TB, dir string, n int) string {
	t.Helper()
	path := filepath.Join(dir, "other")
	host := openHost(t, path)
	mustExec(t, host, `CREATE TABLE t (x)`)
	for range n {
		mustExec(t, host, `INSERT INTO t VALUES ('other')`)
	}
	if err := host.Close(); err != nil { // checkpoints, and removes the -wal
		t.Fatal(err)
	}
	return path
}

// PITFALLS row 19
func TestPitfall_DatabaseRenamedOverIsATypedError(t *testing.T) {
	t.Run("noticed before the host goes on", func(t *testing.T) { testRenamedOver(t, true) })
	// File systems like to give the new WAL the inode number of the old one.
	t.Run("noticed when it has gone on", func(t *testing.T) { testRenamedOver(t, false) })
}

func testRenamedOver(t *testing.T, noticed bool) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	before := fx.db.Pos()
	fx.insert(t, "in the old wal")
	other := replacement(t, fx.dir, 7)
	want := readFile(t, other)
	if err := fx.host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, fx.db.Path()); err != nil {
		t.Fatal(err)
	}

	for range 3 {
		mustErrorIs(t, fx.db.Sync(ctx), litestream.ErrDatabaseReplaced)
	}
	// The parked descriptor is the only one that this process opens of it (I8).
	if got := readDatabase(t, fx.db); string(got) != string(want) {
		t.Fatal("the new file was changed: the old wal was replayed into it")
	}
	if pos := fx.db.Pos(); pos != before {
		t.Errorf("position moved from %s to %s without a database", before, pos)
	}

	if err := os.Remove(fx.db.WALPath()); err != nil {
		t.Fatal(err)
	}
	if noticed {
		mustSync(t, fx.db)
	}
	fx.host = openHost(t, fx.db.Path())
	fx.insert(t, "into the new database")
	mustSync(t, fx.db)
	if after := fx.db.Pos(); after.Generation == before.Generation {
		t.Errorf("from %s to %s without a new generation", before, after)
	}
	if n := countRows(t, mustRestore(t, fx.client)); n != 8 {
		t.Errorf("restored %d rows, want 8", n)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 19
func TestPitfall_DeletedDatabaseIsATypedError(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	before := fx.db.Pos()
	if err := fx.host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(fx.db.Path()); err != nil {
		t.Fatal(err)
	}
	mustErrorIs(t, fx.db.Sync(ctx), litestream.ErrDatabaseReplaced)
	mustErrorIs(t, fx.db.Sync(ctx), litestream.ErrDatabaseReplaced)
	if _, err := os.Stat(fx.db.Path()); !os.IsNotExist(err) {
		t.Fatalf("the database was created again: %v", err)
	}
	for _, name := range []string{"-wal", "-shm"} {
		if err := os.Remove(fx.db.Path() + name); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	mustErrorIs(t, fx.db.Sync(ctx), litestream.ErrDatabaseReplaced)

	fx.host = openHost(t, fx.db.Path())
	mustExec(t, fx.host, `CREATE TABLE t (x)`)
	mustSync(t, fx.db)
	if after := fx.db.Pos(); after.Generation == before.Generation {
		t.Errorf("from %s to %s without a new generation", before, after)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 31
func TestPitfall_RolledBackSpillHidesNoCommit(t *testing.T) {
	fx := newFixture(t)
	fx.host.SetMaxOpenConns(1)
	mustExec(t, fx.host, `PRAGMA cache_size=5`)
	for _, size := range []int{100, 3 << 10} {
		before, err := os.Stat(fx.db.WALPath())
		if err != nil {
			t.Fatal(err)
		}
		tx, err := fx.host.Begin()
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			if _, err := tx.Exec(`INSERT INTO t VALUES (randomblob(4000))`); err != nil {
				t.Fatal(err)
			}
		}
		spilled, err := os.Stat(fx.db.WALPath())
		if err != nil {
			t.Fatal(err)
		}
		if spilled.Size() < before.Size()+1<<20 && size == 100 {
			t.Fatalf("wal has %d bytes: the test does not spill", spilled.Size())
		}
		at := fx.db.Pos()
		mustSync(t, fx.db) // sees the frames
		if got := fx.db.Pos(); got != at {
			t.Errorf("position moved from %s to %s without a commit", at, got)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		fx.insertBlob(t, size) // no change of the WAL's size
		mustSync(t, fx.db)
		if got := fx.db.Pos(); got == at {
			t.Errorf("the commit behind a rolled back transaction was not captured")
		}
	}
	if n := countRows(t, mustRestore(t, fx.client)); n != 3 {
		t.Errorf("restored %d rows, want 3", n)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 34
func TestPitfall_CancelledContextKeepsThePin(t *testing.T) {
	dir := t.TempDir()
	db := newDB(t, dir)
	mustOpen(t, db)
	db.StopMonitor()
	host := openHost(t, db.Path())
	mustExec(t, host, `CREATE TABLE t (x)`)

	first, cancel := context.WithCancel(ctx)
	if err := db.Sync(first); err != nil {
		t.Fatal(err)
	}
	cancel()
	before := db.Pos()
	for range 3 {
		mustExec(t, host, `INSERT INTO t VALUES (randomblob(100))`)
		var busy, frames, backfilled int
		if err := host.QueryRow(`PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &frames, &backfilled); err != nil {
			t.Fatal(err)
		}
		if backfilled == frames {
			t.Fatalf("the host backfilled all of %d frames: the pin is gone", frames)
		}
		mustErrorIs(t, db.Sync(first), context.Canceled)
		mustErrorIs(t, db.Checkpoint(first, litestream.CheckpointModeTruncate), context.Canceled)
	}
	mustSync(t, db)
	if after := db.Pos(); after.Truncate() != before.Truncate() {
		t.Errorf("from %s to %s, want the same index", before, after)
	}
	mustEqualRestore(t, db, db.Replicas[0].Client())
}

// PITFALLS row 38
func TestPitfall_PageSizeChangedWhileClosed(t *testing.T) {
	fx := newFixture(t)
	before, size := fx.db.Pos(), fx.db.PageSize()
	if err := fx.host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	func() { // the page size changes with VACUUM, outside WAL mode
		host := openHost(t, fx.db.Path())
		defer host.Close()
		host.SetMaxOpenConns(1)
		mustExec(t, host, `PRAGMA journal_mode=DELETE`)
		mustExec(t, host, `PRAGMA page_size=16384`)
		mustExec(t, host, `VACUUM`)
	}()
	fx.host = openHost(t, fx.db.Path())
	fx.insert(t, "a large page")
	fx.reopen(t)
	mustSync(t, fx.db)
	if size != 4096 || fx.db.PageSize() != 16384 {
		t.Errorf("page size %d, then %d, want 4096, then 16384", size, fx.db.PageSize())
	}
	if after := fx.db.Pos(); after.Generation == before.Generation {
		t.Errorf("from %s to %s without a new generation", before, after)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 38
func TestPitfall_JournalModeChangedWhileClosed(t *testing.T) {
	fx := newFixture(t)
	before := fx.db.Pos()
	if err := fx.host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	setMode := func(mode string) {
		t.Helper()
		host, err := sql.Open("sqlite", "file:"+fx.db.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		host.SetMaxOpenConns(1)
		mustExec(t, host, `PRAGMA journal_mode=`+mode)
		mustExec(t, host, `INSERT INTO t VALUES ('in mode `+mode+`')`)
	}
	setMode("DELETE")
	fx.reopen(t)
	fx.db.StopMonitor()
	mustErrorIs(t, fx.db.Sync(ctx), litestream.ErrNotWAL)
	mustErrorIs(t, fx.db.SyncAndWait(ctx), litestream.ErrNotWAL)
	if n := countRows(t, mustRestore(t, fx.client)); n != 1 {
		t.Errorf("restored %d rows, want the 1 of before", n)
	}
	setMode("WAL")
	fx.host = openHost(t, fx.db.Path())
	fx.insert(t, "in WAL mode again")
	mustSync(t, fx.db)
	if after := fx.db.Pos(); after.Generation == before.Generation {
		t.Errorf("from %s to %s without a new generation", before, after)
	}
	if n := countRows(t, mustRestore(t, fx.client)); n != 4 {
		t.Errorf("restored %d rows, want 4", n)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 38
func TestPitfall_JournalModeIsATypedError(t *testing.T) {
	db := newDB(t, t.TempDir())
	host, err := sql.Open("sqlite", "file:"+db.Path()+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	host.SetMaxOpenConns(1)
	mustExec(t, host, `CREATE TABLE t (x)`) // rollback journal

	mustOpen(t, db) // logs, and tries again
	mustErrorIs(t, db.Sync(ctx), litestream.ErrNotWAL)
	mustErrorIs(t, db.SyncAndWait(ctx), litestream.ErrNotWAL)
	mustErrorIs(t, db.Stats().LastError, litestream.ErrNotWAL)

	mustExec(t, host, `PRAGMA journal_mode=WAL`)
	mustExec(t, host, `INSERT INTO t VALUES (1)`)
	mustSync(t, db)
	eventually(t, 10*time.Second, "the error ends", func() bool { return db.Stats().LastError == nil })
	mustEqualRestore(t, db, db.Replicas[0].Client())
}

// PITFALLS row 40
func TestPitfall_LastIndexBeginsANewGeneration(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	before := fx.db.Pos()
	if before.Index != 0 {
		t.Fatalf("position is %s, want index 0", before)
	}
	// As if the WAL had restarted two thousand million times.
	dir := fx.db.ShadowWALDir(before.Generation)
	last := filepath.Join(dir, litestream.FormatIndex(litestream.MaxIndex-1))
	if err := os.Rename(filepath.Join(dir, litestream.FormatIndex(0)), last); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(fx.dir, "file")); err != nil {
		t.Fatal(err)
	}
	fx.reopen(t)
	fx.db.StopMonitor()
	mustSync(t, fx.db)
	if pos := fx.db.Pos(); pos.Generation != before.Generation || pos.Index != litestream.MaxIndex-1 {
		t.Fatalf("position is %s, want index %d of %s", pos, litestream.MaxIndex-1, before.Generation)
	}
	for i, want := range []int{litestream.MaxIndex, 0, 1} {
		if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			t.Fatal(err)
		}
		fx.insert(t, "next index")
		mustSync(t, fx.db)
		if pos := fx.db.Pos(); pos.Index != want {
			t.Fatalf("position is %s, want index %d", pos, want)
		}
		if n := countRows(t, mustRestore(t, fx.client)); n != i+2 {
			t.Errorf("restored %d rows, want %d", n, i+2)
		}
	}
	if after := fx.db.Pos(); after.Generation == before.Generation {
		t.Errorf("position is %s, want a new generation", after)
	}
	if _, err := os.Stat(last); !os.IsNotExist(err) {
		t.Errorf("the old generation is still there: %v", err)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// The shadow WAL is not synced: a power loss may take a segment and leave
// those that were written after it. The last one of an index leaves no gap
// between segments.
//
// PITFALLS row 8
func TestPitfall_LostEndOfAnIndexIsNoticed(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("lost=%v", lost), func(t *testing.T) {
			fx := newFixture(t, manually)
			fx.client.SetPlans(replicatest.FailAll(errInjected))
			for range 3 { // the replica has none of them
				fx.insertBlob(t, 5000)
				if err := fx.db.Sync(ctx); err != nil {
					t.Fatal(err)
				}
			}
			end := fx.db.Pos()
			if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
			fx.insertBlob(t, 5000)
			if err := fx.db.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if pos := fx.db.Pos(); pos.Index != end.Index+1 || pos.Generation != end.Generation {
				t.Fatalf("position is %s, want the index after %s", pos, end)
			}
			mustErrorIs(t, fx.db.Close(), errInjected)
			if lost {
				segments, err := filepath.Glob(filepath.Join(fx.db.ShadowWALDir(end.Generation), litestream.FormatIndex(end.Index), "*"))
				if err != nil || len(segments) < 3 {
					t.Fatalf("%d segments, error %v", len(segments), err)
				}
				if err := os.Remove(segments[len(segments)-1]); err != nil {
					t.Fatal(err)
				}
			}
			fx.client.SetPlans()
			fx.reopen(t, manually)
			fx.mustReplicate(t)
			if n := fx.client.Calls("WriteSnapshot"); n != 0 != lost {
				t.Errorf("%d snapshots since the power loss", n)
			}
			if pos := fx.db.Pos(); pos.Generation != end.Generation != lost {
				t.Errorf("position is %s, was in generation %s", pos, end.Generation)
			}
		})
	}
}
