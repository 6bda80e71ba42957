package litestream_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
)

var stressFlag = flag.Duration("stress", 3*time.Second, "how long each stress test saturates the database; from 8s on, the machine must do nothing else")

// stressTime is how long a stress test runs.
func stressTime() time.Duration {
	if testing.Short() || litestream.RaceEnabled {
		return *stressFlag / 3
	}
	return *stressFlag
}

// Every stress test checkpoints with these, so that the WAL stays below
// stressMaxPages, of 4 KiB, on a machine at rest.
const (
	stressMinCheckpointPages = 200
	stressMaxCheckpointPages = 2000
	stressMaxPages           = 2 * stressMaxCheckpointPages
)

const stressSchema = `
	CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER, n INTEGER, x BLOB);
	CREATE INDEX t_writer ON t (writer, n);`

// stressHost is a host with writers that commit as fast as they can.
type stressHost struct {
	t       testing.TB
	path    string
	pragmas []string // of each writer's connection
	commits atomic.Int64

	pause sync.RWMutex // held shared during each commit
	stop  chan struct{}
	wg    sync.WaitGroup

	mu struct {
		sync.Mutex
		errs     []error
		latency  []time.Duration // of each commit
		inserted []int           // rows by each writer
	}
}

// newStressHost creates the database, with one row.
//
// SQLite's busy handler is not fair: of two writers under the race detector,
// without any replication, one waited 3.4 s for its lock within 10 s. There they
// wait for up to a minute.
func newStressHost(t testing.TB, path string, pragmas ...string) *stressHost {
	t.Helper()
	h := &stressHost{t: t, path: path, pragmas: append(pragmas, "synchronous(NORMAL)"), stop: make(chan struct{})}
	if litestream.RaceEnabled {
		h.pragmas = append(h.pragmas, "busy_timeout(60000)")
	}
	conn := openHost(t, path)
	mustExec(t, conn, stressSchema)
	mustExec(t, conn, "INSERT INTO t(writer, n) VALUES (-1, 0)")
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	return h
}

// start begins n writers, each on a connection of its own, which end with the
// test at the latest.
func (h *stressHost) start(n int) {
	h.t.Helper()
	h.mu.inserted = make([]int, n)
	for i := range n {
		conn := openHost(h.t, h.path, h.pragmas...)
		conn.SetMaxOpenConns(1)
		if err := conn.Ping(); err != nil {
			h.t.Fatal(err)
		}
		h.wg.Go(func() {
			h.fail(h.write(conn, i), conn.Close())
		})
	}
	h.t.Cleanup(func() { h.end() })
}

// write commits until the end. Every fourth transaction is of several rows.
func (h *stressHost) write(conn *sql.DB, writer int) error {
	rnd := rand.New(rand.NewPCG(uint64(writer), 2))
	var latency []time.Duration
	n := 0
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.mu.inserted[writer] = n
		h.mu.latency = append(h.mu.latency, latency...)
	}()
	c, err := conn.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		select {
		case <-h.stop:
			return nil
		default:
		}
		h.pause.RLock()
		began := time.Now()
		added, err := stressCommit(c, rnd, writer, n)
		latency = append(latency, time.Since(began))
		h.pause.RUnlock()
		if err != nil {
			return fmt.Errorf("writer %d, commit %d: %w", writer, len(latency), err)
		}
		n += added
		h.commits.Add(1)
	}
}

// stressCommit commits one transaction, and returns how many rows it added.
func stressCommit(c *sql.Conn, rnd *rand.Rand, writer, n int) (added int, err error) {
	const insert = "INSERT INTO t(writer, n, x) VALUES (?, ?, randomblob(?))"
	switch rnd.IntN(8) {
	case 0, 1:
		if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
			return 0, err
		}
		for i := range 5 {
			if _, err := c.ExecContext(ctx, insert, writer, n+i, rnd.IntN(2000)); err != nil {
				return 0, err
			}
		}
		_, err := c.ExecContext(ctx, "COMMIT")
		return 5, err
	case 2, 3:
		_, err := c.ExecContext(ctx, "UPDATE t SET x = randomblob(?) WHERE writer = ? AND n = ?", rnd.IntN(500), writer, rnd.IntN(n+1))
		return 0, err
	default:
		_, err := c.ExecContext(ctx, insert, writer, n, rnd.IntN(300))
		return 1, err
	}
}

func (h *stressHost) fail(errs ...error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, err := range errs {
		if err != nil {
			h.mu.errs = append(h.mu.errs, err)
		}
	}
}

// end stops the writers and reports each commit that failed.
func (h *stressHost) end() {
	h.t.Helper()
	select {
	case <-h.stop:
		return
	default:
	}
	close(h.stop)
	h.wg.Wait()
	for _, err := range h.mu.errs {
		h.t.Errorf("host: %v", err)
	}
}

// rows returns how many rows were committed. The writers must have ended.
func (h *stressHost) rows() int {
	n := 1
	for _, i := range h.mu.inserted {
		n += i
	}
	return n
}

// commitTimes returns the 99th percentile and the longest of all commits. The
// writers must have ended.
func (h *stressHost) commitTimes() (p99, longest time.Duration) {
	slices.Sort(h.mu.latency)
	n := len(h.mu.latency)
	if n == 0 {
		return 0, 0
	}
	return h.mu.latency[n*99/100], h.mu.latency[n-1]
}

// every calls fn each interval until the host ends.
func (h *stressHost) every(interval time.Duration, fn func() error) {
	h.wg.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-h.stop:
				return
			case <-tick.C:
				if err := fn(); err != nil {
					h.fail(err)
					return
				}
			}
		}
	})
}

// watchWAL samples the size of the WAL file until the host ends, and returns
// the largest in pages.
func (h *stressHost) watchWAL() *atomic.Int64 {
	var largest atomic.Int64
	h.every(2*time.Millisecond, func() error {
		info, err := os.Stat(h.path + "-wal")
		if err != nil {
			return err
		}
		if n := (info.Size() - litestream.WALHeaderSize) / (litestream.WALFrameHeaderSize + 4096); n > largest.Load() {
			largest.Store(n)
		}
		return nil
	})
	return &largest
}

// newStressDB returns a DB, not opened, with the thresholds of stress tests.
func newStressDB(t testing.TB) *litestream.DB {
	t.Helper()
	db := newDB(t, t.TempDir())
	db.MinCheckpointPageN = stressMinCheckpointPages
	db.MaxCheckpointPageN = stressMaxCheckpointPages
	return db
}

// mustHoldRows checks that a database file holds n rows and is sound.
func mustHoldRows(t testing.TB, path string, n int) {
	t.Helper()
	conn, err := sql.Open("sqlite", "file:"+path+"?mode=ro&immutable=1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var got int
	if err := conn.QueryRow("SELECT count(*) FROM t").Scan(&got); err != nil {
		t.Fatal(err)
	}
	if got != n {
		t.Errorf("restored database holds %d rows, the host committed %d", got, n)
	}
}

// mustBeOneGeneration checks that nothing ever broke the line of WAL indexes.
func mustBeOneGeneration(t testing.TB, db *litestream.DB) {
	t.Helper()
	if n := db.Stats().Generations; n != 1 {
		t.Errorf("%d generations were begun, want 1", n)
	}
	generations, err := db.Replicas[0].Client().Generations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(generations) != 1 {
		t.Errorf("the replica holds %d generations, want 1", len(generations))
	}
}

// logStress prints what is worth knowing about a run.
func logStress(t testing.TB, h *stressHost, db *litestream.DB, elapsed time.Duration, largest int64) {
	t.Helper()
	s := db.Stats()
	p99, longest := h.commitTimes()
	t.Logf("%.0f tx/s (p99 %s, max %s), %d restarts, WAL at most %d pages, lock held %d times (p99 %s, max %s), %d generations, %d checkpoints, %d MiB captured",
		float64(h.commits.Load())/elapsed.Seconds(), p99.Round(10*time.Microsecond), longest.Round(time.Millisecond), s.WALRestarts, largest,
		s.LockHolds, s.LockHoldP99.Round(10*time.Microsecond), s.LockHoldMax.Round(10*time.Microsecond), s.Generations, s.Checkpoints, s.Bytes>>20)
}

// smallWAL calls run until the WAL, whose size in pages it returns, stays below
// a limit. While a machine is busy with other things, a disk that stands still or
// a writer that is stopped with the lock in its hand lets the WAL grow; not
// every time, though.
func smallWAL(t *testing.T, attempts int, limit int64, run func(t *testing.T) int64) {
	var sizes []int64
	for range attempts {
		n := run(t)
		if sizes = append(sizes, n); n <= limit || t.Failed() {
			return
		}
	}
	t.Errorf("the WAL grew to %d pages, want at most %d", sizes, limit)
}

// busyMaxPages is the limit on a machine that does other things as well, for one
// of busyAttempts runs. It is half of what the WAL would have without a restart.
const (
	busyMaxPages = 30_000
	busyAttempts = 4
)

// Writers at full speed cost no generation and no commit, and the WAL stays
// small, whether the host checkpoints as well or not.
// PITFALLS rows 4 and 30
func TestStress_SaturatingWritersKeepOneGeneration(t *testing.T) {
	for _, tt := range []struct{ name, pragma string }{
		{"host autocheckpoint", "wal_autocheckpoint(1000)"},
		{"no host autocheckpoint", "wal_autocheckpoint(0)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			attempts, limit := busyAttempts, int64(busyMaxPages)
			if *stressFlag >= 8*time.Second { // asked for, on a machine at rest
				attempts, limit = 1, stressMaxPages
			}
			smallWAL(t, attempts, limit, func(t *testing.T) int64 {
				db := newStressDB(t)
				h := newStressHost(t, db.Path(), tt.pragma)
				mustOpen(t, db)
				mustSync(t, db)
				largest := h.watchWAL()
				began := time.Now()
				h.start(3)
				pass(stressTime())
				h.end()
				logStress(t, h, db, time.Since(began), largest.Load())

				mustSync(t, db)
				mustHoldRows(t, mustRestore(t, db.Replicas[0].Client()), h.rows())
				mustEqualRestore(t, db, db.Replicas[0].Client())
				mustBeOneGeneration(t, db)
				// 20 in 8 s, of writers that had the processors to fill the WAL.
				stats := db.Stats()
				written := stats.Bytes / (litestream.WALFrameHeaderSize + 4096)
				want := min(uint64(20*stressTime()/(8*time.Second)), written/stressMaxPages)
				if got := stats.WALRestarts; got < want {
					t.Errorf("%d WAL restarts in %s, with %d pages written, want at least %d", got, stressTime(), written, want)
				}
				return largest.Load()
			})
		})
	}
}

var checkpointModes = []string{
	litestream.CheckpointModePassive,
	litestream.CheckpointModeFull,
	litestream.CheckpointModeRestart,
	litestream.CheckpointModeTruncate,
}

// rounds saturates the database for d in all, and freezes the writers n times
// to compare a restore with the original.
func (h *stressHost) rounds(db *litestream.DB, n int, d time.Duration) {
	h.t.Helper()
	for range n {
		pass(d / time.Duration(n))
		h.frozen(func() {
			mustSync(h.t, db)
			mustEqualRestore(h.t, db, db.Replicas[0].Client())
		})
	}
}

// frozen calls fn between commits.
func (h *stressHost) frozen(fn func()) {
	h.pause.Lock()
	defer h.pause.Unlock() // the writers must end even if fn fails the test
	fn()
}

// stressRounds is how often the writers are frozen.
const stressRounds = 3

// What is committed between a capture and a checkpoint of any mode is not
// lost, nor does it cost a generation.
// PITFALLS row 4
func TestStress_CheckpointsOfEveryModeLoseNothing(t *testing.T) {
	for _, mode := range checkpointModes {
		t.Run(mode, func(t *testing.T) {
			db := newStressDB(t)
			h := newStressHost(t, db.Path())
			mustOpen(t, db)
			mustSync(t, db)
			largest := h.watchWAL()
			began := time.Now()
			h.start(3)
			var done, busy atomic.Int64
			h.every(30*time.Millisecond, func() error {
				err := db.Checkpoint(ctx, mode)
				if errors.Is(err, litestream.ErrCheckpointBusy) {
					busy.Add(1)
					return nil
				}
				done.Add(1)
				return err
			})
			h.rounds(db, stressRounds, stressTime()/2)
			h.end()
			logStress(t, h, db, time.Since(began), largest.Load())
			t.Logf("%d checkpoints done, %d busy", done.Load(), busy.Load())
			if n := largest.Load(); *stressFlag >= 16*time.Second && n > stressMaxPages { // 8 s of it, on a machine at rest
				t.Errorf("the WAL grew to %d pages, want at most %d", n, stressMaxPages)
			}

			mustSync(t, db)
			mustHoldRows(t, mustRestore(t, db.Replicas[0].Client()), h.rows())
			mustEqualRestore(t, db, db.Replicas[0].Client())
			mustBeOneGeneration(t, db)
			if done.Load() == 0 {
				t.Error("no checkpoint was done")
			}
		})
	}
}

// A host that checkpoints by itself may cost a generation, never a commit.
// PITFALLS rows 4 and 5
func TestStress_CheckpointsOfTheHostLoseNothing(t *testing.T) {
	for _, mode := range checkpointModes {
		t.Run(mode, func(t *testing.T) {
			db := newStressDB(t)
			h := newStressHost(t, db.Path())
			mustOpen(t, db)
			mustSync(t, db)
			largest := h.watchWAL()
			// A checkpoint waits for readers with the write lock held: with the
			// timeout of the writers it would starve them by itself.
			conn := openHost(t, db.Path())
			conn.SetMaxOpenConns(1)
			mustExec(t, conn, "PRAGMA busy_timeout = 20")
			began := time.Now()
			h.start(3)
			var done, busy atomic.Int64
			h.every(30*time.Millisecond, func() error {
				var blocked, log, backfilled int
				err := conn.QueryRow("PRAGMA wal_checkpoint("+mode+")").Scan(&blocked, &log, &backfilled)
				if blocked != 0 {
					busy.Add(1)
				} else {
					done.Add(1)
				}
				return err
			})
			h.rounds(db, stressRounds, stressTime()/2)
			eventually(t, 30*time.Second, "a checkpoint of the host is done", func() bool { return done.Load() > 0 })
			h.end()
			logStress(t, h, db, time.Since(began), largest.Load())
			t.Logf("%d host checkpoints done, %d busy", done.Load(), busy.Load())

			mustSync(t, db)
			mustHoldRows(t, mustRestore(t, db.Replicas[0].Client()), h.rows())
			mustEqualRestore(t, db, db.Replicas[0].Client())
		})
	}
}

// While a reader of the host keeps the WAL from restarting, forced checkpoints
// do not stall the writers; afterwards the WAL restarts.
// PITFALLS row 28
func TestStress_LongReaderDoesNotStallWriters(t *testing.T) {
	limit := 1500 * time.Millisecond
	if litestream.RaceEnabled { // see newStressHost
		limit = 10 * time.Second
	}
	db := newStressDB(t)
	db.MaxCheckpointPageN = 400 // above it for most of the test
	h := newStressHost(t, db.Path())
	reader := openHost(t, db.Path())
	mustOpen(t, db)
	mustSync(t, db)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tx, err := reader.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		t.Helper()
		if err := tx.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	count()
	largest := h.watchWAL()
	began := time.Now()
	h.start(2)
	pass(stressTime())
	eventually(t, time.Minute, "the WAL is far above the maximum", func() bool {
		return largest.Load() > 2*int64(db.MaxCheckpointPageN)
	})
	if n := count(); n != 1 {
		t.Errorf("the reader sees %d rows, want 1", n)
	}
	held := db.Stats()
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the WAL restarts once the reader has ended", func() bool {
		return db.Stats().WALRestarts > held.WALRestarts
	})
	h.end()
	logStress(t, h, db, time.Since(began), largest.Load())
	p99, longest := h.commitTimes()
	if p99 > limit || longest > 2*limit {
		t.Errorf("commits took %s (p99) and %s (max), want at most %s and %s", p99, longest, limit, 2*limit)
	}
	if held.LockHoldMax > time.Second {
		t.Errorf("the write lock was held for %s", held.LockHoldMax)
	}

	mustSync(t, db)
	mustHoldRows(t, mustRestore(t, db.Replicas[0].Client()), h.rows())
	mustEqualRestore(t, db, db.Replicas[0].Client())
	mustBeOneGeneration(t, db)
}

// The pin of the library does not let the WAL grow for ever.
// PITFALLS row 30
func TestStress_ManySmallCommitsKeepTheWALSmall(t *testing.T) {
	commits := 30_000 // 60,000 pages
	if litestream.RaceEnabled {
		commits = 3_000 // for the races; the limit is judged without the detector
	}
	for _, tt := range []struct{ name, pragma string }{
		{"host autocheckpoint", "wal_autocheckpoint(1000)"},
		{"no host autocheckpoint", "wal_autocheckpoint(0)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			smallWAL(t, busyAttempts, busyMaxPages, func(t *testing.T) int64 {
				db := newStressDB(t)
				h := newStressHost(t, db.Path(), tt.pragma)
				mustOpen(t, db)
				mustSync(t, db)
				conn := openHost(t, db.Path(), h.pragmas...)
				conn.SetMaxOpenConns(1)
				insert, err := conn.Prepare("INSERT INTO t(writer, n) VALUES (0, ?)")
				if err != nil {
					t.Fatal(err)
				}
				defer insert.Close()
				largest := h.watchWAL()
				began := time.Now()
				for i := range commits {
					if _, err := insert.Exec(i); err != nil {
						t.Fatal(err)
					}
				}
				h.commits.Store(int64(commits))
				h.end()
				logStress(t, h, db, time.Since(began), largest.Load())

				mustSync(t, db)
				mustHoldRows(t, mustRestore(t, db.Replicas[0].Client()), commits+1)
				mustEqualRestore(t, db, db.Replicas[0].Client())
				mustBeOneGeneration(t, db)
				return largest.Load()
			})
		})
	}
}
