package litestream_test

import (
	"bytes"
	"context"
	"database/sql"
	"io"
	"log"
	"os"
	"path/filepath"
	"testing"

	"example.com/litestream"
	"example.com/litestream/fileclient"

	_ "modernc.org/sqlite"
)

var ctx = context.Background()

// openHost opens the host's own pool, as an application does: WAL mode and a
// busy timeout of 5 s. More pragmas are given as "name(value)".
func openHost(t testing.TB, path string, pragmas ...string) *sql.DB {
	t.Helper()
	dsn := "file:" + path + "?_pragma=busy_timeout(5000)"
	for _, p := range pragmas {
		dsn += "&_pragma=" + p
	}
	host, err := sql.Open("sqlite", dsn+"&_pragma=journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	if err := host.Ping(); err != nil {
		t.Fatal(err)
	}
	return host
}

func mustExec(t testing.TB, host *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := host.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// newDB returns a DB, not opened, of dir/db with one file replica in
// dir/replica. It logs to the test, which ends in a check of the invariants.
func newDB(t testing.TB, dir string) *litestream.DB {
	t.Helper()
	db := litestream.NewDB(filepath.Join(dir, "db"))
	db.Logger = testLogger(t)
	r := litestream.NewReplica(db, "file", fileclient.NewFileReplicaClient(filepath.Join(dir, "replica")))
	r.Logger = db.Logger
	db.Replicas = append(db.Replicas, r)
	checkAtEnd(t, db)
	return db
}

// replicateTo returns an open DB that is replicated to one client, when told to,
// and its host, with a table t(s). The cleanup closes the DB and checks the
// invariants of the replica.
func replicateTo(t testing.TB, client litestream.ReplicaClient) (db *litestream.DB, host *sql.DB) {
	t.Helper()
	db = litestream.NewDB(filepath.Join(t.TempDir(), "db"))
	db.Logger = testLogger(t)
	r := litestream.NewReplica(db, "", client)
	r.Logger = db.Logger
	r.MonitorEnabled = false
	db.Replicas = append(db.Replicas, r)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close in cleanup: %v", err)
		}
		checkReplica(t, client)
	})
	host = openHost(t, db.Path())
	mustExec(t, host, "CREATE TABLE t (s)")
	mustOpen(t, db)
	return db, host
}

func mustOpen(t testing.TB, db *litestream.DB) {
	t.Helper()
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
}

func mustSync(t testing.TB, db *litestream.DB) {
	t.Helper()
	if err := db.SyncAndWait(ctx); err != nil {
		t.Fatal(err)
	}
}

// testLogger logs to t until the test ends.
func testLogger(t testing.TB) *log.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() { w.t = nil })
	return log.New(w, "", 0)
}

type testWriter struct{ t testing.TB }

func (w *testWriter) Write(p []byte) (int, error) {
	if w.t != nil {
		w.t.Logf("%s", bytes.TrimRight(p, "\n"))
	}
	return len(p), nil
}

// mustRestore restores the newest state into a new file and returns its path.
func mustRestore(t testing.TB, client litestream.ReplicaClient) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored")
	opt := litestream.NewRestoreOptions()
	opt.Logger = log.New(io.Discard, "", 0)
	opt.IntegrityCheck = litestream.IntegrityCheckFull
	if _, err := litestream.RestoreLatest(ctx, client, path, opt); err != nil {
		t.Fatal(err)
	}
	return path
}

// mustEqualRestore proves that the newest restorable state equals the
// database, byte for byte, once SQLite has checkpointed it. The host's writers
// must rest, and SyncAndWait have returned.
func mustEqualRestore(t testing.TB, db *litestream.DB, client litestream.ReplicaClient) {
	t.Helper()
	restored := mustRestore(t, client)
	if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	want := readDatabase(t, db)
	got, err := os.ReadFile(restored)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("restored database has %d bytes, the original %d; first difference at %#x", len(got), len(want), firstDifference(got, want))
	}
}

// readDatabase reads the database file through the parked descriptor: a test
// that closed one of its own would drop SQLite's locks (I8).
func readDatabase(t testing.TB, db *litestream.DB) []byte {
	t.Helper()
	var b []byte
	if err := db.WithFile(func(f *os.File) (err error) {
		b, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
