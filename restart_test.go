package litestream_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/litestream"
)

// program is one run of an application after the other, over the same files.
type program struct {
	t    testing.TB
	dir  string
	host *sql.DB
	db   *litestream.DB
	rows int // committed by all runs
}

func (p *program) openHost() {
	p.t.Helper()
	p.host = openHost(p.t, filepath.Join(p.dir, "db"))
	mustExec(p.t, p.host, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)")
}

func (p *program) openDB() {
	p.t.Helper()
	p.db = newDB(p.t, p.dir)
	mustOpen(p.t, p.db)
}

// capture makes sure that the library has seen the database before the host
// leaves it: else no WAL of it is ever seen.
func (p *program) capture() {
	p.t.Helper()
	if err := p.db.Sync(ctx); err != nil {
		p.t.Fatal(err)
	}
}

// work commits some rows.
func (p *program) work() {
	p.t.Helper()
	for range 20 {
		mustExec(p.t, p.host, "INSERT INTO t(x) VALUES (randomblob(1000))")
		p.rows++
	}
}

func (p *program) closeHost() {
	p.t.Helper()
	if err := p.host.Close(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) closeDB() {
	p.t.Helper()
	if err := p.db.Close(); err != nil {
		p.t.Fatal(err)
	}
}

// mustHoldAll checks that the replica holds every row.
func (p *program) mustHoldAll() {
	p.t.Helper()
	mustHoldRows(p.t, mustRestore(p.t, p.db.Replicas[0].Client()), p.rows)
}

// held returns how many generations and, in all of them, snapshots the replica
// holds.
func (p *program) held() (generations, snapshots int) {
	p.t.Helper()
	client := p.db.Replicas[0].Client()
	names, err := client.Generations(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, name := range names {
		itr, err := client.Snapshots(ctx, name)
		if err != nil {
			p.t.Fatal(err)
		}
		infos, err := litestream.SliceSnapshotIterator(itr)
		if err != nil {
			p.t.Fatal(err)
		}
		snapshots += len(infos)
	}
	return len(names), snapshots
}

// A clean stop, with the host's connections closed first, and the next start
// in any order go on in the same generation, with no second snapshot.
// PITFALLS row 35
func TestRestart_CleanStopsKeepOneGenerationAndOneSnapshot(t *testing.T) {
	for _, tt := range []struct {
		name  string
		start func(p *program)
	}{
		{"host opened first", func(p *program) { p.openHost(); p.openDB() }},
		{"library opened first", func(p *program) { p.openDB(); p.openHost(); p.capture() }},
		{"host writes before the library opens", func(p *program) { p.openHost(); p.work(); p.openDB() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &program{t: t, dir: t.TempDir()}
			for range 5 {
				tt.start(p)
				p.work()
				p.closeHost()
				p.closeDB() // captures and uploads the rest
				p.mustHoldAll()
				if n, snapshots := p.held(); n != 1 || snapshots != 1 {
					t.Fatalf("the replica holds %d generations and %d snapshots, want 1 and 1", n, snapshots)
				}
			}
			p.openDB()
			mustSync(t, p.db)
			mustEqualRestore(t, p.db, p.db.Replicas[0].Client())
		})
	}
}

// A run in which the WAL restarted ends as cleanly as any other. Only an empty
// WAL, after a TRUNCATE that nothing followed, proves nothing.
func TestRestart_KeepsTheGenerationAfterWALRestarts(t *testing.T) {
	p := &program{t: t, dir: t.TempDir()}
	for _, tt := range []struct {
		mode        string
		more        bool // commits after the checkpoint
		generations int
	}{
		{litestream.CheckpointModePassive, true, 1},
		{litestream.CheckpointModePassive, false, 1},
		{litestream.CheckpointModeFull, true, 1},
		{litestream.CheckpointModeFull, false, 1},
		{litestream.CheckpointModeRestart, true, 1},
		{litestream.CheckpointModeRestart, false, 1},
		{litestream.CheckpointModeTruncate, true, 1},
		{litestream.CheckpointModeTruncate, false, 1},
		{litestream.CheckpointModePassive, false, 2},
	} {
		p.openHost()
		p.openDB()
		p.work()
		if err := p.db.Checkpoint(ctx, tt.mode); err != nil {
			t.Fatal(err)
		}
		if tt.more {
			p.work()
		}
		p.closeHost()
		p.closeDB()
		p.mustHoldAll()
		if n, snapshots := p.held(); n != tt.generations || snapshots != tt.generations {
			t.Errorf("%s, more=%t: the replica holds %d generations and %d snapshots, want %d of each", tt.mode, tt.more, n, snapshots, tt.generations)
		}
	}
}

// A host that closes last removes the WAL, and with it the proof that nothing
// was missed: a new generation begins, and nothing is lost.
func TestRestart_HostClosedLastBeginsANewGeneration(t *testing.T) {
	p := &program{t: t, dir: t.TempDir()}
	for i := range 3 {
		p.openHost()
		p.openDB()
		p.work()
		p.closeDB()
		p.mustHoldAll()
		p.work() // nobody captures this
		p.closeHost()
		if _, err := os.Stat(p.db.WALPath()); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the WAL is still there: %v", err)
		}
		if n, _ := p.held(); n != i+1 {
			t.Fatalf("run %d: %d generations, want %d", i+1, n, i+1)
		}
	}
	p.openDB()
	mustSync(t, p.db)
	p.mustHoldAll()
	mustEqualRestore(t, p.db, p.db.Replicas[0].Client())
}

// One DB object can be opened and closed again and again, and closed twice.
// PITFALLS row 35
func TestRestart_SameObjectClosedTwiceAndOpenedAgain(t *testing.T) {
	p := &program{t: t, dir: t.TempDir()}
	p.openHost()
	p.openDB()
	for range 3 {
		p.work()
		p.closeDB()
		p.mustHoldAll()
		if err := p.db.Sync(ctx); !errors.Is(err, litestream.ErrDBClosed) {
			t.Errorf("Sync after Close: %v, want ErrDBClosed", err)
		}
		p.closeDB()
		mustOpen(t, p.db)
		if err := p.db.Open(); err == nil {
			t.Error("a second Open succeeded")
		}
	}
	p.work()
	mustSync(t, p.db)
	mustEqualRestore(t, p.db, p.db.Replicas[0].Client())
	mustBeOneGeneration(t, p.db)
}

// A library that was opened before the database exists replicates it as soon
// as it does.
func TestRestart_OpenedBeforeTheDatabaseExists(t *testing.T) {
	p := &program{t: t, dir: t.TempDir()}
	p.openDB()
	if err := p.db.SyncAndWait(ctx); err != nil {
		t.Errorf("sync without a database: %v", err)
	}
	if pos := p.db.Pos(); !pos.IsZero() {
		t.Errorf("position %s without a database", pos)
	}
	if n, _ := p.held(); n != 0 {
		t.Errorf("%d generations of no database", n)
	}
	p.openHost()
	p.work()
	// Without a call of Sync.
	eventually(t, 20*time.Second, "the new database reaches the replica", func() bool {
		pos := p.db.Pos()
		return !pos.IsZero() && p.db.Replicas[0].Pos() == pos
	})
	mustSync(t, p.db)
	p.mustHoldAll()
	mustEqualRestore(t, p.db, p.db.Replicas[0].Client())
	mustBeOneGeneration(t, p.db)
}

// Closing what was never opened, or never had a database, is no error and
// leaves nothing of a database behind.
func TestRestart_ClosingNothingIsNoError(t *testing.T) {
	p := &program{t: t, dir: t.TempDir()}
	p.db = newDB(t, p.dir)
	p.closeDB()
	if _, err := os.Stat(p.db.MetaPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a DB that was never opened left a meta directory: %v", err)
	}
	mustOpen(t, p.db)
	p.closeDB()
	p.closeDB()
	if _, err := os.Stat(p.db.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the library created a database: %v", err)
	}
	if n, _ := p.held(); n != 0 {
		t.Errorf("%d generations of no database", n)
	}
	// An expired context ends no Shutdown that has nothing to upload.
	mustOpen(t, p.db)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.db.Shutdown(cancelled); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p.openHost()
	p.work()
	mustOpen(t, p.db)
	p.closeDB()
	p.mustHoldAll()
}

// A library that starts, stops and starts again beside writers at full speed
// holds, at each stop, what was committed before it, and in the end all.
func TestRestart_BesideAHostThatGoesOnWriting(t *testing.T) {
	for _, pragma := range []string{"wal_autocheckpoint(1000)", "wal_autocheckpoint(0)"} {
		t.Run(pragma, func(t *testing.T) {
			dir := t.TempDir()
			h := newStressHost(t, filepath.Join(dir, "db"), pragma)
			h.start(2)
			eventually(t, 10*time.Second, "the host writes", func() bool { return h.commits.Load() > 200 })
			var db *litestream.DB
			for i := range 4 {
				db = newDB(t, dir)
				mustOpen(t, db)
				want := h.commits.Load() + 300
				eventually(t, 20*time.Second, fmt.Sprintf("the host goes on in run %d", i+1), func() bool { return h.commits.Load() > want })
				before := h.countRows()
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				if n := countRows(t, mustRestore(t, db.Replicas[0].Client())); n < before {
					t.Errorf("run %d: %d rows are on the replica, %d were committed before Close", i+1, n, before)
				}
			}
			mustOpen(t, db)
			h.end()
			mustSync(t, db)
			mustHoldRows(t, mustRestore(t, db.Replicas[0].Client()), h.rows())
			mustEqualRestore(t, db, db.Replicas[0].Client())
		})
	}
}

// countRows returns how many rows the host sees.
func (h *stressHost) countRows() (n int) {
	h.t.Helper()
	conn := openHost(h.t, h.path)
	if err := conn.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
		h.t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		h.t.Fatal(err)
	}
	return n
}
