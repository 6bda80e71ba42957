//go:build unix

package litestream_test

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// slowClient waits before it reads a snapshot, so that the library spools it.
type slowClient struct {
	litestream.ReplicaClient
	began chan<- struct{}
	goOn  <-chan struct{}
}

func (c slowClient) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	c.began <- struct{}{}
	<-c.goOn
	return c.ReplicaClient.WriteSnapshot(ctx, generation, index, r)
}

// What the library writes is for the user that runs it alone, whatever the
// umask: see SECURITY.md.
func TestWhatIsWrittenIsPrivate(t *testing.T) {
	inChild(t, func() { // the umask is that of the process
		syscall.Umask(0)
		dir := t.TempDir()
		db := litestream.NewDB(filepath.Join(dir, "db"))
		db.Logger = testLogger(t)
		began, goOn := make(chan struct{}, 1), make(chan struct{})
		client := fileclient.NewFileReplicaClient(filepath.Join(dir, "parent", "replica"))
		r := litestream.NewReplica(db, "", slowClient{client, began, goOn})
		r.Logger = db.Logger
		r.MonitorEnabled = false
		db.Replicas = append(db.Replicas, r)
		checkAtEnd(t, db)
		host := openHost(t, db.Path())
		mustExec(t, host, `CREATE TABLE t (x)`)
		mustExec(t, host, `INSERT INTO t VALUES (randomblob(8000000))`)
		if err := db.Open(); err != nil {
			t.Fatal(err)
		}
		if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil { // into the database file
			t.Fatal(err)
		}

		seen := make(map[string]bool) // by kind of file
		check := func() {
			t.Helper()
			if err := filepath.WalkDir(dir, func(path string, ent fs.DirEntry, err error) error {
				rel, _ := filepath.Rel(dir, path)
				if err != nil || rel == "." || rel == "db" || rel == "db-wal" || rel == "db-shm" { // the host's
					return err
				}
				info, err := ent.Info()
				if err != nil {
					return err
				}
				want := fs.FileMode(0o600)
				if ent.IsDir() {
					want = fs.ModeDir | 0o700
				}
				if info.Mode() != want {
					t.Errorf("%s has mode %v, want %v", rel, info.Mode(), want)
				}
				for _, kind := range []string{"lock", "position", "generation", ".wal.lz4", ".snapshot.lz4", ".tmp", "restored", "again"} {
					if strings.HasSuffix(rel, kind) {
						seen[strings.SplitN(rel, "/", 2)[0]+" "+kind] = true
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error)
		go func() { done <- db.SyncAndWait(ctx) }()
		<-began
		eventually(t, 30*time.Second, "the snapshot is spooled", func() bool {
			names, err := filepath.Glob(filepath.Join(db.MetaPath(), "snapshot-*.tmp"))
			return err == nil && len(names) > 0
		})
		check()
		close(goOn)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := litestream.RestoreLatest(ctx, client, filepath.Join(dir, "restored"), litestream.RestoreOptions{Logger: db.Logger}); err != nil {
			t.Fatal(err)
		}
		again := litestream.NewDB(filepath.Join(dir, "new", "deep", "again"))
		again.Logger = db.Logger
		again.Replicas = []*litestream.Replica{litestream.NewReplica(again, "", client)}
		if err := again.EnsureExists(ctx); err != nil {
			t.Fatal(err)
		}
		check()
		for _, want := range []string{
			"db-litestream lock", "db-litestream position", "db-litestream generation", "db-litestream .wal.lz4", "db-litestream .tmp",
			"parent .wal.lz4", "parent .snapshot.lz4", "restored restored", "new again",
		} {
			if !seen[want] {
				t.Errorf("%q was not there to be checked", want)
			}
		}
		if err := os.Remove(filepath.Join(dir, "restored")); err != nil {
			t.Error(err)
		}
	})
}
