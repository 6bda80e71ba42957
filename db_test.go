package litestream_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

func TestDB_OpenRefusesSettingsThatMakeNoSense(t *testing.T) {
	for name, spoil := range map[string]func(db *litestream.DB){
		"MinCheckpointPageN is 0":           func(db *litestream.DB) { db.MinCheckpointPageN = 0 },
		"MaxCheckpointPageN is -1":          func(db *litestream.DB) { db.MaxCheckpointPageN = -1 },
		"ShadowRetentionN is 0":             func(db *litestream.DB) { db.ShadowRetentionN = 0 },
		"MonitorDelayInterval is -1ns":      func(db *litestream.DB) { db.MonitorDelayInterval = -1 },
		"CheckpointInterval is -1ns":        func(db *litestream.DB) { db.CheckpointInterval = -1 },
		`"file": SyncInterval is -1ns`:      func(db *litestream.DB) { db.Replicas[0].SyncInterval = -1 },
		"SnapshotInterval is -1ns":          func(db *litestream.DB) { db.Replicas[0].SnapshotInterval = -1 },
		"Retention is -1ns":                 func(db *litestream.DB) { db.Replicas[0].Retention = -1 },
		"RetentionCheckInterval is -1ns":    func(db *litestream.DB) { db.Replicas[0].RetentionCheckInterval = -1 },
		"ValidationInterval is -1ns":        func(db *litestream.DB) { db.Replicas[0].ValidationInterval = -1 },
		`replica name "file" is used twice`: func(db *litestream.DB) { db.Replicas = append(db.Replicas, db.Replicas[0]) },
		"nil or has no client":              func(db *litestream.DB) { db.Replicas = append(db.Replicas, nil) },
		"a replica is nil or has no client": func(db *litestream.DB) { db.Replicas[0] = litestream.NewReplica(db, "x", nil) },
		`replica "x" belongs to another datab`: func(db *litestream.DB) {
			other := litestream.NewDB(db.Path() + "2")
			db.Replicas = append(db.Replicas, litestream.NewReplica(other, "x", fileclient.NewFileReplicaClient(t.TempDir())))
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := newDB(t, t.TempDir())
			spoil(db)
			err := db.Open()
			if err == nil || !strings.Contains(err.Error(), name) || !strings.HasPrefix(err.Error(), "open "+db.Path()) {
				t.Fatalf("error is %v, want one that contains %q and names the file", err, name)
			}
			if _, err := os.Stat(db.MetaPath()); !os.IsNotExist(err) {
				t.Errorf("a refused Open left something behind: %v", err)
			}
		})
	}
}

func TestDB_OpenTwiceIsAnErrorAndASecondManagerATypedOne(t *testing.T) {
	db := newDB(t, t.TempDir())
	mustErrorContains(t, db.Sync(ctx), "not opened yet")
	mustOpen(t, db)
	mustErrorContains(t, db.Open(), "already open; close it")
	second := litestream.NewDB(db.Path())
	mustErrorIs(t, second.Open(), litestream.ErrDatabaseLocked)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, second) // the lock is free
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

// Two names of one file are one database: a second DB of it streams nothing.
func TestDB_HardLinkIsRefused(t *testing.T) {
	fx := newFixture(t, manually)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Link(fx.db.Path(), link); err != nil {
		t.Skipf("no hard links here: %v", err)
	}
	second := litestream.NewDB(link)
	second.Logger = testLogger(t)
	mustOpen(t, second)
	for range 2 {
		err := second.Sync(ctx)
		mustErrorIs(t, err, litestream.ErrDatabaseLocked)
		mustErrorContains(t, err, link)
	}
	mustErrorIs(t, second.Close(), litestream.ErrDatabaseLocked)
	fx.insert(t, "the first goes on")
	mustSync(t, fx.db)
	if err := errors.Join(fx.host.Close(), fx.db.Close()); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, second) // the first has let go
	if err := errors.Join(second.Sync(ctx), second.Close()); err != nil {
		t.Error(err)
	}
}

func TestDB_WithoutADatabaseNothingFails(t *testing.T) {
	db := newDB(t, t.TempDir())
	mustOpen(t, db)
	if err := errors.Join(db.Sync(ctx), db.SyncAndWait(ctx), db.Checkpoint(ctx, litestream.CheckpointModeFull)); err != nil {
		t.Error(err)
	}
	if !db.Pos().IsZero() || db.PageSize() != 0 || db.SQLDB() != nil {
		t.Errorf("position %s, page size %d, pool %v without a database", db.Pos(), db.PageSize(), db.SQLDB())
	}
	if name, err := db.CurrentGeneration(); name != "" || err != nil {
		t.Errorf("generation %q, error %v", name, err)
	}
	if _, err := db.UpdatedAt(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("UpdatedAt: %v", err)
	}
	mustErrorIs(t, db.WithFile(func(*os.File) error { return nil }), fs.ErrNotExist)
	if _, err := os.Stat(db.Path()); !os.IsNotExist(err) {
		t.Errorf("the library created a database: %v", err)
	}

	writeFile(t, db.Path(), nil) // the host is about to create it
	if err := db.Sync(ctx); err != nil {
		t.Error(err)
	}
	host := openHost(t, db.Path())
	mustExec(t, host, `CREATE TABLE t (x)`)
	eventually(t, 20*time.Second, "the database is noticed", func() bool { return !db.Pos().IsZero() })
	mustSync(t, db)
	mustEqualRestore(t, db, db.Replicas[0].Client())
}

func TestDB_FileThatIsNoDatabaseIsAnErrorAndStaysAsItIs(t *testing.T) {
	db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
	db.Logger = testLogger(t)
	checkAtEnd(t, db)
	content := strings.Repeat("not a database ", 1000)
	writeFile(t, db.Path(), []byte(content))
	mustOpen(t, db)
	if err := db.Sync(ctx); err == nil || !strings.Contains(err.Error(), db.Path()) {
		t.Errorf("sync: %v, want an error that names the file", err)
	}
	if got := string(readDatabase(t, db)); got != content {
		t.Error("the file was changed")
	}
	if err := db.Close(); err == nil {
		t.Error("close succeeded though nothing was captured")
	}
}

func TestDB_ShutdownWithAnEndedContextClosesEverything(t *testing.T) {
	fx := newFixture(t, manually)
	fx.insert(t, "captured, not uploaded")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	mustErrorIs(t, fx.db.Shutdown(ended), context.Canceled)
	mustErrorIs(t, fx.db.Sync(ctx), litestream.ErrDBClosed)
	if err := fx.db.Shutdown(ended); err != nil {
		t.Errorf("second shutdown: %v", err)
	}
	if fx.db.SQLDB() != nil {
		t.Error("the pool is still there")
	}
	generation := fx.db.Pos().Generation
	fx.reopen(t) // the lock is free
	mustSync(t, fx.db)
	if got := fx.db.Pos().Generation; got != generation {
		t.Errorf("generation %s, want %s", got, generation)
	}
	if n := countRows(t, mustRestore(t, fx.client)); n != 2 {
		t.Errorf("restored %d rows, want 2", n)
	}
}

func TestDB_ShutdownEndsWithItsContextBesideAHangingClient(t *testing.T) {
	fx := newFixture(t)
	hung := hangOn(fx.client, "WriteWALSegment")
	fx.insert(t, "stuck")
	limited, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- fx.db.Shutdown(limited) }()
	<-hung
	cancel()
	mustErrorIs(t, <-done, context.Canceled)
}

func TestDB_CheckpointModes(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	walSize := func() int64 {
		info, err := os.Stat(fx.db.WALPath())
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	index := 0
	for _, mode := range []string{
		litestream.CheckpointModePassive, litestream.CheckpointModeFull,
		litestream.CheckpointModeRestart, litestream.CheckpointModeTruncate,
	} {
		fx.insertBlob(t, 20000)
		before := walSize()
		if err := fx.db.Checkpoint(ctx, mode); err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		if got := walSize(); (mode == litestream.CheckpointModeTruncate) != (got == 0) || got > before {
			t.Errorf("%s: wal had %d bytes and has %d", mode, before, got)
		}
		fx.insertBlob(t, 10)
		index++ // everything was backfilled, so the WAL restarted
		mustSync(t, fx.db)
		if got := fx.db.Pos().Index; got != index {
			t.Errorf("%s: index %d, want %d", mode, got, index)
		}
	}
	for _, mode := range []string{"", "passive", "FULL; DROP TABLE t"} {
		if err := fx.db.Checkpoint(ctx, mode); err == nil || !strings.Contains(err.Error(), "mode") {
			t.Errorf("mode %q: %v", mode, err)
		}
	}
	mustEqualRestore(t, fx.db, fx.client)
	if got := fx.db.Stats(); got.Checkpoints != 5 || got.WALRestarts != 4 || got.Generations != 1 {
		t.Errorf("figures are %+v", got)
	}
}

func TestDB_CheckpointBesideAReaderIsBusy(t *testing.T) {
	fx := newFixture(t)
	fx.insert(t, "before the reader")
	tx, err := fx.host.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var n int
	if err := tx.QueryRow(`SELECT COUNT(*) FROM t`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	fx.insert(t, "behind the reader")
	mustErrorIs(t, fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate), litestream.ErrCheckpointBusy)
	fx.insert(t, "the host goes on")
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	fx.mustReplicate(t)
}

func TestDB_StatsTellWhatHappened(t *testing.T) {
	fx := newFixture(t, manually)
	fx.db.StopMonitor()
	before := fx.db.Stats()
	if before.Pos != fx.db.Pos() || before.PageSize != 4096 || before.Generations != 1 || before.Segments == 0 ||
		before.LastError != nil || before.LastCapture.IsZero() || before.WALSize != before.Pos.Offset {
		t.Errorf("figures are %+v", before)
	}
	fx.insert(t, "counted")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	after := fx.db.Stats()
	if after.Segments != before.Segments+1 || after.Bytes != before.Bytes+uint64(after.Pos.Offset-before.Pos.Offset) {
		t.Errorf("captured %d segments, %d bytes, then %d, %d", before.Segments, before.Bytes, after.Segments, after.Bytes)
	}
	r := after.Replicas[0]
	if r.Name != "file" || r.Pos != before.Pos || r.Lag <= 0 || r.LastSync.IsZero() || r.Snapshots != 1 || r.Bytes <= 0 {
		t.Errorf("replica's figures are %+v", r)
	}
	mustSync(t, fx.db)
	if again := fx.db.Stats().Replicas[0]; again.Pos != after.Pos || again.Lag != 0 || again.Segments != r.Segments+1 || again.LastSync.Before(r.LastSync) {
		t.Errorf("replica's figures are %+v after the upload", again)
	}
	if fx.db.Stats().LockHolds != 0 {
		t.Error("the write lock was taken without a checkpoint")
	}
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeFull); err != nil {
		t.Fatal(err)
	}
	s := fx.db.Stats()
	if s.LockHolds == 0 || s.LockHoldMax <= 0 || s.LockHoldP99 > s.LockHoldMax {
		t.Errorf("lock held %d times, at most %s, p99 %s", s.LockHolds, s.LockHoldMax, s.LockHoldP99)
	}
}

func TestDB_PositionFileIsForOtherProcesses(t *testing.T) {
	t.Parallel()
	fx := newFixture(t)
	fx.insert(t, "seen by others")
	if err := fx.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the position is in the file", func() bool {
		b, err := os.ReadFile(fx.db.PositionPath())
		return err == nil && string(b) == fx.db.Pos().String()+"\n"
	})
	fx.insert(t, "at the end")
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := string(readFile(t, fx.db.PositionPath())), fx.db.Pos().String()+"\n"; got != want {
		t.Errorf("position file holds %q after Close, want %q", got, want)
	}
}

func TestDB_CapturesByItselfWithinTheMonitorDelay(t *testing.T) {
	fx := newFixture(t, noInterval)
	before := fx.db.Pos()
	fx.insert(t, "unannounced")
	eventually(t, 20*time.Second, "the commit is captured", func() bool { return fx.db.Pos() != before })
	r := fx.db.Replica("file")
	eventually(t, 20*time.Second, "the commit is on the replica", func() bool { return r.Pos() == fx.db.Pos() })
	mustEqualRestore(t, fx.db, fx.client)
}

func TestDB_PathsAndAccessors(t *testing.T) {
	fx := newFixture(t)
	db, path := fx.db, fx.db.Path()
	generation := db.Pos().Generation
	meta := db.MetaPath()
	for got, want := range map[string]string{
		filepath.Base(db.WALPath()):           "db-wal",
		filepath.Base(db.SHMPath()):           "db-shm",
		filepath.Base(meta):                   "db-litestream",
		db.GenerationNamePath():               filepath.Join(meta, "generation"),
		db.PositionPath():                     filepath.Join(meta, "position"),
		db.GenerationPath(generation):         filepath.Join(meta, "generations", generation),
		db.ShadowWALDir(generation):           filepath.Join(meta, "generations", generation, "wal"),
		filepath.Base(path):                   "db",
		string(readFile(t, db.WALPath())[:3]): "\x37\x7f\x06",
	} {
		if got != want {
			t.Errorf("path %q, want %q", got, want)
		}
	}
	if name, err := db.CurrentGeneration(); name != generation || err != nil {
		t.Errorf("generation %q, error %v, want %s", name, err, generation)
	}
	var n int
	if err := db.SQLDB().QueryRow(`SELECT COUNT(*) FROM t`).Scan(&n); err != nil || n != 1 {
		t.Errorf("SQLDB reads %d rows, error %v", n, err)
	}
	mustErrorIs(t, db.WithFile(func(*os.File) error { return errInjected }), errInjected)

	future := time.Now().Add(time.Hour).Truncate(time.Second)
	if err := os.Chtimes(db.WALPath(), future, future); err != nil {
		t.Fatal(err)
	}
	if at, err := db.UpdatedAt(); err != nil || !at.Equal(future) {
		t.Errorf("updated at %s, error %v, want %s", at, err, future)
	}
}

func TestDB_WALReaderReturnsTheWALAsItWas(t *testing.T) {
	fx := newFixture(t)
	fx.db.StopMonitor()
	for range 3 {
		fx.insertBlob(t, 9000)
		if err := fx.db.Sync(ctx); err != nil { // several segments
			t.Fatal(err)
		}
	}
	pos := fx.db.Pos()
	want := readFile(t, fx.db.WALPath())[:pos.Offset]
	rc, err := fx.db.WALReader(ctx, pos.Generation, pos.Index)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("captured wal has %d bytes, the real one %d; first difference at %#x", len(got), len(want), firstDifference(got, want))
	}

	_, err = fx.db.WALReader(ctx, pos.Generation, pos.Index+1)
	mustErrorIs(t, err, fs.ErrNotExist)
	_, err = fx.db.WALReader(ctx, "0123456789abcdef", pos.Index)
	mustErrorIs(t, err, litestream.ErrGenerationChanged)
	for _, bad := range []litestream.Pos{{}, {Generation: "../../x"}, {Generation: pos.Generation, Index: -1}, {Generation: pos.Generation, Offset: -1}} {
		if _, err := fx.db.WALSegmentReader(ctx, bad); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "not a position") {
			t.Errorf("segment at %#v: error %v", bad, err)
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = fx.db.WALReader(ended, pos.Generation, pos.Index)
	mustErrorIs(t, err, context.Canceled)
	_, err = fx.db.WALSegmentReader(ended, pos.Truncate())
	mustErrorIs(t, err, context.Canceled)
	_, err = fx.db.WALSegmentReader(ctx, pos) // nothing begins at the end
	mustErrorIs(t, err, fs.ErrNotExist)
	if rc, err := fx.db.WALSegmentReader(ctx, pos.Truncate()); err != nil {
		t.Error(err)
	} else if err := rc.Close(); err != nil {
		t.Error(err)
	}
}

// While a stuck disk holds up a capture, a context ends the wait of other calls.
func TestDB_ContextEndsTheWaitForAStuckDisk(t *testing.T) {
	files := faultfs.New(fsys.OS)
	fx := newFixture(t, manually, func(db *litestream.DB) { db.SetFS(files) })
	fx.db.StopMonitor()
	fx.insert(t, "row")

	stuck, end := make(chan struct{}), make(chan struct{})
	var once sync.Once
	files.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Write {
			once.Do(func() { close(stuck) })
			<-end
		}
		return nil
	})
	done := make(chan error)
	go func() { done <- fx.db.Sync(ctx) }()
	<-stuck
	for name, call := range map[string]func(context.Context) error{
		"Sync":        fx.db.Sync,
		"SyncAndWait": fx.db.SyncAndWait,
		"Checkpoint":  func(ctx context.Context) error { return fx.db.Checkpoint(ctx, litestream.CheckpointModePassive) },
		"WALSegments": func(ctx context.Context) error {
			_, err := fx.db.WALSegments(ctx, fx.db.Pos().Generation)
			return err
		},
	} {
		soon, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		if err := call(soon); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	close(end)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	files.SetHook(nil)
	fx.mustReplicate(t)
}
