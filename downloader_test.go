package litestream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// restoreIndexes is a source with a snapshot and n indexes of two segments.
func restoreIndexes(t testing.TB, n int) *restoreSource {
	s := newRestoreSource(t, 1024)
	s.snapshot()
	for range n {
		s.insert(20, 500)
		s.capture()
		s.exec("DELETE FROM t WHERE id % 3 = 0")
		s.restart("RESTART")
	}
	return s
}

// Downloaded in order and applied one after another, the WAL files make what
// SQLite's own checkpoints make.
func TestWALDownloader_FilesApplyInOrder(t *testing.T) {
	ctx := context.Background()
	const n = 12
	s := restoreIndexes(t, n)
	want := s.want()
	path := filepath.Join(t.TempDir(), "restored.db")
	if err := RestoreSnapshot(ctx, s.client, path, s.generation, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	d := NewWALDownloader(s.client, path, s.generation, 0, n-1)
	d.Parallelism = 3
	d.Mode = 0o640
	for i := range n {
		index, wal, err := d.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if want := path + "-" + FormatIndex(i) + ".wal"; index != i || wal != want {
			t.Fatalf("index %d, path %s; want %d, %s", index, wal, i, want)
		}
		if info, err := os.Stat(wal); err != nil || info.Mode().Perm() != 0o640 {
			t.Fatalf("mode %v, %v", info.Mode(), err)
		}
		if d.N() != i+1 {
			t.Fatalf("N is %d after %d files", d.N(), i+1)
		}
		if err := ApplyWAL(ctx, path, wal); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, _, err := d.Next(ctx); err != io.EOF {
			t.Fatalf("behind the last: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("applied %d bytes, want %d: %v", len(got), len(want), err)
	}
	restoreOnly(t, path, "restored.db")
	if s.client.most > 3 || s.client.open != 0 {
		t.Errorf("%d readers open at a time, %d left open", s.client.most, s.client.open)
	}
}

func TestWALDownloader_MissingIndex(t *testing.T) {
	ctx := context.Background()
	s := restoreIndexes(t, 4)
	for _, tt := range []struct{ drop, min, max, files, missing int }{
		{drop: -1, min: 0, max: 3, files: 4, missing: -1},
		{drop: -1, min: 2, max: 1, files: 0, missing: -1},
		{drop: -1, min: 1, max: 2, files: 2, missing: -1},
		{drop: -1, min: 2, max: 9, files: 2, missing: 4},
		{drop: 1, min: 0, max: 3, files: 1, missing: 1},
		{drop: 0, min: 0, max: 3, files: 0, missing: 0},
	} {
		c := s.client.clone()
		delete(c.segments, Pos{Generation: s.generation, Index: tt.drop}) // the first of two
		prefix := filepath.Join(t.TempDir(), "x")
		d := NewWALDownloader(c, prefix, s.generation, tt.min, tt.max)
		var err error
		for err == nil {
			var path string
			if _, path, err = d.Next(ctx); err == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
		var missing *WALNotFoundError
		if errors.As(err, &missing) != (tt.missing >= 0) || missing != nil && (missing.Index != tt.missing || missing.Generation != s.generation) || missing == nil && err != io.EOF {
			t.Errorf("%+v: %v", tt, err)
		}
		if d.N() != tt.files {
			t.Errorf("%+v: %d files", tt, d.N())
		}
		if cerr := d.Close(); (cerr != nil) != (tt.missing >= 0) || cerr != nil && !errors.Is(cerr, err) {
			t.Errorf("%+v: close: %v", tt, cerr)
		}
		restoreOnly(t, prefix)
	}
}

// A damaged segment is never handed out as a WAL file. PITFALLS row 14
func TestWALDownloader_DamageIsAnError(t *testing.T) {
	ctx := context.Background()
	s := restoreIndexes(t, 3)
	for pos, f := range s.client.segments {
		data, err := decompressFrame(f.data)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		c := s.client.clone()
		c.putSegment(pos, compressSegment(t, data))
		prefix := filepath.Join(t.TempDir(), "x")
		d := NewWALDownloader(c, prefix, s.generation, pos.Index, pos.Index)
		_, _, err = d.Next(ctx)
		var sum *ChecksumError
		if !errors.As(err, &sum) || sum.Path != segmentName(pos) {
			t.Errorf("%v: %v", pos, err)
		}
		if cerr := d.Close(); !errors.Is(cerr, ErrChecksumMismatch) {
			t.Errorf("close: %v", cerr)
		}
		restoreOnly(t, prefix)
	}
}

// restoreCancelOnWait is a context that ends when someone begins to wait for it.
type restoreCancelOnWait struct {
	context.Context
	cancel func()
}

func (c restoreCancelOnWait) Done() <-chan struct{} {
	c.cancel()
	return c.Context.Done()
}

// Close ends and joins the downloads and removes what was not handed out; the
// context of Next bounds its own wait alone.
func TestWALDownloader_CloseAndCancelLeaveNothing(t *testing.T) {
	s := restoreIndexes(t, 8)
	prefix := filepath.Join(t.TempDir(), "x")
	d := NewWALDownloader(s.client, prefix, s.generation, 0, 7)
	d.Parallelism = 4
	ctx, cancel := context.WithCancel(context.Background())
	gate := make(chan struct{})
	s.client.onRead = func(name string) error {
		if strings.Contains(name, "/wal/"+FormatIndex(4)) {
			<-gate
		}
		return nil
	}
	for range 4 {
		if _, path, err := d.Next(ctx); err != nil {
			t.Fatal(err)
		} else if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := d.Next(restoreCancelOnWait{ctx, cancel}); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	close(gate)
	// Another context takes up where that left off.
	index, path, err := d.Next(context.Background())
	if err != nil || index != 4 {
		t.Fatalf("index %d, %v", index, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	restoreOnly(t, prefix)
	if s.client.open != 0 {
		t.Errorf("%d readers left open", s.client.open)
	}
	if _, _, err := d.Next(context.Background()); err == nil {
		t.Error("next of a closed downloader: no error")
	}
	if err := NewWALDownloader(nil, "", "", 0, 0).Close(); err != nil {
		t.Errorf("close of a new one: %v", err)
	}
	if _, _, err := NewWALDownloader(nil, "", s.generation, 0, 0).Next(context.Background()); err == nil || err == io.EOF {
		t.Errorf("no client: %v", err)
	}
}

// restoreWALFile returns a database and a WAL file that continues it.
func restoreWALFile(t testing.TB) (s *restoreSource, db, wal string) {
	ctx := context.Background()
	s = restoreIndexes(t, 1)
	db = filepath.Join(t.TempDir(), "restored.db")
	if err := RestoreSnapshot(ctx, s.client, db, s.generation, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	d := NewWALDownloader(s.client, db, s.generation, 0, 0)
	_, wal, err := d.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return s, db, wal
}

// A failed ApplyWAL keeps the WAL file and, when the WAL is wrong, the
// database; after any failure it can be made again. PITFALLS row 14
func TestApplyWAL_FailuresCanBeRepeated(t *testing.T) {
	ctx := context.Background()
	s, db, wal := restoreWALFile(t)
	original, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(wal)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(good)/2] ^= 1
	frame := 1024 + WALFrameHeaderSize
	for what, b := range map[string][]byte{
		"empty": nil, "half a header": good[:20], "flipped": flipped, "half a frame": good[:len(good)-100],
		"no commit": good[:WALHeaderSize+frame], "rubbish": append(bytes.Clone(good), 1),
	} {
		if err := os.WriteFile(wal, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err := ApplyWAL(ctx, db, wal)
		var sum *ChecksumError
		if !errors.As(err, &sum) || sum.Path != wal {
			t.Errorf("%s: %v", what, err)
		}
		if got, err := os.ReadFile(db); err != nil || !bytes.Equal(got, original) {
			t.Errorf("%s: database changed, %v", what, err)
		}
		if got, err := os.ReadFile(wal); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: wal file changed, %v", what, err)
		}
	}
	if err := os.WriteFile(wal, good, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if err := os.WriteFile(db+suffix, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ApplyWAL(ctx, db, wal); !errors.Is(err, fs.ErrExist) {
			t.Errorf("beside a %s: %v", suffix, err)
		}
		if err := os.Remove(db + suffix); err != nil {
			t.Fatal(err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := ApplyWAL(cancelled, db, wal); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := ApplyWAL(ctx, db+"x", wal); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no database: %v", err)
	}
	// A call that wrote half of the pages, then crashed.
	half := bytes.Clone(s.want())
	half = half[:len(half)-700]
	copy(half[1024:], bytes.Repeat([]byte{9}, 2048))
	if err := os.WriteFile(db, half, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ApplyWAL(ctx, db, wal); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(db); err != nil || !bytes.Equal(got, s.want()) {
		t.Errorf("applied %d bytes, want %d: %v", len(got), len(s.want()), err)
	}
	restoreOnly(t, db, "restored.db")
}

// The WAL file goes only when the database is durable.
func TestApplyWAL_FileSystemFaultsKeepTheWALFile(t *testing.T) {
	s, db, wal := restoreWALFile(t)
	for n := 1; ; n++ {
		fault := &restoreFaultFS{FS: fsys.OS}
		fault.left.Store(int64(n))
		err := applyWAL(context.Background(), fault, db, wal)
		if fault.left.Load() > 0 {
			if n < 6 || err != nil {
				t.Fatalf("only %d steps: %v", n, err)
			}
			break
		}
		if !errors.Is(err, errRestoreFault) {
			t.Fatalf("step %d: %v", n, err)
		}
		restoreOnly(t, db, "restored.db", filepath.Base(wal))
	}
	if got, err := os.ReadFile(db); err != nil || !bytes.Equal(got, s.want()) {
		t.Errorf("applied %d bytes, want %d: %v", len(got), len(s.want()), err)
	}
	restoreOnly(t, db, "restored.db")
}

// A power loss in the middle leaves the WAL file, although nobody synced it
// before.
func TestApplyWAL_PowerLossKeepsTheWALFile(t *testing.T) {
	ctx := context.Background()
	s, db, wal := restoreWALFile(t)
	image, err := os.ReadFile(wal)
	if err != nil {
		t.Fatal(err)
	}
	original, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(20) {
		if err := errors.Join(os.WriteFile(db, original, 0o600), os.RemoveAll(wal)); err != nil {
			t.Fatal(err)
		}
		crash := faultfs.NewCrash(fsys.OS, filepath.Dir(db))
		f, err := crash.OpenFile(wal, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(image); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		off := faultfs.New(crash) // when the database is to be synced
		off.SetHook(func(op faultfs.Op) error {
			if op.Name == faultfs.Sync && op.Path == db {
				return faultfs.EIO
			}
			return nil
		})
		if err := applyWAL(ctx, off, db, wal); !errors.Is(err, faultfs.EIO) {
			t.Fatal(err)
		}
		if err := crash.Crash(seed); err != nil {
			t.Fatal(err)
		}
		if err := ApplyWAL(ctx, db, wal); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got, err := os.ReadFile(db); err != nil || !bytes.Equal(got, s.want()) {
			t.Fatalf("seed %d: applied %d bytes, want %d: %v", seed, len(got), len(s.want()), err)
		}
	}
}

func TestApplyWAL_OtherPageSizeIsAnError(t *testing.T) {
	_, db, wal := restoreWALFile(t)
	b, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	b[16], b[17] = 2, 0
	if err := os.WriteFile(db, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ApplyWAL(context.Background(), db, wal); err == nil {
		t.Error("no error")
	}
	if got, err := os.ReadFile(db); err != nil || !bytes.Equal(got, b) {
		t.Errorf("database changed, %v", err)
	}
}
