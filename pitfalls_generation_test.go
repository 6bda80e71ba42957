package litestream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
	"example.com/litestream/replicatest"
)

// shadowIndexes counts the WAL indexes in the meta directory.
func shadowIndexes(t testing.TB, db *litestream.DB) int {
	t.Helper()
	ents, err := os.ReadDir(db.ShadowWALDir(db.Pos().Generation))
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

// A replica that misses what the shadow WAL no longer holds gets a snapshot, in
// a generation of its own: what it had can be restored all the while.
//
// PITFALLS row 16
func TestPitfall_GapOnAReplicaIsBridgedBySnapshot(t *testing.T) {
	fx := newFixture(t, manually)
	fx.insert(t, "before the gap")
	mustSync(t, fx.db)
	generation, rows := fx.db.Pos().Generation, countRows(t, fx.db.Path())
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	func() { // without the replica, nothing keeps the old indexes
		db := litestream.NewDB(fx.db.Path())
		db.Logger = fx.db.Logger
		db.ShadowRetentionN = 1
		mustOpen(t, db)
		defer db.Close()
		for range 4 {
			fx.insertBlob(t, 5000)
			if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
		}
		fx.insertBlob(t, 100)
		mustSync(t, db)
		if n := shadowIndexes(t, db); n > 2 {
			t.Fatalf("%d indexes: the test does not prune", n)
		}
	}()
	fx.client.SetPlans(replicatest.FailAll(errInjected, "WriteSnapshot"))
	fx.reopen(t, manually)
	mustErrorIs(t, fx.db.SyncAndWait(ctx), errInjected)
	if n := countRows(t, mustRestore(t, fx.client)); n != rows {
		t.Errorf("%d rows were restored, want the %d of before the gap", n, rows)
	}

	fx.client.SetPlans()
	mustSync(t, fx.db)
	if fx.db.Pos().Generation == generation {
		t.Error("no new generation began")
	}
	if n := fx.client.Calls("WriteSnapshot"); n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
	fx.insert(t, "behind the gap")
	fx.mustReplicate(t)
}

// A gap at the end of the index in which the replica stands has nothing that
// would tell a restore of it, once the next index follows. So nothing follows
// before there is a snapshot.
//
// PITFALLS row 16
func TestPitfall_GapBesideTheReplicasIndexIsNotHidden(t *testing.T) {
	fx := newFixture(t, manually)
	mustExec(t, fx.host, `CREATE TABLE a AS SELECT 0 n`)
	mustExec(t, fx.host, `CREATE TABLE b AS SELECT 0 n`)
	mustSync(t, fx.db)
	capture := func(query string) {
		mustExec(t, fx.host, query)
		if err := fx.db.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	fx.client.SetPlans(replicatest.FailAll(errInjected))
	capture(`UPDATE a SET n = 1`)
	end := fx.db.Pos()
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	capture(`UPDATE b SET n = 1`)
	mustErrorIs(t, fx.db.Close(), errInjected)
	segments, err := filepath.Glob(filepath.Join(fx.db.ShadowWALDir(end.Generation), litestream.FormatIndex(end.Index), "*"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	if err := os.Remove(segments[len(segments)-1]); err != nil { // as a power loss would
		t.Fatal(err)
	}

	fx.client.SetPlans(replicatest.FailAll(errInjected, "WriteSnapshot"))
	fx.reopen(t, manually)
	mustErrorIs(t, fx.db.SyncAndWait(ctx), errInjected)
	fx.client.SetPlans()
	fx.mustReplicate(t)
}

// hookedSnapshot calls a function once when it was given a snapshot, before it
// reads it or after.
type hookedSnapshot struct {
	litestream.ReplicaClient
	before, after func()
}

func (c *hookedSnapshot) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	before, after := c.before, c.after
	c.before, c.after = nil, nil
	if before != nil {
		before()
	}
	if after != nil {
		b, err := io.ReadAll(r)
		if err != nil {
			return litestream.SnapshotInfo{}, err
		}
		r = bytes.NewReader(b)
		after()
	}
	return c.ReplicaClient.WriteSnapshot(ctx, generation, index, r)
}

// While a snapshot is uploaded, its generation is given up, and the replica gets
// all of the next. If the client had read it to its end, it is stored late, and
// is not the latest for that; else its upload is given up, too.
//
// PITFALLS row 23
func TestPitfall_LateSnapshotOfAnOldGenerationIsNotTheLatest(t *testing.T) {
	for _, read := range []bool{false, true} {
		t.Run(fmt.Sprintf("read=%v", read), func(t *testing.T) {
			client := &hookedSnapshot{ReplicaClient: fileclient.NewFileReplicaClient(filepath.Join(t.TempDir(), "replica"))}
			db, host := replicateTo(t, client)
			mustSync(t, db)
			if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
			mustExec(t, host, "INSERT INTO t VALUES (1)")
			mustSync(t, db)

			old := db.Pos()
			next := func() {
				if err := db.NewGeneration(ctx); err != nil {
					t.Error(err)
				}
				mustExec(t, host, "INSERT INTO t VALUES (2)")
				mustSync(t, db)
				pass(20 * time.Millisecond) // the times of files may be that coarse
			}
			if read {
				client.after = next
			} else {
				client.before = next
			}
			info, err := db.Replicas[0].Snapshot(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if stored := info.Generation == old.Generation; stored != read {
				t.Errorf("the snapshot of the old generation was stored: %v, want %v", stored, read)
			}
			mustEqualRestore(t, db, client)
		})
	}
}

// While the next generation cannot begin, a sync of a replica brings what was
// captured of the last one, and does not take it for an empty database.
func TestPitfall_SyncWhileAGenerationBeginsIsNoEmptySuccess(t *testing.T) {
	fx := &fixture{dir: t.TempDir()}
	fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
	fx.db.Logger = testLogger(t)
	files := faultfs.New(fsys.OS)
	fx.db.SetFS(files)
	fx.client = fx.addReplica(t, "file")
	manually(fx.db)
	fx.host = openHost(t, fx.db.Path())
	mustExec(t, fx.host, `CREATE TABLE t (x)`)
	mustOpen(t, fx.db)
	defer fx.db.Close()
	mustSync(t, fx.db)
	fx.db.StopMonitor()
	fx.insert(t, "row")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	captured := fx.db.Pos()

	if _, err := fx.db.ReleasePin(); err != nil { // opens the database again
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(fx.db.MetaPath(), "generation")); err != nil {
		t.Fatal(err)
	}
	files.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Mkdir {
			return faultfs.ENOSPC
		}
		return nil
	})
	mustErrorIs(t, fx.db.Sync(ctx), syscall.ENOSPC)
	r := fx.db.Replicas[0]
	if err := r.Sync(ctx); err == nil && r.Pos() != captured {
		t.Errorf("the sync succeeded, but the replica is at %s, want %s", r.Pos(), captured)
	}
	files.SetHook(nil)
	fx.mustReplicate(t)
}

// The database is opened again and again, what was captured of it being loaded
// each time, while a replica reads it.
func TestPitfall_OpeningAgainBesideUploadsKeepsTheGeneration(t *testing.T) {
	fx := newFixture(t, manually)
	fx.db.StopMonitor()
	fx.insertBlob(t, 200<<10) // takes some time to read
	mustSync(t, fx.db)
	generation := fx.db.Pos().Generation
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := fx.db.Replicas[0].Sync(ctx); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 60 {
		fx.insert(t, "row")
		if err := fx.db.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := fx.db.ReleasePin(); err != nil {
			t.Fatal(err)
		}
		if err := fx.db.Sync(ctx); err != nil { // opens it again
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := fx.db.Pos().Generation; got != generation {
		t.Errorf("generation %s, want %s", got, generation)
	}
	fx.mustReplicate(t)
}

// lateClient stores one segment, the write of which failed, when a later write
// to the same place is over.
type lateClient struct {
	litestream.ReplicaClient
	armed bool
	pos   litestream.Pos
	body  []byte
}

func (c *lateClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (info litestream.WALSegmentInfo, err error) {
	if c.armed {
		c.armed, c.pos = false, pos
		if c.body, err = io.ReadAll(r); err == nil {
			err = errInjected
		}
		return info, err
	}
	info, err = c.ReplicaClient.WriteWALSegment(ctx, pos, r)
	if pos == c.pos && err == nil {
		_, err = c.ReplicaClient.WriteWALSegment(ctx, pos, bytes.NewReader(c.body))
	}
	return info, err
}

// An object store may carry out a request of which the client gave up to wait
// for the answer.
func TestPitfall_WriteThatLandsLateLeavesNoGap(t *testing.T) {
	client := &lateClient{ReplicaClient: fileclient.NewFileReplicaClient(filepath.Join(t.TempDir(), "replica"))}
	db, host := replicateTo(t, client)
	mustSync(t, db)

	client.armed = true
	mustExec(t, host, "INSERT INTO t VALUES (1)")
	mustErrorIs(t, db.SyncAndWait(ctx), errInjected)
	for range 3 {
		mustExec(t, host, "INSERT INTO t VALUES (2)")
		mustSync(t, db)
	}
	mustEqualRestore(t, db, client)
}

// The first write of a generation lands late, or one lands after the DB was
// closed and opened again.
func TestPitfall_FirstWriteThatLandsLateLeavesNoGap(t *testing.T) {
	client := &lateClient{ReplicaClient: fileclient.NewFileReplicaClient(filepath.Join(t.TempDir(), "replica"))}
	db, host := replicateTo(t, client)
	insert := func() { mustExec(t, host, "INSERT INTO t VALUES (1)") }
	insert()
	client.armed = true
	mustErrorIs(t, db.SyncAndWait(ctx), errInjected)
	for range 2 {
		insert()
		mustSync(t, db)
		mustEqualRestore(t, db, client)
	}

	insert()
	client.armed = true
	mustErrorIs(t, db.Close(), errInjected)
	insert()
	mustOpen(t, db)
	for range 2 {
		insert()
		mustSync(t, db)
		mustEqualRestore(t, db, client)
	}
	mustBeOneGeneration(t, db)
}

// goneClient lists segments that it cannot open.
type goneClient struct {
	litestream.ReplicaClient
	gone bool
}

func (c *goneClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	if c.gone && pos.Offset > 0 {
		return nil, &fs.PathError{Op: "open", Path: pos.String(), Err: fs.ErrNotExist}
	}
	return c.ReplicaClient.WALSegmentReader(ctx, pos)
}

// The newest segment of a replica is listed, but is not there: the replica gets
// a generation that it can be restored from.
//
// PITFALLS row 16
func TestPitfall_ListedSegmentThatIsNotThere(t *testing.T) {
	client := &goneClient{ReplicaClient: fileclient.NewFileReplicaClient(filepath.Join(t.TempDir(), "replica"))}
	db, host := replicateTo(t, client)
	mustSync(t, db)
	mustExec(t, host, "INSERT INTO t VALUES (1)")
	mustSync(t, db)
	old := db.Pos()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, db)
	client.gone = true
	mustExec(t, host, "INSERT INTO t VALUES (2)")
	if err := db.SyncAndWait(ctx); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), old.Truncate().String()[:33]) {
		t.Errorf("error %v, want one that names the segment", err)
	}
	mustSync(t, db)
	client.gone = false
	if db.Pos().Generation == old.Generation {
		t.Error("the generation goes on behind a segment that is not there")
	}
	mustEqualRestore(t, db, client)
}

// The replica's clock is set back while a snapshot is made: it would be of
// before the WAL that completes it.
//
// PITFALLS row 41
func TestPitfall_ClockSetBackDuringASnapshot(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("first=%v", first), func(t *testing.T) {
			now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
			mem := replicatest.NewMemClient()
			mem.Now = func() time.Time { return now }
			client := &hookedSnapshot{ReplicaClient: mem}
			back := func() { now = now.Add(-time.Hour) }
			db, host := replicateTo(t, client)
			r := db.Replicas[0]
			if first {
				client.before = back
				if err := db.SyncAndWait(ctx); err == nil {
					t.Error("the first snapshot is older than its wal, and no error")
				}
			}
			mustSync(t, db)
			if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
				t.Fatal(err)
			}
			now = now.Add(time.Minute)
			mustExec(t, host, "INSERT INTO t VALUES (1)")
			client.before = back
			if _, err := r.Snapshot(ctx); err == nil {
				t.Error("the snapshot is older than its wal, and no error")
			}
			now = now.Add(2 * time.Hour)
			mustExec(t, host, "INSERT INTO t VALUES (2)")
			mustSync(t, db)
			if _, err := r.Snapshot(ctx); err != nil {
				t.Error(err)
			}
			snapshots, err := r.Snapshots(ctx)
			if err != nil || len(snapshots) != 2 {
				t.Errorf("snapshots are %v, error %v; want the first and the last", snapshots, err)
			}
			mustEqualRestore(t, db, client)
		})
	}
}

// The clock is set back before a generation begins: nothing but a person can
// tell which one is the latest.
//
// PITFALLS row 41
func TestPitfall_GenerationThatIsOutrankedIsReported(t *testing.T) {
	for _, back := range []bool{false, true} {
		now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
		mem := replicatest.NewMemClient()
		mem.Now = func() time.Time { return now }
		db, _ := replicateTo(t, mem)
		var logged bytes.Buffer
		db.Replicas[0].Logger = log.New(&logged, "", 0)
		mustSync(t, db)
		if now = now.Add(time.Minute); back {
			now = now.Add(-time.Hour)
		}
		old := db.Pos().Generation
		if err := db.NewGeneration(ctx); err != nil {
			t.Fatal(err)
		}
		mustSync(t, db)
		if reported := strings.Contains(logged.String(), "files of generation "+old+" are stamped later"); reported != back {
			t.Errorf("clock set back: %v, logged:\n%s", back, &logged)
		}
	}
}
