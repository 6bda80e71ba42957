package litestream_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// listReplica returns every name and modification time below a directory.
func listReplica(t testing.TB, dir string) (a []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, ent fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := ent.Info()
		if err == nil && !ent.IsDir() {
			a = append(a, fmt.Sprint(name, info.Size(), info.ModTime()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// promote opens a new primary on the file of a closed follower.
func promote(t testing.TB, follower *litestream.DB, replica string) *litestream.DB {
	t.Helper()
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	db := litestream.NewDB(follower.Path())
	db.Logger = testLogger(t)
	// It stands for another process: within one, the directory would be refused
	// while the old primary is open.
	client := &movableClient{fileclient.NewFileReplicaClient(replica)}
	r := litestream.NewReplica(db, "file", client)
	r.Logger = db.Logger
	db.Replicas = append(db.Replicas, r)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close in cleanup: %v", err)
		}
	})
	mustOpen(t, db)
	mustSync(t, db)
	return db
}

// What a primary that was replaced must not do: write to the replica that its
// successor writes to, neither when it starts again, nor when it ran on, nor
// after the successor's retention has deleted everything of it.
func TestReplicaMoved_OldPrimaryIsToldAndWritesNothing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		restart bool // of the old primary
		gone    bool // its generations
	}{{"restarted", true, false}, {"restarted after retention", true, true}, {"running", false, false}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			replica := filepath.Join(dir, "old", "replica")
			old, host := newPrimary(t, filepath.Join(dir, "old"))
			mustExec(t, host, "INSERT INTO t(s) VALUES ('before')")
			mustSync(t, old)
			generation := old.Pos().Generation
			follower := newFollower(t, filepath.Join(dir, "new"), old)
			mustOpen(t, follower)
			mustFollow(t, old, follower)
			mustSync(t, old)
			if tt.restart {
				if err := host.Close(); err != nil {
					t.Fatal(err)
				}
				if err := old.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				old.StopMonitor() // only calls of the test
			}

			successor := promote(t, follower, replica)
			newHost := openHost(t, successor.Path())
			mustExec(t, newHost, "INSERT INTO t(s) VALUES ('after')")
			mustSync(t, successor)
			if successor.Pos().Generation == generation {
				t.Fatal("the successor goes on with the generation of the old primary")
			}
			if tt.gone {
				if err := successor.Replicas[0].Client().DeleteGeneration(ctx, generation); err != nil {
					t.Fatal(err)
				}
			}
			successor.StopMonitor()

			before := listReplica(t, replica)
			if tt.restart {
				old.Replicas[0].MonitorEnabled = false
				mustOpen(t, old)
				host = openHost(t, old.Path())
			} else {
				// It has no reason to look by itself, but retention does.
				if err := old.Replicas[0].EnforceRetention(ctx); !errors.Is(err, litestream.ErrReplicaMoved) {
					t.Errorf("retention: %v", err)
				}
			}
			mustExec(t, host, "INSERT INTO t(s) VALUES ('must not get there')")
			for range 2 {
				if err := old.SyncAndWait(ctx); !errors.Is(err, litestream.ErrReplicaMoved) {
					t.Errorf("sync: %v", err)
				}
			}
			if _, err := old.Replicas[0].Snapshot(ctx); !errors.Is(err, litestream.ErrReplicaMoved) {
				t.Errorf("snapshot: %v", err)
			}
			if err := old.Replicas[0].EnforceRetention(ctx); !errors.Is(err, litestream.ErrReplicaMoved) {
				t.Errorf("retention: %v", err)
			}
			if err := old.Replicas[0].Validate(ctx); !errors.Is(err, litestream.ErrReplicaMoved) {
				t.Errorf("validate: %v", err)
			}
			if err := old.Stats().Replicas[0].LastError; !errors.Is(err, litestream.ErrReplicaMoved) {
				t.Errorf("stats: %v", err)
			}
			if after := listReplica(t, replica); !slices.Equal(before, after) {
				t.Errorf("the old primary changed the replica:\n%q\n%q", before, after)
			}
			mustEqualRestore(t, successor, successor.Replicas[0].Client())
			if err := old.Close(); !errors.Is(err, litestream.ErrReplicaMoved) {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// Nothing that one manager does to its own replicas looks like another one.
func TestReplicaMoved_NoFalseAlarm(t *testing.T) {
	dir := t.TempDir()
	db := newDB(t, dir)
	db.Replicas[0].Retention = time.Nanosecond
	host := openHost(t, db.Path())
	mustExec(t, host, "CREATE TABLE t (s)")
	step := func(what string) {
		t.Helper()
		mustExec(t, host, "INSERT INTO t VALUES (?)", what)
		for _, r := range db.Replicas {
			if err := db.SyncAndWait(ctx); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if err := r.EnforceRetention(ctx); err != nil {
				t.Fatalf("%s: retention: %v", what, err)
			}
		}
	}
	reopen := func(between func()) {
		t.Helper()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		between()
		mustOpen(t, db)
	}
	mustOpen(t, db)
	step("first")
	for range 3 {
		if err := db.NewGeneration(ctx); err != nil {
			t.Fatal(err)
		}
		step("new generation")
	}
	// Two that began before the first of them was uploaded.
	for range 2 {
		if err := db.NewGeneration(ctx); err != nil {
			t.Fatal(err)
		}
	}
	step("two generations")
	reopen(func() {})
	step("restart")
	reopen(func() { mustRemoveAll(t, db.GenerationNamePath()) })
	step("marker lost")
	reopen(func() { mustRemoveAll(t, db.MetaPath()) })
	step("meta directory lost")
	reopen(func() {
		if err := os.WriteFile(filepath.Join(db.MetaPath(), "lineage"), []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	step("lineage torn")
	reopen(func() { mustRemoveAll(t, filepath.Join(dir, "replica")) })
	step("replica emptied")

	// A replica that is added holds an older history of the same database, of
	// which nothing is known any more.
	other := newDB(t, t.TempDir())
	otherHost := openHost(t, other.Path())
	mustExec(t, otherHost, "CREATE TABLE t (s)")
	mustOpen(t, other)
	mustSync(t, other)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	reopen(func() {
		r := litestream.NewReplica(db, "second", other.Replicas[0].Client())
		r.Logger = db.Logger
		db.Replicas = append(db.Replicas, r)
	})
	step("second replica")
	if err := db.NewGeneration(ctx); err != nil {
		t.Fatal(err)
	}
	step("new generation on both")
	reopen(func() {})
	step("restart with both")
	mustEqualRestore(t, db, db.Replicas[0].Client())
	mustEqualRestore(t, db, db.Replicas[1].Client())
}

func mustRemoveAll(t testing.TB, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

// A primary that was replaced, follows its successor, and is promoted again has
// the replica's whole past behind it.
func TestReplicaMoved_FailBack(t *testing.T) {
	dir := t.TempDir()
	replica := filepath.Join(dir, "a", "replica")
	a, host := newPrimary(t, filepath.Join(dir, "a"))
	b := newFollower(t, filepath.Join(dir, "b"), a)
	mustOpen(t, b)
	mustFollow(t, a, b)
	mustSync(t, a)
	if err := errors.Join(host.Close(), a.Close()); err != nil {
		t.Fatal(err)
	}
	successor := promote(t, b, replica)
	newHost := openHost(t, successor.Path())
	mustExec(t, newHost, "INSERT INTO t(s) VALUES ('by the successor')")
	mustSync(t, successor)

	back := newFollower(t, filepath.Join(dir, "a"), successor)
	mustOpen(t, back)
	mustFollow(t, successor, back)
	if err := errors.Join(newHost.Close(), successor.Close()); err != nil {
		t.Fatal(err)
	}
	again := promote(t, back, replica)
	againHost := openHost(t, again.Path())
	mustExec(t, againHost, "INSERT INTO t(s) VALUES ('by the first')")
	mustSync(t, again)
	mustEqualRestore(t, again, again.Replicas[0].Client())
}

// snapshotsHook calls a function, once, before snapshots are listed.
type snapshotsHook struct {
	litestream.ReplicaClient
	hook func()
}

func (c *snapshotsHook) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	if hook := c.hook; hook != nil {
		c.hook = nil
		hook()
	}
	return c.ReplicaClient.Snapshots(ctx, generation)
}

// A generation that begins between the look at the replica and the snapshot of
// it is the DB's own, too.
func TestReplicaMoved_GenerationBeginsMeanwhile(t *testing.T) {
	client := &snapshotsHook{ReplicaClient: fileclient.NewFileReplicaClient(filepath.Join(t.TempDir(), "replica"))}
	db, _ := replicateTo(t, client)
	begin := func() {
		if err := db.NewGeneration(ctx); err != nil {
			t.Error(err)
		}
	}
	client.hook = begin
	mustSync(t, db)
	begin()
	mustSync(t, db)
	mustEqualRestore(t, db, client)
}
