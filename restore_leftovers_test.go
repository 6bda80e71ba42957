package litestream

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream/internal/fsys"
)

// PITFALLS row 37
func TestRestore_ExistingFilesAreNeverTouched(t *testing.T) {
	s := restoreFaultSource(t)
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		path := filepath.Join(t.TempDir(), "restored.db")
		if err := os.WriteFile(path+suffix, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := RestoreLatest(context.Background(), s.client, path, restoreQuiet())
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path+suffix) {
			t.Errorf("restore beside %q: %v", suffix, err)
		}
		if strings.Contains(err.Error(), "left over") != (suffix != "") {
			t.Errorf("restore beside %q: %v", suffix, err)
		}
		restoreOnly(t, path, "restored.db"+suffix)

		// One that appears meanwhile.
		path = filepath.Join(t.TempDir(), "restored.db")
		c := s.client.clone()
		c.onRead = func(string) error { return os.WriteFile(path+suffix, []byte("mine"), 0o600) }
		_, err = RestoreLatest(context.Background(), c, path, restoreQuiet())
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path+suffix) {
			t.Errorf("%q appeared meanwhile: %v", suffix, err)
		}
		restoreOnly(t, path, "restored.db"+suffix)
		if b, err := os.ReadFile(path + suffix); err != nil || string(b) != "mine" {
			t.Errorf("%q now holds %q, %v", suffix, b, err)
		}
	}
}

// Without its directory a file cannot be restored: the error names that, and
// comes before anything is read.
func TestRestore_MissingDirectoryIsNamed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	c := restoreFaultSource(t).client.clone()
	c.onRead = func(name string) error { t.Errorf("%s was read", name); return nil }
	_, err := RestoreLatest(context.Background(), c, filepath.Join(dir, "app.db"), restoreQuiet())
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "directory "+dir+" must exist") || strings.Contains(err.Error(), ".tmp") {
		t.Error(err)
	}
}

// Cancelled at any point, a restore returns soon and leaves nothing: no file,
// no open reader, no goroutine.
func TestRestore_CancelLeavesNothing(t *testing.T) {
	s := restoreFaultSource(t)
	reads := 1 + len(s.client.segments)
	before := runtime.NumGoroutine()
	for n := range reads + 1 {
		ctx, cancel := context.WithCancel(context.Background())
		c := s.client.clone()
		var seen atomic.Int32
		c.onRead = func(string) error {
			if int(seen.Add(1)) == n {
				cancel()
			}
			return nil
		}
		if n == 0 {
			cancel()
		}
		path := filepath.Join(t.TempDir(), "restored.db")
		r := newRestorer(c, path, restoreQuiet())
		r.memory = 0
		_, err := r.run(ctx, func() (*RestorePlan, error) { return PlanRestore(context.Background(), c, time.Time{}) })
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at read %d: %v", n, err)
		}
		restoreOnly(t, path)
		if c.open != 0 {
			t.Errorf("cancelled at read %d: %d readers left open", n, c.open)
		}
	}
	for range 1000 { // goroutines that were joined may not have left yet
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

// restoreFaultFS fails the n-th call that changes the file system.
type restoreFaultFS struct {
	fsys.FS
	left atomic.Int64
}

var errRestoreFault = errors.New("no space left")

func (f *restoreFaultFS) fail() error {
	if f.left.Add(-1) == 0 {
		return errRestoreFault
	}
	return nil
}

func (f *restoreFaultFS) OpenFile(name string, flag int, perm fs.FileMode) (fsys.File, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &restoreFaultFile{file, f}, nil
}

type restoreFaultFile struct {
	fsys.File
	fs *restoreFaultFS
}

func (f *restoreFaultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.fail(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *restoreFaultFile) Truncate(size int64) error {
	return errors.Join(f.fs.fail(), f.File.Truncate(size))
}

func (f *restoreFaultFile) Sync() error { return errors.Join(f.fs.fail(), f.File.Sync()) }

// Each failing write of the target or of a scratch file is reported, and
// leaves nothing. PITFALLS row 37
func TestRestore_FileSystemFaultsLeaveNothing(t *testing.T) {
	s := newRestoreSource(t, 4096)
	s.snapshot()
	for range 2 {
		s.insert(300, 3000)
		s.restart("RESTART")
	}
	plan := func() (*RestorePlan, error) { return PlanRestore(context.Background(), s.client, time.Time{}) }
	for n := 1; ; n++ {
		path := filepath.Join(t.TempDir(), "restored.db")
		fault := &restoreFaultFS{FS: fsys.OS}
		fault.left.Store(int64(n))
		r := newRestorer(s.client, path, restoreQuiet())
		r.fsys, r.memory = fault, 0
		_, err := r.run(context.Background(), plan)
		if fault.left.Load() > 0 {
			if n < 10 || err != nil {
				t.Fatalf("only %d steps: %v", n, err)
			}
			return
		}
		if !errors.Is(err, errRestoreFault) {
			t.Fatalf("step %d: %v", n, err)
		}
		restoreOnly(t, path)
	}
}
