package litestream

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// streamTimeout is what only a fault exceeds.
const streamTimeout = 20 * time.Second

// mustAwaitSlot waits until a goroutine waits for a slot.
func mustAwaitSlot(t testing.TB) {
	t.Helper()
	b := make([]byte, 1<<20)
	for deadline := time.Now().Add(streamTimeout); !strings.Contains(string(b[:runtime.Stack(b, true)]), "litestream.takeSnapshotSlot("); {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for a slot")
		}
		time.Sleep(time.Millisecond) // a poll of what has no event, with a timeout
	}
}

// nextResult is what a Next in another goroutine returned.
type nextResult struct {
	hdr *StreamRecordHeader
	err error
}

func startNext(r StreamReader) <-chan nextResult {
	next := make(chan nextResult, 1)
	go func() {
		hdr, err := r.Next()
		next <- nextResult{hdr, err}
	}()
	return next
}

func mustReturn(t testing.TB, next <-chan nextResult) nextResult {
	t.Helper()
	select {
	case got := <-next:
		return got
	case <-time.After(streamTimeout):
		t.Fatal("next does not return")
		panic("unreachable")
	}
}

func mustStreamAnew(t testing.TB, ctx context.Context, db *DB) StreamReader {
	t.Helper()
	r, err := db.Stream(ctx, Pos{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close stream: %v", err)
		}
	})
	return r
}

func pins(db *DB) int {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.mu.session.snapshots
}

func mustLeaveNoSpool(t testing.TB, db *DB) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(db.MetaPath(), "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// A stream that waits for its turn to read the database needs nothing of it: no
// pin, and nothing that was captured. From its turn on what it needs is kept.
func TestStream_WaitsForItsSlotWithoutAPin(t *testing.T) {
	db := snapshotDB(t, 100_000)
	db.mu.Lock()
	db.ShadowRetentionN = 1
	db.mu.Unlock()
	host := restoreOpenSQLite(t, db.Path())
	restarts := func(n int) {
		t.Helper()
		for range n {
			if _, err := host.Exec("INSERT INTO t VALUES ('x')"); err != nil {
				t.Fatal(err)
			}
			if err := db.Checkpoint(bg, CheckpointModeTruncate); err != nil {
				t.Error(err)
			}
		}
		if _, err := host.Exec("INSERT INTO t VALUES ('y')"); err != nil {
			t.Fatal(err)
		}
		if err := db.Sync(bg); err != nil {
			t.Fatal(err)
		}
	}
	release := sync.OnceFunc(func() { <-snapshotSlots })
	snapshotSlots <- struct{}{}
	defer release()
	r := mustStreamAnew(t, bg, db)
	next := startNext(r)
	mustAwaitSlot(t)
	if n := pins(db); n != 0 {
		t.Errorf("%d pins", n)
	}
	before := db.Pos()
	restarts(3)
	if n := len(db.shadow.indexNumbers(before.Generation)); n != 1 {
		t.Errorf("%d indexes are kept", n)
	}
	at := db.Pos()
	release()
	got := mustReturn(t, next)
	if got.err != nil {
		t.Fatal(got.err)
	}
	if got.hdr.Type != StreamRecordTypeSnapshot || got.hdr.Pos() != at.Truncate() || at.Index != before.Index+3 {
		t.Errorf("first record is %+v; the stream began at %s, the database was at %s", *got.hdr, before, at)
	}
	if n := pins(db); n != 0 {
		t.Errorf("%d pins after the snapshot", n)
	}
	restarts(3)
	if n, err := io.Copy(io.Discard, r); err != nil || n != got.hdr.Size {
		t.Errorf("%d bytes of %d, %v", n, got.hdr.Size, err)
	}
	for last := at.Truncate(); last.Index < at.Index+3; {
		hdr, err := r.Next()
		if err != nil || hdr.Size == 0 || hdr.Flags != 0 || hdr.Index > last.Index+1 {
			t.Fatalf("behind %s comes %+v, %v", last, hdr, err)
		}
		mustLeaveNoSpool(t, db) // though the stream goes on
		last = hdr.Pos()
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	mustLeaveNoSpool(t, db)
}

// Whatever ends a stream ends its wait for a slot.
func TestStream_EndsWhileItWaitsForASlot(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(db *DB, r StreamReader, cancel func()) error
		want error
	}{
		"context":  {func(_ *DB, _ StreamReader, cancel func()) error { cancel(); return nil }, context.Canceled},
		"reader":   {func(_ *DB, r StreamReader, _ func()) error { return r.Close() }, errStreamClosed},
		"database": {func(db *DB, _ StreamReader, _ func()) error { return db.Close() }, ErrDBClosed},
	} {
		t.Run(name, func(t *testing.T) {
			db := snapshotDB(t, 100_000)
			release := sync.OnceFunc(func() { <-snapshotSlots })
			snapshotSlots <- struct{}{}
			defer release()
			ctx, cancel := context.WithCancel(bg)
			defer cancel()
			r := mustStreamAnew(t, ctx, db)
			next := startNext(r)
			mustAwaitSlot(t)
			if err := tt.end(db, r, cancel); err != nil {
				t.Error(err)
			}
			if got := mustReturn(t, next); !errors.Is(got.err, tt.want) {
				t.Errorf("next: %+v, %v; want %v", got.hdr, got.err, tt.want)
			}
			mustLeaveNoSpool(t, db)
		})
	}
}

// Close ends a stream that reads the database, and returns when its pin has
// ended and its files are gone.
func TestDB_CloseJoinsTheSnapshotOfAStream(t *testing.T) {
	db := snapshotDB(t, 3*spoolMemory)
	fs := faultfs.New(fsys.OS)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db.SetFS(fs)
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	reading := make(chan struct{})
	var once sync.Once
	fs.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Write && strings.HasPrefix(filepath.Base(op.Path), "stream-") {
			once.Do(func() { close(reading) })
			for deadline := time.Now().Add(streamTimeout); db.status.Load().open && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond) // a poll of what has no event, with a timeout
			}
		}
		return nil
	})
	r := mustStreamAnew(t, bg, db)
	next := startNext(r)
	<-reading
	db.mu.Lock()
	s := db.mu.session
	db.mu.Unlock()
	if n := pins(db); n != 1 {
		t.Errorf("%d pins", n)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	db.mu.Lock()
	if n := s.snapshots; n != 0 {
		t.Errorf("%d pins after Close", n)
	}
	db.mu.Unlock()
	mustLeaveNoSpool(t, db)
	if got := mustReturn(t, next); !errors.Is(got.err, ErrDBClosed) {
		t.Errorf("next: %+v, %v", got.hdr, got.err)
	}
	if len(snapshotSlots) != 0 {
		t.Error("the slot is still taken")
	}
}

// A snapshot that was taken before the DB was closed can still be read. The
// next Open removes its name.
func TestStream_SnapshotOutlivesTheDB(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file that is open keeps its name")
	}
	db := snapshotDB(t, 100_000)
	r := mustStreamAnew(t, bg, db)
	hdr, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Close(), db.Open()); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n != hdr.Size {
		t.Errorf("%d bytes of %d, %v", n, hdr.Size, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	mustLeaveNoSpool(t, db)
}

// A database with another page size than the stream was begun with ends it.
func TestStream_PageSizeChangesBeforeTheSnapshot(t *testing.T) {
	db := snapshotDB(t, 100_000)
	r := mustStreamAnew(t, bg, db)
	other := filepath.Join(t.TempDir(), "db")
	host := restoreOpenSQLite(t, other)
	for _, q := range []string{"PRAGMA page_size=1024", "PRAGMA journal_mode=WAL", "CREATE TABLE t(x)", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		if _, err := host.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Sync(bg), os.Rename(other, db.Path()), os.Remove(db.WALPath())); err != nil {
		t.Fatal(err)
	}
	if hdr, err := r.Next(); err != io.EOF {
		t.Errorf("next: %+v, %v", hdr, err)
	}
	if len(snapshotSlots) != 0 {
		t.Error("the slot is still taken")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	mustLeaveNoSpool(t, db)
}

// To verify what may be large ends with the context, and that is not damage.
func TestShadowWAL_VerifyEndsWithItsContext(t *testing.T) {
	db := snapshotDB(t, 100)
	host := restoreOpenSQLite(t, db.Path())
	if _, err := host.Exec("INSERT INTO t VALUES ('x')"); err != nil {
		t.Fatal(err)
	}
	if err := db.Sync(bg); err != nil {
		t.Fatal(err)
	}
	pos := db.Pos()
	segments, err := db.shadow.segments(pos.Generation, pos.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.shadow.verify(bg, pos, segments, true); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if err := db.shadow.verify(ctx, pos, segments, true); !errors.Is(err, context.Canceled) || isDamage(err) {
		t.Errorf("cancelled: %v", err)
	}
}

// What fails while the snapshot is taken is the error of Next, and leaves
// nothing.
//
// PITFALLS row 36
func TestStream_SnapshotFails(t *testing.T) {
	for _, op := range []string{faultfs.Create, faultfs.Write} {
		t.Run(op, func(t *testing.T) {
			db := snapshotDB(t, 100_000)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			fs := faultfs.New(fsys.OS)
			db.SetFS(fs)
			if err := db.Open(); err != nil {
				t.Fatal(err)
			}
			fs.SetHook(func(o faultfs.Op) error {
				if o.Name == op && strings.HasPrefix(filepath.Base(o.Path), "stream-") {
					return faultfs.ENOSPC
				}
				return nil
			})
			r := mustStreamAnew(t, bg, db)
			for range 2 {
				if hdr, err := r.Next(); !errors.Is(err, faultfs.ENOSPC) || hdr != nil {
					t.Errorf("next: %+v, %v", hdr, err)
				}
			}
			if n := pins(db); n != 0 || len(snapshotSlots) != 0 {
				t.Errorf("%d pins and %d slots are left", n, len(snapshotSlots))
			}
			mustLeaveNoSpool(t, db)
			fs.Reset()
			if hdr, err := mustStreamAnew(t, bg, db).Next(); err != nil || hdr.Type != StreamRecordTypeSnapshot {
				t.Errorf("another stream: %+v, %v", hdr, err)
			}
		})
	}
}
