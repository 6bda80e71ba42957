//go:build unix

package fileclient

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/litestream"
)

// What is no regular file is not listed, and reading it is an error at once: a
// named pipe would make the reader wait for a writer, for ever.
func TestWhatIsNoRegularFileIsNotRead(t *testing.T) {
	for what, place := range map[string]func(name string) error{
		"named pipe":        func(name string) error { return syscall.Mkfifo(name, 0o600) },
		"directory":         func(name string) error { return os.Mkdir(name, 0o700) },
		"link to a device":  func(name string) error { return os.Symlink("/dev/zero", name) },
		"link to itself":    func(name string) error { return os.Symlink(filepath.Base(name), name) },
		"link to nowhere":   func(name string) error { return os.Symlink("nowhere", name) },
		"link to directory": func(name string) error { return os.Symlink(".", name) },
	} {
		c := newClient(t)
		for _, name := range []string{
			"snapshots/0000000000000001.snapshot.lz4", "snapshots/00000002.snapshot.lz4",
			"wal/0000000000000001/0000000000000000.wal.lz4", "wal/00000002_00000000.wal.lz4",
		} {
			path := put(t, c, name, "")
			if err := errors.Join(os.Remove(path), place(path)); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := listSnapshots(t, c), listSegments(t, c); len(a)+len(b) > 0 {
			t.Errorf("%s: listed %v, %v", what, a, b)
		}
		for index := 1; index <= 2; index++ {
			errs := [2]chan error{}
			for i, read := range []func() error{
				func() error { _, err := c.SnapshotReader(t.Context(), gen, index); return err },
				func() error { _, err := c.WALSegmentReader(t.Context(), pos(index, 0)); return err },
			} {
				errs[i] = newResult(read)
			}
			for _, result := range errs {
				select {
				case err := <-result:
					missing := what == "link to nowhere"
					if err == nil || errors.Is(err, fs.ErrNotExist) != missing || !strings.Contains(err.Error(), litestream.FormatIndex(index)) {
						t.Errorf("%s, index %d: %v", what, index, err)
					}
				case <-time.After(time.Minute):
					t.Fatalf("%s, index %d: the reader waits", what, index)
				}
			}
		}
		if err := c.DeleteGeneration(t.Context(), gen); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func newResult(call func() error) chan error {
	result := make(chan error, 1)
	go func() { result <- call() }()
	return result
}
