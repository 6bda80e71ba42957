package litestream

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
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

// The monitor paces itself by captures that find no commit, so that a large
// open transaction is not read over and over.
func TestFruitlessCapturesAreMeasured(t *testing.T) {
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
