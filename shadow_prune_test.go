package litestream

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

func mustBeGone(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

// A directory that cannot be removed is not forgotten.
func TestShadowPrune_FailuresAreTriedAgain(t *testing.T) {
	stop := stopDatabases(t)
	for _, op := range []string{faultfs.Lstat, faultfs.ReadDir, faultfs.Remove} {
		s := stop(t)
		fsy := faultfs.New(fsys.OS)
		s.capt.fs, s.capt.shadow.fs = fsy, fsy
		if err := s.capt.resume(); err != nil {
			t.Fatal(err)
		}
		meta, generation := s.capt.shadow.meta, s.pos.Generation
		other := meta.generation("00000000000000aa")
		if err := os.MkdirAll(filepath.Join(other, "wal"), 0o700); err != nil {
			t.Fatal(err)
		}
		fsy.FailOn(op, faultfs.EIO)
		if err := s.capt.shadow.prune(1); !errors.Is(err, faultfs.EIO) {
			t.Errorf("%s: %v", op, err)
		}
		if err := s.capt.shadow.removeOthers(generation); !errors.Is(err, faultfs.EIO) {
			t.Errorf("%s: %v", op, err)
		}
		fsy.Reset()
		if op == faultfs.ReadDir { // then nobody knows of it before the next open
			if err := s.capt.resume(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.capt.shadow.prune(1); err != nil {
			t.Errorf("%s: again: %v", op, err)
		}
		mustBeGone(t, meta.indexDir(generation, 0))
		mustBeGone(t, other)
		if n := len(s.segments(t, 1)); n < 4 || s.capt.pos != s.pos {
			t.Errorf("%s: %d segments are left, at %s", op, n, s.capt.pos)
		}
	}
}

// What a crash left of an index that was being pruned, or of another
// generation, goes at the next open.
func TestShadowPrune_OpenRemovesWhatNobodyCanUse(t *testing.T) {
	stop := stopDatabases(t)
	for name, damage := range map[string]func(names []string) error{
		"half pruned": func(names []string) error { return os.Remove(names[0]) },
		"torn":        func(names []string) error { return os.Truncate(names[len(names)-1], 20) },
	} {
		s := stop(t)
		if err := damage(s.segments(t, 0)); err != nil {
			t.Fatal(err)
		}
		other := s.capt.shadow.meta.generation("00000000000000aa")
		if err := os.MkdirAll(filepath.Join(other, "wal"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.capt.resume(); err != nil {
			t.Fatal(err)
		}
		if s.capt.pos != s.pos {
			t.Errorf("%s: at %s, want %s", name, s.capt.pos, s.pos)
		}
		mustBeGone(t, s.capt.shadow.meta.indexDir(s.pos.Generation, 0))
		mustBeGone(t, other)
		s.segments(t, 1)
	}
}
