package litestream_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// hostileDir is a replica in a directory, in one of two layouts.
type hostileDir struct {
	path string
	name func(hostileFile) string
	now  map[string]hostileFile // what it holds, by name
}

// set makes the directory hold files, and nothing else of those it held.
func (d *hostileDir) set(t *testing.T, files []hostileFile) {
	t.Helper()
	want := map[string]hostileFile{}
	for _, f := range files {
		want[d.name(f)] = f
	}
	for name := range d.now {
		if _, ok := want[name]; !ok {
			if err := os.Remove(filepath.Join(d.path, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, f := range want {
		old, ok := d.now[name]
		if ok && bytes.Equal(old.data, f.data) && old.at.Equal(f.at) {
			continue
		}
		path := filepath.Join(d.path, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err = errors.Join(err, os.WriteFile(path, f.data, 0o600), os.Chtimes(path, f.at, f.at)); err != nil {
			t.Fatal(err)
		}
	}
	d.now = want
}

// hostileDirs calls fn for a sound replica in each layout.
func hostileDirs(t *testing.T, fn func(t *testing.T, run *hostileRun, d *hostileDir, c litestream.ReplicaClient)) {
	for layout, name := range map[string]func(hostileFile) string{"v0.4": hostileFile.name, "v0.3": hostileFile.v03Name} {
		t.Run(layout, func(t *testing.T) {
			run := newHostileRun(t)
			d := &hostileDir{path: t.TempDir(), name: name}
			d.set(t, run.files)
			c := fileclient.NewFileReplicaClient(d.path)
			run.all(t, mutation{what: "nothing"}, c)
			if run.good != run.restores || run.unseen > 0 {
				t.Fatalf("%d of %d restores of a sound replica succeed, %d are wrong", run.good, run.restores, run.unseen)
			}
			fn(t, run, d, c)
		})
	}
}

// PITFALLS row 14, in directories
func TestHostile_EveryFileInDirectories(t *testing.T) {
	hostileDirs(t, func(t *testing.T, run *hostileRun, d *hostileDir, c litestream.ReplicaClient) {
		mutations := some(t, run.mutations())
		for n, m := range mutations {
			d.set(t, m.files)
			run.one(t, m, c, n)
		}
		run.log(t, len(mutations))
	})
}

// Names that are not those of a replica's files are left alone.
func TestHostile_StrangeNamesInDirectories(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems do not have all of these names")
	}
	hostileDirs(t, func(t *testing.T, run *hostileRun, d *hostileDir, c litestream.ReplicaClient) {
		n := 0
		for _, generation := range []string{run.a, run.b} {
			segment := slices.IndexFunc(run.files, func(f hostileFile) bool { return !f.snapshot })
			snapshot := slices.IndexFunc(run.files, func(f hostileFile) bool { return f.snapshot })
			for _, f := range []hostileFile{run.files[segment], run.files[snapshot]} {
				for _, base := range []string{
					".", "..", "...", "~", "-rf", "\n", "\x01", `..\..\x`, "%2e%2e%2f", "*", "\xff\xfe", strings.Repeat("x", 200),
					"ffffffffffffffff", "8000000000000000", "-000000000000001", "+000000000000001", " 000000000000001",
					"000000000000000A", "0x00000000000001", "1", "", "0000000000000001.0000000000000001", "00000001_", "_00000001",
					"00000001_-0000001", "-0000001_00000000", "00000000_ffffffffffffffff",
				} {
					for _, dir := range []string{"", "snapshots", "wal", "wal/0000000000000001", "wal/ffffffffffffffff", "wal/-000000000000001", "wal/.."} {
						name := base + litestream.WALSegmentExt
						if f.snapshot {
							name = base + litestream.SnapshotExt
						}
						path := filepath.Join(d.path, "generations", generation, dir, name)
						if dir == "wal/.." {
							path = filepath.Join(d.path, "generations", base+"x", "snapshots", name)
						}
						if _, err := os.Lstat(path); err == nil || !filepath.IsLocal(base) && base != "" {
							continue
						}
						if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
							t.Fatal(err)
						}
						if err := os.WriteFile(path, f.data, 0o600); err != nil {
							t.Fatal(err)
						}
						n++
					}
				}
			}
		}
		before := *run
		run.all(t, mutation{what: "strange names"}, c)
		if n < 500 || run.good-before.good != run.restores-before.restores || run.unseen > 0 {
			t.Errorf("beside %d strange names %d of %d restores succeed, %d are wrong", n,
				run.good-before.good, run.restores-before.restores, run.unseen)
		}
		run.log(t, n)
	})
}

// replaceBy replaces a file of the replica by something else for the time of a
// test's step, and returns what puts it back.
func (d *hostileDir) replaceBy(t *testing.T, f hostileFile, place func(path string) error) (restore func()) {
	t.Helper()
	path := filepath.Join(d.path, d.name(f))
	if err := errors.Join(os.Remove(path), place(path)); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		delete(d.now, d.name(f))
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

// treeOf describes everything below a directory.
func treeOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, ent fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := ent.Info()
		if err != nil {
			return err
		}
		line := path + " " + info.Mode().String()
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		names = append(names, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func mustBeUntouched(t *testing.T, dir string, before []string) {
	t.Helper()
	if after := treeOf(t, dir); !slices.Equal(before, after) {
		t.Errorf("%s was changed: %d entries, %d before", dir, len(after), len(before))
	}
}
