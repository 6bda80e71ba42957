package litestream_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
)

// believesAlone reports whether a last connection to close would take itself
// for the only one left, by SQLite's rule: it can lock the database
// exclusively. SQLite 3.54 looks at the -shm file's locks, too, before it
// deletes the WAL; a visitor with an older one does not. Only a process that
// has no connection may ask. It is replaced where locks can be read.
var believesAlone = func(path string) (bool, error) { return false, nil }

// visitChild opens the database, reads or also writes, and closes it again,
// each time that it is told to.
func visitChild(args []string) error {
	visit := func(n int, write bool) error {
		host, err := childHost(args[0])
		if err != nil {
			return err
		}
		if write {
			if _, err := host.Exec("INSERT INTO t VALUES ('visitor', ?)", n); err != nil {
				return errors.Join(err, host.Close())
			}
		}
		var count, last int
		err = host.QueryRow("SELECT count(*), ifnull(max(n), 0) FROM t WHERE writer = 'host'").Scan(&count, &last)
		if err := errors.Join(err, host.Close()); err != nil {
			return err
		}
		alone, err := believesAlone(args[0])
		if err != nil {
			return err
		}
		tell("seen %d %d %t", count, last, alone)
		return nil
	}
	in := bufio.NewScanner(os.Stdin)
	for n := 1; in.Scan(); n++ {
		if err := visit(n, in.Text() == "write"); err != nil {
			return err
		}
	}
	return in.Err()
}

// A process that closes the last connection it knows of deletes the WAL. It
// must always see the host's locks, whatever the library does meanwhile.
//
// PITFALLS row 1
func TestVisitorsLeaveTheWALAndEveryCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	host := openHost(t, path, "synchronous(NORMAL)")
	mustExec(t, host, "CREATE TABLE t (writer, n, PRIMARY KEY (writer, n))")
	db := newDB(t, dir)
	mustOpen(t, db)
	wal, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}

	var committed atomic.Int64
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := int64(1); ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if _, err := host.Exec("INSERT INTO t VALUES ('host', ?)", n); err != nil {
				t.Errorf("host: %v", err)
				return
			}
			committed.Store(n)
		}
	})
	var once sync.Once
	rest := func() { once.Do(func() { close(stop); writer.Wait() }) }
	defer rest()

	visitor := startChild(t, "visit", path)
	const visits = 100
	wrote := 0
	for i := range visits {
		var err error
		switch i % 5 {
		case 0:
			_, err = db.Replicas[0].Snapshot(ctx)
		case 1:
			err = db.SyncAndWait(ctx)
		case 2:
			err = db.Checkpoint(ctx, litestream.CheckpointModePassive)
		case 3:
			err = db.Close()
		case 4:
			err = db.Open()
		}
		if err != nil {
			t.Fatalf("visit %d: %v", i, err)
		}
		before := committed.Load()
		order := "read"
		if i%3 == 0 {
			order = "write"
			wrote++
		}
		visitor.say(t, "%s", order)
		var count, last int64
		var alone bool
		if _, err := fmt.Sscan(visitor.mustHear(t, "seen"), &count, &last, &alone); err != nil {
			t.Fatal(err)
		}
		if alone {
			t.Fatalf("visit %d: the host's lock on the database is gone", i)
		}
		if count != last || count < before {
			t.Fatalf("visit %d: the visitor saw %d rows up to %d of the %d that the host had committed", i, count, last, before)
		}
		if now, err := os.Stat(path + "-wal"); err != nil {
			t.Fatalf("visit %d: %v", i, err)
		} else if !os.SameFile(now, wal) {
			t.Fatalf("visit %d: the wal was replaced", i)
		}
	}
	visitor.mustEnd(t)
	rest()

	var count, visitors int64
	if err := host.QueryRow("SELECT count(*) FILTER (WHERE writer = 'host'), count(*) FILTER (WHERE writer = 'visitor') FROM t").Scan(&count, &visitors); err != nil {
		t.Fatal(err)
	}
	if count != committed.Load() || visitors != int64(wrote) {
		t.Fatalf("the host reads %d of its %d commits and %d of %d visitors'", count, committed.Load(), visitors, wrote)
	}
	mustSync(t, db)
	mustEqualRestore(t, db, db.Replicas[0].Client())
	t.Logf("%d visits beside %d commits; %d generations", visits, count, db.Stats().Generations)
}

// manageChild manages a database until stdin ends.
func manageChild(args []string) error {
	db := childDB(args[0], args[1], os.Stderr)
	if err := db.Open(); errors.Is(err, litestream.ErrDatabaseLocked) {
		tell("locked %v", err)
		return awaitEnd()
	} else if err != nil {
		return err
	}
	tell("open")
	return errors.Join(awaitEnd(), db.Close())
}

// Two managers would truncate each other's shadow WAL. The second must learn
// who the first is, and get its place as soon as the first is gone, however it
// went.
//
// PITFALLS row 17
func TestSecondManagerIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	link := filepath.Join(dir, "link")
	host := openHost(t, path)
	mustExec(t, host, "CREATE TABLE t (n)")
	if err := os.Symlink("db", link); err != nil {
		t.Fatal(err)
	}
	lockFile := filepath.Join(path+"-litestream", "lock")
	mustBeRefused := func(err error, holder string) {
		t.Helper()
		if !errors.Is(err, litestream.ErrDatabaseLocked) {
			t.Fatalf("got %v", err)
		}
		for _, want := range []string{holder, lockFile} {
			if !strings.Contains(err.Error(), want) {
				t.Fatalf("%q does not name %q", err, want)
			}
		}
	}

	// Another process holds it.
	first := startChild(t, "manage", path, filepath.Join(dir, "replica"))
	first.mustHear(t, "open")
	db := newDB(t, dir)
	mustBeRefused(db.Open(), fmt.Sprintf("process %d ", first.cmd.Process.Pid))
	if err := db.Sync(ctx); !errors.Is(err, litestream.ErrDBClosed) {
		t.Fatalf("Sync of the refused DB: got %v", err)
	}
	first.kill()
	mustOpen(t, db) // SIGKILL freed it
	mustSync(t, db)

	// This process holds it: against another object, also by another name.
	for _, p := range []string{path, link} {
		other := litestream.NewDB(p)
		quiet(other)
		mustBeRefused(other.Open(), "this process")
	}
	mustSync(t, db)

	// And against another process.
	second := startChild(t, "manage", path, filepath.Join(dir, "replica"))
	refused := second.mustHear(t, "locked")
	second.mustEnd(t)
	for _, want := range []string{fmt.Sprintf("process %d ", os.Getpid()), lockFile} {
		if !strings.Contains(refused, want) {
			t.Fatalf("%q does not name %q", refused, want)
		}
	}

	// After Close it is free for both.
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	third := startChild(t, "manage", path, filepath.Join(dir, "replica"))
	third.mustHear(t, "open")
	third.mustEnd(t)
	mustOpen(t, db)
	mustSync(t, db)
	mustEqualRestore(t, db, db.Replicas[0].Client())
}

// A host that recovers the WAL, as the first one after a crash does, or that
// holds the database alone for a moment, delays the library but is no error.
//
// PITFALLS row 13
func TestOpenWaitsForAHostThatHoldsTheDatabaseAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	host := openHost(t, path)
	host.SetMaxOpenConns(1)
	mustExec(t, host, "CREATE TABLE t (n)")
	mustExec(t, host, "PRAGMA locking_mode=EXCLUSIVE")
	mustExec(t, host, "INSERT INTO t VALUES (1)") // takes the locks, and keeps them
	release := time.AfterFunc(litestream.BusyTimeout/5, func() {
		for _, query := range []string{"PRAGMA locking_mode=NORMAL", "INSERT INTO t VALUES (2)"} {
			if _, err := host.Exec(query); err != nil {
				t.Errorf("%s: %v", query, err)
			}
		}
	})
	defer release.Stop()
	db := newDB(t, dir)
	mustOpen(t, db)
	if err := db.Stats().LastError; err != nil || db.Pos().IsZero() {
		t.Fatalf("the first capture reached %q: %v", db.Pos(), err)
	}
	mustSync(t, db)
	mustEqualRestore(t, db, db.Replicas[0].Client())
}
