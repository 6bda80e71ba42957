package litestream_test

import (
	"os"
	"path/filepath"
	"testing"

	"example.com/litestream"
)

// mustFill makes the table of a primary hold n rows of a page each, and
// nothing else.
func mustFill(t testing.TB, exec func(query string), n int) {
	t.Helper()
	exec("DELETE FROM t")
	for range n {
		exec("INSERT INTO t(s) VALUES (hex(randomblob(2000)))")
	}
	exec("VACUUM")
}

// A snapshot holds pages that its WAL cuts off, and the follower has a database
// that is smaller than both.
func TestFollower_SnapshotLargerThanItsDatabase(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	exec := func(query string) { t.Helper(); mustExec(t, host, query) }
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustFill(t, exec, 10)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mustFill(t, exec, 300)
	if err := primary.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	mustFill(t, exec, 100)
	if err := os.Remove(filepath.Join(f.MetaPath(), "follower")); err != nil { // so that a snapshot comes
		t.Fatal(err)
	}
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
	mustBeIntact(t, openHost(t, f.Path(), "query_only(1)"))
}

// A batch that does not fit into memory grows the database and cuts it off
// again, with a schema that stood on the new pages meanwhile.
func TestFollower_BatchLargerThanWhatIsLeftOfIt(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	exec := func(query string) { t.Helper(); mustExec(t, host, query) }
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustFill(t, exec, 10)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 6000) INSERT INTO t(s) SELECT hex(randomblob(2000)) FROM c")
	exec("CREATE INDEX i ON t(n, s)")
	exec("CREATE TABLE u AS SELECT n, s FROM t WHERE n % 10 = 0")
	exec("DELETE FROM t WHERE n % 100 > 0")
	exec("VACUUM")
	mustOpen(t, f)
	reader := openHost(t, f.Path(), "query_only(1)")
	mustFollow(t, primary, f)
	mustBeIntact(t, reader)
	if n := f.Stats().Follower.Snapshots; n != 0 {
		t.Errorf("%d snapshots, though nothing was missing", n)
	}
	if err := f.Stats().LastError; err != nil {
		t.Error(err)
	}
}
