package litestream_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/litestream"
)

// workload is a host that does a bit of everything, drawn from a seed, on one
// connection whose cache is so small that large transactions spill into the
// WAL before they commit.
type workload struct {
	t    testing.TB
	rnd  *rand.Rand
	db   *litestream.DB
	conn *sql.DB // one connection
	done map[string]int
}

// workloadSchema has rows on overflow pages, a table without rowids, a
// full-text index with its shadow tables, and an index.
const workloadSchema = `
	CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, x BLOB);
	CREATE INDEX t_n ON t (n);
	CREATE TABLE pair (a TEXT, b INTEGER, x, PRIMARY KEY (a, b)) WITHOUT ROWID;
	CREATE VIRTUAL TABLE doc USING fts5 (title, body);`

// workloadStep is a kind of step and how often it is drawn.
type workloadStep struct {
	name   string
	weight int
	run    func(w *workload)
}

var workloadSteps = []workloadStep{
	{"insert", 20, func(w *workload) {
		for range 1 + w.rnd.IntN(20) {
			w.exec("INSERT INTO t(n, x) VALUES (?, randomblob(?))", w.rnd.IntN(1000), w.rnd.IntN(400))
		}
	}},
	{"overflow", 8, func(w *workload) {
		w.exec("INSERT INTO t(n, x) VALUES (?, randomblob(?))", w.rnd.IntN(1000), 1000+w.rnd.IntN(150_000))
	}},
	{"update", 12, func(w *workload) {
		w.exec("UPDATE t SET n = n + 1, x = randomblob(?) WHERE id % 31 = ?", w.rnd.IntN(3000), w.rnd.IntN(31))
	}},
	{"delete", 8, func(w *workload) {
		w.exec("DELETE FROM t WHERE id % 23 = ?", w.rnd.IntN(23))
	}},
	{"pair", 10, func(w *workload) {
		for range 10 {
			w.exec("INSERT OR REPLACE INTO pair VALUES (?, ?, randomblob(?))", w.word(), w.rnd.IntN(50), w.rnd.IntN(600))
		}
		w.exec("DELETE FROM pair WHERE b = ?", w.rnd.IntN(50))
	}},
	{"fts", 10, func(w *workload) {
		for range 5 {
			w.exec("INSERT INTO doc VALUES (?, ?)", w.word(), fmt.Sprint(w.word(), " ", w.word(), " ", w.word()))
		}
		w.exec("DELETE FROM doc WHERE rowid % 13 = ?", w.rnd.IntN(13))
	}},
	{"fts optimize", 1, func(w *workload) { w.exec("INSERT INTO doc(doc) VALUES ('optimize')") }},
	{"index", 3, func(w *workload) {
		name := fmt.Sprintf("extra%d", w.rnd.IntN(3))
		w.exec("CREATE INDEX IF NOT EXISTS " + name + " ON t (n, id)")
		if w.rnd.IntN(2) == 0 {
			w.exec("DROP INDEX " + name)
		}
	}},
	{"table", 2, func(w *workload) {
		w.exec("CREATE TABLE IF NOT EXISTS tmp AS SELECT * FROM t")
		w.exec("DROP TABLE tmp")
	}},
	{"vacuum", 2, func(w *workload) { w.exec("VACUUM") }},
	{"incremental vacuum", 3, func(w *workload) { w.exec("PRAGMA incremental_vacuum(7)") }},
	{"savepoints", 6, func(w *workload) {
		w.exec("BEGIN")
		w.exec("INSERT INTO t(n, x) VALUES (1, randomblob(5000))")
		w.exec("SAVEPOINT a")
		w.spill(200_000)
		w.wake()
		w.exec("SAVEPOINT b")
		w.exec("DELETE FROM t WHERE id % 17 = ?", w.rnd.IntN(17))
		w.exec("ROLLBACK TO a")
		w.exec("INSERT INTO t(n, x) VALUES (2, randomblob(9000))")
		w.exec("RELEASE a")
		w.exec("COMMIT")
	}},
	{"1.5 MiB", 3, func(w *workload) { w.large(1<<20 + 1<<19) }},
	{"5 MiB", 1, func(w *workload) {
		w.large(5 << 20)
		w.exec("DELETE FROM t WHERE length(x) > 20000")
	}},
	{"rollback of a spill", 3, func(w *workload) {
		w.exec("BEGIN")
		w.spill(2 << 20)
		w.wake()
		w.exec("ROLLBACK")
		// What follows overwrites part of what was spilled.
		w.exec("INSERT INTO t(n, x) VALUES (3, randomblob(?))", w.rnd.IntN(30_000))
	}},
	{"sync", 10, func(w *workload) { w.capture() }},
	{"upload", 3, func(w *workload) { mustSync(w.t, w.db) }},
	{"checkpoint", 2, func(w *workload) {
		if err := w.db.Checkpoint(ctx, litestream.CheckpointModeRestart); err != nil {
			w.t.Fatal(err)
		}
		w.exec("INSERT INTO t(n, x) VALUES (5, 'restarts the WAL')")
		w.capture()
	}},
}

func (w *workload) exec(query string, args ...any) {
	w.t.Helper()
	mustExec(w.t, w.conn, query, args...)
}

// wake has the monitor capture now. Inside a transaction that is all a host
// may do: a Sync could wait for a checkpoint that waits for the write lock.
func (w *workload) wake() {
	select {
	case w.db.NotifyCh() <- struct{}{}:
	default:
	}
}

func (w *workload) capture() {
	w.t.Helper()
	if err := w.db.Sync(ctx); err != nil {
		w.t.Fatal(err)
	}
}

func (w *workload) word() string {
	b := make([]byte, 3+w.rnd.IntN(5))
	for i := range b {
		b[i] = 'a' + byte(w.rnd.IntN(6))
	}
	return string(b)
}

// spill writes n bytes, and rewrites rows of the same transaction: SQLite then
// overwrites frames that it has spilled, and computes their checksums again.
func (w *workload) spill(n int) {
	const row = 30_000
	for range n/row + 1 {
		w.exec("INSERT INTO t(n, x) VALUES (4, randomblob(?))", row)
	}
	w.exec("UPDATE t SET n = n + 1 WHERE id > (SELECT max(id) - 20 FROM t)")
}

// large commits a transaction of at least n bytes, and wakes the capture on the way.
func (w *workload) large(n int) {
	w.exec("BEGIN")
	w.spill(n / 2)
	w.wake()
	w.spill(n / 2)
	w.wake()
	w.exec("COMMIT")
	w.capture()
}

// run does n steps, and then one of each kind that was not drawn.
func (w *workload) run(n int) {
	total := 0
	for _, s := range workloadSteps {
		total += s.weight
	}
	for range n {
		at := w.rnd.IntN(total)
		for _, s := range workloadSteps {
			if at -= s.weight; at < 0 {
				s.run(w)
				w.done[s.name]++
				break
			}
		}
	}
	for _, s := range workloadSteps {
		if w.done[s.name] == 0 {
			s.run(w)
			w.done[s.name]++
		}
	}
}

// workloadFull is how many steps cover everything that the test asks for.
const workloadFull = 120

// Whatever a host does, while checkpoints run and the WAL restarts, the
// restored database is the original, byte for byte, from either snapshot.
// PITFALLS row 39
func TestWorkload_RestoresByteForByte(t *testing.T) {
	steps := workloadFull
	if testing.Short() || litestream.RaceEnabled {
		steps = 30
	}
	for seed, tt := range []struct {
		pageSize   int
		autoVacuum string
	}{
		{512, "NONE"},
		{4096, "FULL"},
		{4096, "INCREMENTAL"},
		{65536, "INCREMENTAL"},
	} {
		t.Run(fmt.Sprintf("%d %s", tt.pageSize, tt.autoVacuum), func(t *testing.T) {
			db := newDB(t, t.TempDir())
			db.MinCheckpointPageN = 100
			db.MaxCheckpointPageN = 1000
			db.MonitorDelayInterval = time.Millisecond
			db.ShadowRetentionN = 10_000 // for largestSegment
			db.Replicas[0].SyncInterval = 20 * time.Millisecond
			w := &workload{t: t, rnd: rand.New(rand.NewPCG(uint64(seed), 1)), db: db, done: make(map[string]int)}
			createDatabase(t, db.Path(),
				fmt.Sprintf("PRAGMA page_size = %d", tt.pageSize),
				"PRAGMA auto_vacuum = "+tt.autoVacuum,
				workloadSchema)
			w.conn = openHost(t, db.Path(), "cache_size(10)", "synchronous(NORMAL)")
			w.conn.SetMaxOpenConns(1)
			if got := pragmaInt(t, w.conn, "page_size"); got != tt.pageSize {
				t.Fatalf("page size is %d, want %d", got, tt.pageSize)
			}
			if want := map[string]int{"NONE": 0, "FULL": 1, "INCREMENTAL": 2}[tt.autoVacuum]; pragmaInt(t, w.conn, "auto_vacuum") != want {
				t.Fatalf("auto_vacuum is not %s", tt.autoVacuum)
			}

			mustOpen(t, db)
			mustSync(t, db)
			w.run(steps / 2)
			info, err := db.Replicas[0].Snapshot(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.done = make(map[string]int)
			w.run(steps / 2)

			mustSync(t, db)
			pos, stats := db.Pos(), db.Stats()
			first := mustRestoreFirst(t, db, pos)
			mustEqualRestore(t, db, db.Replicas[0].Client())
			mustEqualFile(t, first, readDatabase(t, db))

			t.Logf("%d WAL restarts, %d MiB captured in %d segments, snapshot at index %d, end at %d", stats.WALRestarts, stats.Bytes>>20, stats.Segments, info.Index, pos.Index)
			if stats.Generations != 1 {
				t.Errorf("%d generations, want 1", stats.Generations)
			}
			if steps < workloadFull {
				return // too few to cover everything
			}
			if stats.WALRestarts < 2 {
				t.Errorf("%d WAL restarts, want several", stats.WALRestarts)
			}
			if info.Index == 0 || info.Index == pos.Index {
				t.Errorf("snapshot at index %d of %d is not in the middle", info.Index, pos.Index)
			}
			if n := largestSegment(t, db); n < 4<<20 {
				t.Errorf("largest captured segment is of %d bytes: no large transaction came through in one piece", n)
			}
		})
	}
}

// createDatabase runs statements on a new database that is not in WAL mode:
// some pragmas count only before that.
func createDatabase(t testing.TB, path string, statements ...string) {
	t.Helper()
	conn, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetMaxOpenConns(1)
	for _, s := range statements {
		mustExec(t, conn, s)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

func pragmaInt(t testing.TB, conn *sql.DB, name string) (n int) {
	t.Helper()
	if err := conn.QueryRow("PRAGMA " + name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// mustRestoreFirst restores from the first snapshot of the generation, through
// every index up to pos.
func mustRestoreFirst(t testing.TB, db *litestream.DB, pos litestream.Pos) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "first")
	opt := litestream.NewRestoreOptions()
	opt.Logger = log.New(io.Discard, "", 0)
	itr, err := db.Replicas[0].Client().Snapshots(ctx, pos.Generation)
	if err != nil {
		t.Fatal(err)
	}
	infos, err := litestream.SliceSnapshotIterator(itr)
	if err != nil {
		t.Fatal(err)
	}
	if err := litestream.Restore(ctx, db.Replicas[0].Client(), path, pos.Generation, infos[0].Index, pos.Index, opt); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustEqualFile(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s has %d bytes, the original %d; first difference at %#x", filepath.Base(path), len(got), len(want), firstDifference(got, want))
	}
}

// largestSegment returns the compressed size of the largest piece that was
// captured at once. Most of the workload's bytes are random.
func largestSegment(t testing.TB, db *litestream.DB) (largest int64) {
	t.Helper()
	itr, err := db.WALSegments(ctx, db.Pos().Generation)
	if err != nil {
		t.Fatal(err)
	}
	defer itr.Close()
	for itr.Next() {
		largest = max(largest, itr.WALSegment().Size)
	}
	if err := itr.Err(); err != nil {
		t.Fatal(err)
	}
	return largest
}
