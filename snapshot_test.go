package litestream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// newTestSpool returns a spool with little patience or, with 0, with more than
// a test lasts.
func newTestSpool(t testing.TB, patience time.Duration) (*spool, *faultfs.FS) {
	t.Helper()
	f := faultfs.New(fsys.OS)
	s := newSpool(f, filepath.Join(t.TempDir(), "spool.tmp"))
	s.patience = patience
	if patience == 0 {
		s.patience = time.Hour
	}
	return s, f
}

// fill writes n chunks of random bytes in a goroutine, and finishes. The
// channel yields what was written, and the error.
func fillSpool(ctx context.Context, s *spool, n int) <-chan error {
	done := make(chan error, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	go func() {
		var err error
		for range n {
			b := make([]byte, spoolChunk)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			if _, err = s.write(ctx, b); err != nil {
				break
			}
			clear(b) // the writer may reuse it
		}
		s.finish(err)
		done <- err
	}()
	return done
}

func spoolWant(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, n*spoolChunk)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func mustNotExist(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", name, err)
	}
}

// A reader that keeps up gets everything from memory; one that does not read
// at all keeps the writer for its patience alone, and then gets the same bytes
// from the file. Memory stays bounded.
func TestSpoolSlowAndFastReader(t *testing.T) {
	const chunks = 3 * spoolMemory / spoolChunk
	want := spoolWant(chunks)
	t.Run("fast", func(t *testing.T) {
		s, fs := newTestSpool(t, 0)
		done := fillSpool(context.Background(), s, chunks)
		got, err := io.ReadAll(s)
		if err := errors.Join(err, <-done); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes were read")
		}
		if fs.Count() != 0 {
			t.Errorf("%d operations on files", fs.Count())
		}
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	})
	t.Run("slow", func(t *testing.T) {
		s, _ := newTestSpool(t, time.Millisecond)
		if err := <-fillSpool(context.Background(), s, chunks); err != nil { // nobody reads
			t.Fatal(err)
		}
		if s.mu.queued > spoolMemory+spoolChunk || s.mu.file == nil {
			t.Errorf("%d bytes in memory, file %v", s.mu.queued, s.mu.file)
		}
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes were read, want %d; error %v", len(got), len(want), err)
		}
		if err := s.remove(); err != nil {
			t.Error(err)
		}
		mustNotExist(t, s.name)
	})
	t.Run("slow at first", func(t *testing.T) {
		s, _ := newTestSpool(t, time.Millisecond)
		done := fillSpool(context.Background(), s, chunks)
		got := make([]byte, 100)
		if _, err := io.ReadFull(s, got); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(append(got, rest...), want) {
			t.Errorf("%d bytes were read, want %d; error %v", 100+len(rest), len(want), err)
		}
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	})
}

// A writer that waits for the reader ends with its context.
func TestSpoolCancelledWriter(t *testing.T) {
	s, _ := newTestSpool(t, 0)
	ctx, cancel := context.WithCancel(context.Background())
	done := fillSpool(ctx, s, 2*spoolMemory/spoolChunk)
	var b [10]byte
	if _, err := s.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if _, err := io.ReadAll(s); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v; a cut snapshot must not look complete", err)
	}
	if err := s.remove(); err != nil {
		t.Error(err)
	}
}

// A failure of the file reaches the writer and the reader, and leaves no file.
//
// PITFALLS row 36
func TestSpoolFileFaults(t *testing.T) {
	for _, op := range []string{faultfs.Create, faultfs.Write, faultfs.Read} {
		for _, fault := range []error{faultfs.ENOSPC, faultfs.ShortWrite} {
			s, fs := newTestSpool(t, time.Nanosecond)
			fs.FailOn(op, fault)
			err := <-fillSpool(context.Background(), s, 2*spoolMemory/spoolChunk)
			_, rerr := io.ReadAll(s)
			if op != faultfs.Read && !errors.Is(err, faultfs.ENOSPC) {
				t.Errorf("%s: write returned %v", op, err)
			}
			if !errors.Is(rerr, faultfs.ENOSPC) {
				t.Errorf("%s: read returned %v", op, rerr)
			}
			if err := s.remove(); err != nil {
				t.Errorf("%s: %v", op, err)
			}
			mustNotExist(t, s.name)
		}
	}
}

// A client may return before its own goroutine stops reading, as HTTP
// transports do. Its reads fail; they neither panic nor hang.
//
// PITFALLS rows 11 and 45
func TestSpoolReadAfterRemove(t *testing.T) {
	for _, patience := range []time.Duration{0, time.Nanosecond} {
		s, _ := newTestSpool(t, patience)
		ctx, cancel := context.WithCancel(context.Background())
		done := fillSpool(ctx, s, 2*spoolMemory/spoolChunk)
		if patience != 0 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		reading := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, s)
			reading <- err
		}()
		if patience == 0 {
			<-done
		}
		if err := s.remove(); err != nil {
			t.Fatal(err)
		}
		if err := <-reading; err != nil && !errors.Is(err, errStreamClosed) && !errors.Is(err, context.Canceled) {
			t.Errorf("concurrent read: %v", err)
		}
		if n, err := s.Read(make([]byte, 10)); n != 0 || !errors.Is(err, errStreamClosed) {
			t.Errorf("read after remove: %d, %v", n, err)
		}
		if err := s.remove(); err != nil {
			t.Errorf("remove twice: %v", err)
		}
		mustNotExist(t, s.name)
	}
}

// snapshotDB returns an open DB over a database of about n bytes that hardly
// compress.
func snapshotDB(t testing.TB, n int) *DB {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	host := restoreOpenSQLite(t, path)
	for _, q := range []string{"PRAGMA journal_mode=WAL", "CREATE TABLE t(x)"} {
		if _, err := host.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := host.Exec("INSERT INTO t VALUES (randomblob(?))", n); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	db := NewDB(path)
	db.Logger = nil
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAndCheck(t, db) })
	return db
}

// A snapshot that a client leaves, at any point, ends its pin and goroutine,
// gives its slot back, and leaves no file. Nothing is left to wait for.
//
// PITFALLS row 11
func TestSnapshotStreamClosedEarly(t *testing.T) {
	db := snapshotDB(t, 3*spoolMemory/2)
	for _, n := range []int{0, 100_000, spoolMemory, -1} {
		for _, cancelFirst := range []bool{false, true} {
			pin, err := db.pinSnapshot(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			st := pin.stream(ctx)
			if n < 0 {
				if _, err := io.Copy(io.Discard, st); err != nil {
					t.Fatal(err)
				}
			} else if _, err := io.CopyN(io.Discard, st, int64(n)); err != nil {
				t.Fatal(err)
			}
			if cancelFirst {
				cancel()
			}
			if err := st.Close(); err != nil {
				t.Errorf("closed after %d bytes: %v", n, err)
			}
			cancel()
			if _, err := st.Read(make([]byte, 1)); err == nil {
				t.Error("read after Close succeeds")
			}
			if len(snapshotSlots) != 0 {
				t.Fatal("a slot is still taken")
			}
			db.mu.Lock()
			if n := db.mu.session.snapshots; n != 0 {
				t.Errorf("%d pins are counted", n)
			}
			db.mu.Unlock()
		}
	}
	if left, err := filepath.Glob(filepath.Join(db.MetaPath(), "snapshot-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	if err := db.Checkpoint(context.Background(), CheckpointModeTruncate); err != nil {
		t.Errorf("a pin is left: %v", err)
	}
}

// A client that does not read keeps the database pinned for the patience
// alone: then the checkpoint goes through, and the bytes are still all there.
func TestSnapshotPinEndsBeforeSlowUpload(t *testing.T) {
	db := snapshotDB(t, 3*spoolMemory/2)
	pin, err := db.pinSnapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	st := pin.stream(context.Background())
	select {
	case <-st.done:
	case <-time.After(30 * time.Second):
		t.Error("the pin waits for a client that does not read")
	}
	if err := db.Checkpoint(context.Background(), CheckpointModeTruncate); err != nil {
		t.Error(err)
	}
	zr := newFrameReader(st)
	got, err := io.ReadAll(zr)
	if err := errors.Join(err, zr.Close()); err != nil {
		t.Fatal(err)
	}
	var want []byte
	if err := db.WithFile(func(f *os.File) error {
		want, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the snapshot has %d bytes, the database %d, or they differ", len(got), len(want))
	}
}
