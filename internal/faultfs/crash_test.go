package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.com/litestream/internal/fsys"
)

// crashTree is what a crash test works on.
type crashTree struct {
	t   *testing.T
	fs  *CrashFS
	dir string
}

func (c *crashTree) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *crashTree) path(name string) string { return filepath.Join(c.dir, name) }

// write writes s at the start of a file, which need not exist.
func (c *crashTree) write(name, s string, sync bool) {
	c.t.Helper()
	f, err := c.fs.OpenFile(c.path(name), os.O_CREATE|os.O_WRONLY, 0o600)
	c.must(err)
	_, err = f.Write([]byte(s))
	c.must(err)
	if sync {
		c.must(f.Sync())
	}
	c.must(f.Close())
}

func (c *crashTree) rename(from, to string) {
	c.t.Helper()
	c.must(c.fs.Rename(c.path(from), c.path(to)))
}
func (c *crashTree) mkdir(name string)   { c.t.Helper(); c.must(c.fs.Mkdir(c.path(name), 0o700)) }
func (c *crashTree) remove(name string)  { c.t.Helper(); c.must(c.fs.Remove(c.path(name))) }
func (c *crashTree) syncDir(name string) { c.t.Helper(); c.must(c.fs.SyncDir(c.path(name))) }

// String lists names and contents, each run of bytes as its letter.
func (c *crashTree) String() string {
	var a []string
	c.must(filepath.WalkDir(c.dir, func(path string, ent fs.DirEntry, err error) error {
		if err != nil || path == c.dir {
			return err
		}
		rel, _ := filepath.Rel(c.dir, path)
		if ent.IsDir() {
			a = append(a, rel+"/")
			return nil
		}
		b, err := os.ReadFile(path)
		a = append(a, rel+"="+runs(b))
		return err
	}))
	return strings.Join(a, " ")
}

// runs shortens each 512 bytes that are equal to one letter; a dot is zero.
func runs(b []byte) string {
	var sb strings.Builder
	for chunk := range slices.Chunk(b, 512) {
		if r := chunk[0]; len(bytes.Trim(chunk, string(rune(r)))) > 0 {
			sb.WriteByte('?')
		} else if r == 0 {
			sb.WriteByte('.')
		} else {
			sb.WriteByte(r)
		}
	}
	return sb.String()
}

func sector(r string) string { return strings.Repeat(r, 512) }

// outcomes crashes after setup with many seeds, more of them while one of the
// wanted outcomes is missing, and counts what is left. Some seeds are tried
// twice: they decide alone.
func outcomes(t *testing.T, setup func(*crashTree), want ...string) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	root := t.TempDir()
	missing := func(s string) bool { return counts[s] == 0 }
	for seed := range uint64(1000) {
		if seed >= 60 && !slices.ContainsFunc(want, missing) {
			break
		}
		left := make([]string, 1)
		if seed < 10 {
			left = make([]string, 2)
		}
		for i := range left {
			c := &crashTree{t: t, dir: filepath.Join(root, fmt.Sprint(seed, "-", i))}
			c.must(os.Mkdir(c.dir, 0o700))
			c.fs = NewCrash(fsys.OS, c.dir)
			setup(c)
			c.must(c.fs.Crash(seed))
			left[i] = c.String()
			c.must(c.fs.Crash(seed + 1)) // the outcome is durable
			if got := c.String(); got != left[i] {
				t.Fatalf("seed %d: a second crash makes %q of %q", seed, got, left[i])
			}
		}
		if last := left[len(left)-1]; left[0] != last {
			t.Fatalf("seed %d leads to %q and to %q", seed, left[0], last)
		}
		counts[left[0]]++
	}
	return counts
}

// What survives is exactly what may: each outcome that is listed occurs, and no
// other does.
func TestCrashLeavesWhatAPowerLossCould(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(c *crashTree)
		want  []string
	}{
		{"everything synced", func(c *crashTree) {
			c.mkdir("d")
			c.syncDir("")
			c.write("d/a", "x", true)
			c.syncDir("d")
		}, []string{"d/ d/a=x"}},
		{"content not synced", func(c *crashTree) {
			c.write("a", sector("x"), false)
			c.syncDir("")
		}, []string{"a=", "a=x", "a=."}},
		{"content synced by a descriptor for reading", func(c *crashTree) {
			c.write("a", sector("x"), false)
			c.syncDir("")
			f, err := c.fs.OpenFile(c.path("a"), os.O_RDONLY, 0)
			c.must(err)
			c.must(f.Sync())
			c.must(f.Close())
		}, []string{"a=x"}},
		{"content rewritten, not synced", func(c *crashTree) {
			c.write("a", sector("o")+sector("o"), true)
			c.syncDir("")
			c.write("a", sector("n"), false)
		}, []string{"a=oo", "a=no", "a=.o"}},
		{"content extended, not synced", func(c *crashTree) {
			c.write("a", sector("o"), true)
			c.syncDir("")
			c.write("a", sector("o")+sector("n"), false)
		}, []string{"a=o", "a=on", "a=o."}},
		{"name not synced", func(c *crashTree) {
			c.write("a", sector("x"), true)
		}, []string{"", "a=x"}},
		{"two names not synced", func(c *crashTree) {
			c.write("a", "x", true)
			c.write("b", "y", true)
		}, []string{"", "a=x", "b=y", "a=x b=y"}},
		{"directory not synced", func(c *crashTree) {
			c.mkdir("d")
			c.write("d/a", "x", true)
			c.syncDir("d")
		}, []string{"", "d/ d/a=x"}},
		{"rename not synced", func(c *crashTree) {
			c.write("old", "x", true)
			c.syncDir("")
			c.rename("old", "new")
		}, []string{"old=x", "new=x"}},
		{"neither the name nor the rename synced", func(c *crashTree) {
			c.write("old", "x", true)
			c.rename("old", "new")
		}, []string{"", "old=x", "new=x"}},
		{"rename over a durable file", func(c *crashTree) {
			c.write("a", "o", true)
			c.syncDir("")
			c.write("a.tmp", "n", true)
			c.rename("a.tmp", "a")
		}, []string{"a=o", "a=n", "a=o a.tmp=n"}},
		{"rename of what was not synced, over a durable file", func(c *crashTree) {
			c.write("a", sector("o"), true)
			c.write("a.tmp", sector("n"), false)
			c.syncDir("")
			c.rename("a.tmp", "a")
			c.syncDir("")
		}, []string{"a=", "a=n", "a=."}},
		{"rename synced", func(c *crashTree) {
			c.write("old", "x", true)
			c.rename("old", "new")
			c.syncDir("")
		}, []string{"new=x"}},
		{"removal not synced", func(c *crashTree) {
			c.mkdir("d")
			c.write("d/a", "x", true)
			c.syncDir("d")
			c.syncDir("")
			c.remove("d/a")
			c.remove("d")
		}, []string{"", "d/", "d/ d/a=x"}},
		{"removal synced", func(c *crashTree) {
			c.write("a", "x", true)
			c.syncDir("")
			c.remove("a")
			c.syncDir("")
		}, []string{""}},
		{"hard link in the place of a rename", func(c *crashTree) {
			c.write("tmp", "x", true)
			c.must(c.fs.Link(c.path("tmp"), c.path("a")))
			c.syncDir("")
			c.remove("tmp")
		}, []string{"a=x", "a=x tmp=x"}},
		{"not written through the seam", func(c *crashTree) {
			c.must(os.WriteFile(c.path("db"), []byte("x"), 0o600))
			c.must(os.Mkdir(c.path("d"), 0o700))
			c.must(os.WriteFile(c.path("d/lock"), []byte("y"), 0o600))
			c.write("d/a", "z", true)
			c.must(os.WriteFile(c.path("db"), []byte("z"), 0o600))
		}, []string{"d/ d/lock=y db=z", "d/ d/a=z d/lock=y db=z"}},
		{"removed behind its back", func(c *crashTree) {
			c.write("a", "x", true)
			c.syncDir("")
			c.must(os.Remove(c.path("a")))
		}, []string{""}},
		{"existed before", func(c *crashTree) {
			c.must(os.WriteFile(c.path("a"), []byte(sector("o")), 0o600))
			c.write("a", sector("n"), false)
		}, []string{"a=o", "a=n", "a=."}},
		{"truncated", func(c *crashTree) {
			c.write("a", sector("o")+sector("o"), true)
			c.syncDir("")
			f, err := c.fs.OpenFile(c.path("a"), os.O_RDWR|os.O_TRUNC, 0)
			c.must(err)
			c.must(f.Close())
		}, []string{"a=", "a=o", "a=.", "a=oo", "a=o.", "a=.o", "a=.."}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := outcomes(t, test.setup, test.want...)
			for _, want := range test.want {
				if got[want] == 0 {
					t.Errorf("never left: %q", want)
				}
				delete(got, want)
			}
			for left, n := range got {
				t.Errorf("left %d times: %q", n, left)
			}
		})
	}
}

// A large file is torn in many ways, but what was synced and not rewritten
// since stays.
func TestCrashTearsBlocks(t *testing.T) {
	got := outcomes(t, func(c *crashTree) {
		c.write("a", strings.Repeat(sector("o"), 24), true)
		c.syncDir("")
		f, err := c.fs.OpenFile(c.path("a"), os.O_RDWR, 0)
		c.must(err)
		_, err = f.WriteAt([]byte(strings.Repeat(sector("n"), 8)), 8*512)
		c.must(err)
		c.must(f.Close())
	}, "a="+strings.Repeat("o", 24), "a=oooooooo........oooooooo", "a=oooooooonnnnnnnnoooooooo")
	shapes := map[string]bool{}
	for left := range got {
		if len(left) != len("a=")+24 {
			t.Fatalf("left %q, want 24 sectors", left)
		}
		if a := left[2:]; a[:8] != "oooooooo" || a[16:] != "oooooooo" {
			t.Errorf("lost what was synced: %q", left)
		} else {
			shapes[a[8:16]] = true
		}
	}
	if len(shapes) < 10 || !shapes["oooooooo"] || !shapes["nnnnnnnn"] || !shapes["........"] {
		t.Errorf("only %d ways: %q", len(shapes), slices.Sorted(maps.Keys(shapes)))
	}
}

func TestCrashFSRefusesWhatItDoesNotModel(t *testing.T) {
	c := &crashTree{t: t, dir: t.TempDir()}
	c.fs = NewCrash(fsys.OS, c.dir)
	c.mkdir("d")
	c.write("a", "x", true)
	for name, err := range map[string]error{
		"rename": c.fs.Rename(c.path("a"), c.path("d/a")),
		"link":   c.fs.Link(c.path("a"), c.path("d/a")),
	} {
		if !errors.Is(err, errOtherDirectory) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.fs.SyncDir(c.path("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sync of no directory: %v", err)
	}
	// Files elsewhere are passed on.
	out := filepath.Join(t.TempDir(), "b")
	f, err := c.fs.OpenFile(out, os.O_CREATE|os.O_RDWR, 0o600)
	c.must(err)
	_, err = fmt.Fprint(f, "y")
	c.must(err)
	c.must(f.Close())
	c.must(c.fs.Crash(1))
	if b, err := os.ReadFile(out); err != nil || string(b) != "y" {
		t.Errorf("file outside the root: %q, %v", b, err)
	}
}
