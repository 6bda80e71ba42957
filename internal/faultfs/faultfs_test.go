package faultfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"example.com/litestream/internal/fsys"
)

// useAll performs every operation once, in the order of the returned names,
// and returns the first error.
func useAll(f *FS, dir string) ([]string, error) {
	name := filepath.Join(dir, "a")
	var file fsys.File
	var buf [1]byte
	steps := []struct {
		name string
		call func() error
	}{
		{Mkdir, func() error { return f.Mkdir(dir, 0o700) }},
		{Create, func() (err error) {
			file, err = f.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
			return err
		}},
		{Write, func() error { _, err := file.Write([]byte("x")); return err }},
		{Write, func() error { _, err := file.WriteAt([]byte("y"), 0); return err }},
		{Seek, func() error { _, err := file.Seek(0, 0); return err }},
		{Read, func() error { _, err := file.Read(buf[:]); return err }},
		{Read, func() error { _, err := file.ReadAt(buf[:], 0); return err }},
		{FileStat, func() error { _, err := file.Stat(); return err }},
		{Truncate, func() error { return file.Truncate(1) }},
		{Sync, func() error { return file.Sync() }},
		{Close, func() error { return file.Close() }},
		{Chown, func() error { return f.Chown(name, -1, -1) }},
		{Stat, func() error { _, err := f.Stat(name); return err }},
		{Lstat, func() error { _, err := f.Lstat(name); return err }},
		{Link, func() error { return f.Link(name, name+"2") }},
		{Rename, func() error { return f.Rename(name, name+"3") }},
		{ReadDir, func() error { _, err := f.ReadDir(dir); return err }},
		{SyncDir, func() error { return f.SyncDir(dir) }},
		{Remove, func() error { return f.Remove(name + "2") }},
	}
	var names []string
	for _, s := range steps {
		names = append(names, s.name)
		if err := s.call(); err != nil {
			if file != nil && !slices.Contains(names, Close) {
				err = errors.Join(err, file.Close())
			}
			return names, err
		}
	}
	return names, nil
}

func TestEveryOperationIsCountedAndFails(t *testing.T) {
	all, err := useAll(New(fsys.OS), filepath.Join(t.TempDir(), "d"))
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	Every(fsys.OS, EIO, func(f *FS) {
		runs++
		names, err := useAll(f, filepath.Join(t.TempDir(), "d"))
		op, fired := f.Fault()
		if runs > len(all) {
			if fired || err != nil || f.Count() != len(all) {
				t.Errorf("run without fault: %v, fault %+v, %d operations of %d", err, op, f.Count(), len(all))
			}
			return
		}
		if !errors.Is(err, EIO) || op.N != runs || op.Name != all[runs-1] || len(names) != runs {
			t.Errorf("run %d: error %v, fault %+v, want %s", runs, err, op, all[runs-1])
		}
		if pe := (*fs.PathError)(nil); !errors.As(err, &pe) || pe.Path != op.Path {
			t.Errorf("run %d: error %v does not name %s", runs, err, op.Path)
		}
	})
	if runs != len(all)+1 {
		t.Errorf("%d runs for %d operations", runs, len(all))
	}
}

func TestShortWriteStoresHalf(t *testing.T) {
	f := New(fsys.OS)
	name := filepath.Join(t.TempDir(), "a")
	file, err := f.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.FailOn(Write, ShortWrite)
	n, err := file.Write([]byte("abcd"))
	if n != 2 || !errors.Is(err, ENOSPC) {
		t.Errorf("write: %d, %v", n, err)
	}
	if n, err = file.WriteAt([]byte("efgh"), 2); n != 2 || !errors.Is(err, ENOSPC) {
		t.Errorf("write at: %d, %v", n, err)
	}
	f.Reset()
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "abef" {
		t.Errorf("content %q, %v", b, err)
	}
}

func TestFailedCloseStillCloses(t *testing.T) {
	f := New(fsys.OS)
	file, err := f.OpenFile(filepath.Join(t.TempDir(), "a"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.FailOn(Close, EIO)
	if err := file.Close(); !errors.Is(err, EIO) {
		t.Errorf("close: %v", err)
	}
	f.Reset()
	if err := file.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

func TestConcurrentOperationsAreEachCountedOnce(t *testing.T) {
	f := New(fsys.OS)
	var mu sync.Mutex
	seen := map[int]int{}
	f.SetHook(func(op Op) error {
		mu.Lock()
		defer mu.Unlock()
		seen[op.N]++
		return EIO
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if err := f.Remove("x"); !errors.Is(err, EIO) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if f.Count() != 800 || len(seen) != 800 {
		t.Errorf("%d operations, %d numbers", f.Count(), len(seen))
	}
}
