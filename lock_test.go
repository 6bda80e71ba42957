package litestream

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// PITFALLS row 17
func TestLockManagerExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := lockManager(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockManager(path); !errors.Is(err, ErrDatabaseLocked) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "this process") {
		t.Errorf("second lock: %v", err)
	}
	// As another process sees it: without this one's list.
	managers.Lock()
	delete(managers.paths, path)
	managers.Unlock()
	_, err = lockManager(path)
	if !errors.Is(err, ErrDatabaseLocked) {
		t.Fatalf("lock of another process: %v", err)
	}
	if b, rerr := os.ReadFile(path); rerr != nil || !strings.Contains(err.Error(), strings.TrimSpace(string(b))) || !strings.Contains(string(b), "process ") {
		t.Errorf("%v does not name the holder %q", err, b)
	}
	if err := l.unlock(); err != nil {
		t.Fatal(err)
	}
	l, err = lockManager(path)
	if err != nil {
		t.Fatalf("lock after unlock: %v", err)
	}
	if err := l.unlock(); err != nil {
		t.Error(err)
	}
	if _, err := lockManager(filepath.Join(path, "none")); err == nil || errors.Is(err, ErrDatabaseLocked) {
		t.Errorf("lock below a file: %v", err)
	}
	if _, err := lockManager(filepath.Join(t.TempDir(), "none", "lock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock in no directory: %v", err)
	}
}

func TestDescribeHolder(t *testing.T) {
	if got := describeHolder(" \n"); got != "another process" {
		t.Errorf("got %q", got)
	}
	if got := describeHolder("process 1 on a\n"); got != "process 1 on a" {
		t.Errorf("got %q", got)
	}
}
