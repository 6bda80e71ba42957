package litestream

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"
)

// PITFALLS row 33
func TestPitfall_PragmasHoldOnEveryConnection(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "db")
	host, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Exec(`CREATE TABLE t (x)`); err != nil {
		t.Fatal(err)
	}
	pool, err := openSQL(path)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for range 3 { // all at once, so that no connection is used again
		c, err := openConn(ctx, pool)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for name, want := range map[string]int{"busy_timeout": 0, "wal_autocheckpoint": 0} {
			var got int
			if err := c.c.row(ctx, "PRAGMA "+name, &got); err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("%s is %d, want %d", name, got, want)
			}
		}
		if got, err := c.c.c.FileControlPersistWAL("main", -1); err != nil || got != 1 {
			t.Errorf("persist wal is %d, %v, want 1", got, err)
		}
	}
}

// newSpillingHost returns a host with one connection, whose large transactions
// reach the WAL before they commit, and a DB of it that is not open.
func newSpillingHost(t testing.TB) (*sql.DB, *DB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	host := restoreOpenSQLite(t, path)
	host.SetMaxOpenConns(1)
	for _, q := range []string{"PRAGMA journal_mode=WAL", "PRAGMA cache_size=10", "CREATE TABLE t (x)"} {
		if _, err := host.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	db := NewDB(path)
	db.Logger = nil
	return host, db
}

// The monitor paces itself by captures that find no commit, so that a large
// open transaction is not read over and over.
func TestFruitlessCapturesAreMeasured(t *testing.T) {
	host, db := newSpillingHost(t)
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	defer closeAndCheck(t, db)
	tx, err := host.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for range 30 { // spills, since the cache is small
		if _, err := tx.Exec("INSERT INTO t VALUES (randomblob(100000))"); err != nil {
			t.Fatal(err)
		}
	}
	before := db.Pos()
	if err := db.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if db.Pos() != before || db.fruitless() == 0 {
		t.Errorf("position %s after %s, fruitless for %s: want a capture without a commit", db.Pos(), before, db.fruitless())
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := db.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if db.Pos() == before {
		t.Error("the commit was not captured")
	}
}

// A burst ends the wait for a capture that nobody could use.
func TestWALAheadSeesABurst(t *testing.T) {
	host, db := newSpillingHost(t)
	db.MonitorDelayInterval = time.Hour
	db.MinCheckpointPageN = 100
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	defer closeAndCheck(t, db)
	mustBe := func(want bool, when string) {
		t.Helper()
		if got := db.walAhead(); got != want {
			t.Errorf("%s: %t, want %t", when, got, want)
		}
	}
	if err := db.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustBe(false, "captured")
	if _, err := host.Exec("INSERT INTO t VALUES (randomblob(90*4096))"); err != nil {
		t.Fatal(err)
	}
	mustBe(false, "a commit of some 90 pages")
	if _, err := host.Exec("INSERT INTO t VALUES (randomblob(90*4096))"); err != nil {
		t.Fatal(err)
	}
	mustBe(true, "180 pages")
	db.count.fruitless.Store(int64(time.Second))
	mustBe(false, "pages of a large transaction that is open")
	db.count.fruitless.Store(int64(time.Millisecond))
	mustBe(true, "180 pages, and the last capture found nothing")
	m := &monitor{db: db}
	if !m.await(bg, captureView{delay: time.Millisecond, steady: true, useless: time.Hour, checkpoint: time.Hour}) {
		t.Error("await says that the context is done")
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if m.await(ctx, captureView{delay: time.Hour}) {
		t.Error("await does not see that the context is done")
	}
	if err := db.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustBe(false, "captured again")
}

// Writers that are far ahead of the captures are held back by the next one,
// before the WAL has outgrown its maximum; one large open transaction is not.
func TestCatchUpWithWritersKeptOut(t *testing.T) {
	host, db := newSpillingHost(t)
	db.MonitorDelayInterval = time.Hour
	db.MinCheckpointPageN, db.MaxCheckpointPageN = 399, 400 // no tier is due below 199
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	defer closeAndCheck(t, db)
	mustHold := func(n uint64, when string) {
		t.Helper()
		if err := db.sync(bg, tierRestart); err != nil {
			t.Fatal(err)
		}
		if got := db.Stats().LockHolds; got != n {
			t.Errorf("%s: the lock was held %d times, want %d", when, got, n)
		}
	}
	mustHold(0, "at first")
	for i, size := range []int{90, 110, 110} {
		if _, err := host.Exec("INSERT INTO t VALUES (randomblob(?*4096))", size); err != nil {
			t.Fatal(err)
		}
		mustHold(uint64(i), "a commit") // the later are more than a quarter of 400
	}
	restarts := db.Stats().WALRestarts
	if restarts == 0 {
		t.Error("the WAL did not restart")
	}
	tx, err := host.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // spills, since the cache is small
		if _, err := tx.Exec("INSERT INTO t VALUES (randomblob(10*4096))"); err != nil {
			t.Fatal(err)
		}
	}
	mustHold(2, "an open transaction")
	if db.fruitless() == 0 {
		t.Error("the capture of an open transaction was not fruitless")
	}
	mustHold(2, "it is still open")
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}
