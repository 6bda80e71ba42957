package litestream_test

import (
	"bytes"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/replicatest"

	"github.com/pierrec/lz4/v4"
)

// fixture is a DB under test, its host's pool, and its first replica's client.
type fixture struct {
	dir    string
	host   *sql.DB
	db     *litestream.DB
	client *replicatest.FaultClient
}

// newFixture opens a host and a DB with one replica whose client can be made
// to fail, and a table t(x) with one row that is replicated.
func newFixture(t testing.TB, options ...func(*litestream.DB)) *fixture {
	t.Helper()
	fx := &fixture{dir: t.TempDir()}
	fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
	fx.db.Logger = testLogger(t)
	fx.client = fx.addReplica(t, "file")
	for _, option := range options {
		option(fx.db)
	}
	fx.host = openHost(t, fx.db.Path())
	mustExec(t, fx.host, `CREATE TABLE t (x)`)
	mustExec(t, fx.host, `INSERT INTO t VALUES ('first')`)
	mustOpen(t, fx.db)
	mustSync(t, fx.db)
	return fx
}

// addReplica adds a replica to a DB that is not open. The cleanup closes the
// DB, and checks the invariants of what the replica holds.
func (fx *fixture) addReplica(t testing.TB, name string) *replicatest.FaultClient {
	t.Helper()
	client := replicatest.NewFaultClient(&movableClient{fileclient.NewFileReplicaClient(filepath.Join(fx.dir, name))})
	r := litestream.NewReplica(fx.db, name, client)
	r.Logger = fx.db.Logger
	fx.db.Replicas = append(fx.db.Replicas, r)
	t.Cleanup(func() {
		client.SetPlans()
		if err := fx.db.Close(); err != nil {
			t.Errorf("close in cleanup: %v", err)
		}
		meta := checkMeta(t, fx.db.MetaPath())
		if !isUnchecked(t, replicaPart) {
			checkReplicaOf(t, client, meta)
		}
	})
	return client
}

// reopen closes the DB and opens another one with the same client.
func (fx *fixture) reopen(t testing.TB, options ...func(*litestream.DB)) {
	t.Helper()
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	db := litestream.NewDB(fx.db.Path())
	db.Logger = testLogger(t)
	r := litestream.NewReplica(db, "file", fx.client)
	r.Logger = db.Logger
	db.Replicas = append(db.Replicas, r)
	for _, option := range options {
		option(db)
	}
	fx.db = db
	mustOpen(t, db)
}

func (fx *fixture) insert(t testing.TB, x string) {
	t.Helper()
	mustExec(t, fx.host, `INSERT INTO t VALUES (?)`, x)
}

// nextIndex makes the WAL restart, so that a snapshot has an index of its own.
func (fx *fixture) nextIndex(t testing.TB) {
	t.Helper()
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	fx.insert(t, "first of an index")
	mustSync(t, fx.db)
}

// insertBlob commits n random bytes in one transaction.
func (fx *fixture) insertBlob(t testing.TB, n int) {
	t.Helper()
	mustExec(t, fx.host, `INSERT INTO t VALUES (randomblob(?))`, n)
}

// mustReplicate brings everything to the replica and proves it by a restore.
func (fx *fixture) mustReplicate(t testing.TB) {
	t.Helper()
	mustSync(t, fx.db)
	mustEqualRestore(t, fx.db, fx.client)
}

// manually leaves all uploads to the calls of the test.
func manually(db *litestream.DB) {
	for _, r := range db.Replicas {
		r.MonitorEnabled = false
	}
}

// eventually waits until ok returns true, for at most limit.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			if !ok() {
				t.Fatalf("not within %s: %s", limit, what)
			}
			return
		}
	}
}

// pass lets time pass: for what must not happen in it.
func pass(d time.Duration) { <-time.After(d) }

// countRows returns how many rows of table t a database file holds.
func countRows(t testing.TB, path string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(`SELECT COUNT(*) FROM t`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *log.Logger { return log.New(b, "", 0) }

// tempFiles lists the unfinished files under dir.
func tempFiles(t testing.TB, dir string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".tmp") {
			names = append(names, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// childEnv is set in a process that runs one test again on its own.
const childEnv = "LITESTREAM_TEST_CHILD"

// inChild runs the test in a process of its own, and returns what that wrote
// to its standard output. In the child it runs fn and returns ok false.
func inChild(t *testing.T, fn func()) (stdout string, ok bool) {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		fn()
		return "", false
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child: %v\n%s%s", err, out, &stderr)
	}
	return string(out), true
}

// goroutinesSettle waits until no more goroutines run than before.
func goroutinesSettle(t testing.TB, before int) {
	t.Helper()
	eventually(t, 10*time.Second, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

func mustErrorIs(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want one that matches %q", err, want)
	}
}

// writeFile replaces a file that is not a database somebody has open.
func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// segmentLen returns how many bytes of the WAL a segment holds.
func segmentLen(t testing.TB, rc io.ReadCloser) int64 {
	t.Helper()
	n, err := io.Copy(io.Discard, lz4.NewReader(rc))
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	return n
}
