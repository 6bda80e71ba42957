//go:build unix

package litestream_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"example.com/litestream"
)

// What is no regular file, in the place of any file of the replica, is as good
// as missing: no restore waits for it, follows it to write, or takes it for
// data.
func TestHostile_IrregularFilesInDirectories(t *testing.T) {
	hostileDirs(t, func(t *testing.T, run *hostileRun, d *hostileDir, c litestream.ReplicaClient) {
		outside := t.TempDir()
		content := filepath.Join(outside, "content")
		if err := os.WriteFile(content, run.files[0].data, 0o600); err != nil {
			t.Fatal(err)
		}
		before := treeOf(t, outside)
		n := 0
		for _, m := range run.mutations() {
			var f hostileFile
			for _, f = range run.files {
				if m.what == f.name()+": dropped" {
					break
				}
			}
			if m.what != f.name()+": dropped" {
				continue
			}
			for what, place := range map[string]func(path string) error{
				"named pipe":          func(path string) error { return syscall.Mkfifo(path, 0o600) },
				"directory":           func(path string) error { return os.Mkdir(path, 0o700) },
				"link to a file":      func(path string) error { return os.Symlink(content, path) },
				"link to a directory": func(path string) error { return os.Symlink(outside, path) },
				"link to a device":    func(path string) error { return os.Symlink("/dev/zero", path) },
				"link to itself":      func(path string) error { return os.Symlink(filepath.Base(path), path) },
				"link to nowhere":     func(path string) error { return os.Symlink(filepath.Join(outside, "new"), path) },
			} {
				n++
				m := mutation{what: fmt.Sprintf("%s: %s", f.name(), what), names: m.names, unseen: m.unseen}
				back := d.replaceBy(t, f, place)
				mustNotWait(t, m.what, func() { run.one(t, m, c, n) })
				back()
				d.set(t, run.files)
			}
		}
		if n != 7*len(run.files) {
			t.Errorf("%d files in %d replacements", len(run.files), n)
		}
		mustBeUntouched(t, outside, before)
		run.log(t, n)
	})
}

// Directories of the replica that are links or other things.
func TestHostile_IrregularDirectories(t *testing.T) {
	hostileDirs(t, func(t *testing.T, run *hostileRun, d *hostileDir, c litestream.ReplicaClient) {
		outside := t.TempDir()
		if err := os.WriteFile(filepath.Join(outside, "x"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := treeOf(t, outside)
		generation := filepath.Join(d.path, "generations", run.b)
		n := 0
		for _, dir := range []string{generation, filepath.Join(generation, "snapshots"), filepath.Join(generation, "wal")} {
			for what, place := range map[string]func(path string) error{
				"link out":        func(path string) error { return os.Symlink(outside, path) },
				"link up":         func(path string) error { return os.Symlink("..", path) },
				"link to itself":  func(path string) error { return os.Symlink(filepath.Base(path), path) },
				"link to nowhere": func(path string) error { return os.Symlink("nowhere", path) },
				"named pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
				"file":            func(path string) error { return os.WriteFile(path, nil, 0o600) },
				"socket": func(path string) error {
					// The name of a socket must be short.
					dir, err := os.MkdirTemp("", "")
					if err != nil {
						return err
					}
					defer os.RemoveAll(dir)
					l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
					if err != nil {
						return err
					}
					l.SetUnlinkOnClose(false)
					defer l.Close()
					return os.Rename(filepath.Join(dir, "s"), path)
				},
			} {
				n++
				if err := os.Rename(dir, dir+".away"); err != nil {
					t.Fatal(err)
				}
				if err := place(dir); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				// Without its WAL a snapshot is complete by itself, as that of
				// an empty WAL is.
				m := mutation{what: dir + " is a " + what}
				mustNotWait(t, m.what, func() { run.one(t, m, c, n) })
				if err := os.Remove(dir); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(dir+".away", dir); err != nil {
					t.Fatal(err)
				}
			}
		}
		mustBeUntouched(t, outside, before)
		run.log(t, n)
	})
}

// mustNotWait fails the test if fn waits for what never comes.
func mustNotWait(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s: the restore waits", what)
	}
}
