package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

var (
	testOptions = Options{Mode: 0o600, Uid: os.Getuid(), Gid: os.Getgid(), Durable: true}
	oldContent  = []byte("old content")
	newContent  = bytes.Repeat([]byte("new"), 1000)
)

func init() {
	if os.Getuid() < 0 { // Windows has no owners to set
		testOptions.Uid, testOptions.Gid = -1, -1
	}
}

// fillTwice writes newContent in two pieces.
func fillTwice(f fsys.File) error {
	if _, err := f.Write(newContent[:1000]); err != nil {
		return err
	}
	_, err := f.Write(newContent[1000:])
	return err
}

// list returns the names in dir.
func list(t *testing.T, dir string) []string {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, ent := range ents {
		names = append(names, ent.Name())
	}
	return names
}

// content returns what the file holds, nil if it does not exist.
func content(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// testFaults runs call on a file, which held before if that is not nil, once
// for each operation and kind of fault, and checks what it leaves behind.
func testFaults(t *testing.T, before []byte, call func(fsy fsys.FS, name string) error) {
	t.Helper()
	testFaultsOf(t, before, true, call)
}

// testFaultsOf is testFaults of a call that may leave the new file behind, or
// not, when it cannot sync the directory.
func testFaultsOf(t *testing.T, before []byte, stays bool, call func(fsy fsys.FS, name string) error) {
	t.Helper()
	for _, kind := range []error{faultfs.EIO, faultfs.ENOSPC, faultfs.ShortWrite} {
		faults := 0
		for n := 1; ; n++ {
			dir := t.TempDir()
			name := filepath.Join(dir, "file")
			if before != nil {
				writeFile(t, name, before)
			}
			fsy := faultfs.New(fsys.OS)
			fsy.FailAt(n, kind)
			err := call(fsy, name)
			fault, fired := fsy.Fault()
			op := fmt.Sprintf("%v at %s %s", kind, fault.Name, filepath.Base(fault.Path))
			got := content(t, name)
			if !fired {
				if err != nil || !bytes.Equal(got, newContent) {
					t.Errorf("no fault: %v, %d bytes", err, len(got))
				}
				break
			}
			faults++
			complete := bytes.Equal(got, newContent)
			switch {
			case err == nil && fault.Name == faultfs.Link && complete: // the placeholder did instead
			case err == nil || !errors.Is(err, kind):
				t.Errorf("%s: reported as %v", op, err)
			case fault.Name == faultfs.SyncDir && stays && !complete:
				t.Errorf("%s: %q", op, got)
			case (fault.Name != faultfs.SyncDir || !stays) && (!bytes.Equal(got, before) || (got == nil) != (before == nil)):
				t.Errorf("%s: target holds %d bytes", op, len(got))
			}
			for _, ent := range list(t, dir) {
				if ent != "file" {
					t.Errorf("%s: %s left behind", op, ent)
				}
			}
		}
		if faults < 6 {
			t.Errorf("%v: only %d faults", kind, faults)
		}
	}
}

// noLinks is a file system without hard links.
type noLinks struct {
	fsys.FS
	err error
}

func (f noLinks) Link(string, string) error { return f.err }

// PITFALLS row 20
func TestWriteFaultLeavesOldFileOrCompleteNewOne(t *testing.T) {
	for _, before := range [][]byte{nil, oldContent} {
		testFaults(t, before, func(fsy fsys.FS, name string) error {
			return Write(fsy, name, testOptions, fillTwice)
		})
	}
}

// PITFALLS rows 20 and 37
func TestCreateFaultLeavesNothing(t *testing.T) {
	testFaultsOf(t, nil, false, func(fsy fsys.FS, name string) error {
		return Create(fsy, name, testOptions, fillTwice)
	})
	testFaultsOf(t, nil, false, func(fsy fsys.FS, name string) error {
		return Create(noLinks{fsy, syscall.EPERM}, name, testOptions, fillTwice)
	})
}

func TestFillErrorLeavesTargetAlone(t *testing.T) {
	want := errors.New("fill")
	name := filepath.Join(t.TempDir(), "file")
	writeFile(t, name, oldContent)
	err := Write(fsys.OS, name, testOptions, func(f fsys.File) error {
		if _, err := f.Write(newContent); err != nil {
			return err
		}
		return want
	})
	if !errors.Is(err, want) || !bytes.Equal(content(t, name), oldContent) {
		t.Errorf("%v, %q", err, content(t, name))
	}
	if got := list(t, filepath.Dir(name)); !slices.Equal(got, []string{"file"}) {
		t.Errorf("left %q", got)
	}
}

func TestDurableWriteSyncsFileThenRenamesThenSyncsDirectory(t *testing.T) {
	fsy := faultfs.New(fsys.OS)
	var ops []string
	fsy.SetHook(func(op faultfs.Op) error { ops = append(ops, op.Name); return nil })
	name := filepath.Join(t.TempDir(), "file")
	opt := Options{Mode: 0o600, Uid: -1, Gid: -1}
	if err := WriteBytes(fsy, name, opt, newContent); err != nil {
		t.Fatal(err)
	}
	if want := []string{"create", "write", "close", "rename"}; !slices.Equal(ops, want) {
		t.Errorf("not durable: %q, want %q", ops, want)
	}
	ops, opt.Durable = nil, true
	if err := WriteBytes(fsy, name, opt, newContent); err != nil {
		t.Fatal(err)
	}
	if want := []string{"create", "write", "sync", "close", "rename", "syncdir"}; !slices.Equal(ops, want) {
		t.Errorf("durable: %q, want %q", ops, want)
	}
}

// PITFALLS row 37
func TestCreateNeverReplaces(t *testing.T) {
	for _, fsy := range []fsys.FS{fsys.OS, noLinks{fsys.OS, syscall.EPERM}, noLinks{fsys.OS, syscall.ENOSYS}} {
		// Files that exist before, and that appear while the new one is written.
		for _, appears := range []bool{false, true} {
			dir := t.TempDir()
			name := filepath.Join(dir, "file")
			if !appears {
				writeFile(t, name, oldContent)
			}
			err := Create(fsy, name, testOptions, func(f fsys.File) error {
				if appears {
					writeFile(t, name, oldContent)
				}
				return fillTwice(f)
			})
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("create: %v", err)
			}
			if got := content(t, name); !bytes.Equal(got, oldContent) {
				t.Errorf("file holds %d bytes", len(got))
			}
			if got := list(t, dir); !slices.Equal(got, []string{"file"}) {
				t.Errorf("left %q", got)
			}
		}
	}
}

func TestOfConcurrentCreatesExactlyOneWins(t *testing.T) {
	for _, fsy := range []fsys.FS{fsys.OS, noLinks{fsys.OS, syscall.EPERM}} {
		for range 20 {
			name := filepath.Join(t.TempDir(), "file")
			var filled, done sync.WaitGroup // all have filled before one publishes
			errs := make([]error, 4)
			filled.Add(len(errs))
			for i := range errs {
				done.Go(func() {
					errs[i] = Create(fsy, name, testOptions, func(f fsys.File) error {
						_, err := f.Write([]byte{byte(i)})
						filled.Done()
						filled.Wait()
						return err
					})
				})
			}
			done.Wait()
			winner := -1
			for i, err := range errs {
				switch {
				case err == nil && winner < 0:
					winner = i
				case !errors.Is(err, fs.ErrExist):
					t.Errorf("create %d: %v, winner %d", i, err, winner)
				}
			}
			if got := content(t, name); winner < 0 || !bytes.Equal(got, []byte{byte(winner)}) {
				t.Errorf("winner %d, content %v", winner, got)
			}
			if got := list(t, filepath.Dir(name)); !slices.Equal(got, []string{"file"}) {
				t.Errorf("left %q", got)
			}
		}
	}
}

// A directory that a failed call left behind would be taken for durable by the
// next one.
// After one failed operation, and after a kill, when all that follow fail.
func TestRetryAfterMkdirAllFaultIsDurable(t *testing.T) {
	for _, killed := range []bool{false, true} {
		for n := 1; ; n++ {
			root := t.TempDir()
			dir := filepath.Join(root, "a", "b", "c")
			var fault faultfs.Op
			pending := map[string]bool{} // made, name not yet durable
			fsy := faultfs.New(fsys.OS)
			observe := func(op faultfs.Op) error {
				switch op.Name {
				case faultfs.Mkdir:
					pending[op.Path] = true
				case faultfs.Remove:
					delete(pending, op.Path)
				case faultfs.SyncDir:
					for made := range pending {
						if filepath.Dir(made) == op.Path {
							delete(pending, made)
						}
					}
				}
				return nil
			}
			fsy.SetHook(func(op faultfs.Op) error {
				if op.N == n || killed && op.N > n {
					fault = op
					return faultfs.EIO
				}
				return observe(op)
			})
			err := MkdirAll(fsy, dir, testOptions)
			if fault.N == 0 {
				if err != nil {
					t.Error(err)
				}
				break
			}
			if !errors.Is(err, faultfs.EIO) {
				t.Errorf("fault at %s %s: reported as %v", fault.Name, fault.Path, err)
			}
			fsy.SetHook(observe)
			if err := MkdirAll(fsy, dir, testOptions); err != nil {
				t.Errorf("retry after fault at %s %s: %v", fault.Name, fault.Path, err)
			}
			if info, err := os.Stat(dir); err != nil || !info.IsDir() || len(pending) > 0 {
				t.Errorf("retry after fault at %s %s: %v, not durable: %v", fault.Name, fault.Path, err, pending)
			}
		}
	}
}

// A directory that is not ours need not let us sync it.
func TestMkdirAllToleratesAForeignParent(t *testing.T) {
	root := t.TempDir()
	for kind, tolerated := range map[error]bool{syscall.EACCES: true, syscall.EROFS: true, faultfs.EIO: false} {
		fsy := faultfs.New(fsys.OS)
		fsy.FailOn(faultfs.SyncDir, kind)
		if err := MkdirAll(fsy, root, testOptions); (err == nil) != tolerated {
			t.Errorf("%v: %v", kind, err)
		}
	}
}

func TestMkdirAllRefusesFileInThePlaceOfDirectory(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	writeFile(t, name, oldContent)
	for _, dir := range []string{name, filepath.Join(name, "sub")} {
		if err := MkdirAll(fsys.OS, dir, testOptions); err == nil || !strings.Contains(err.Error(), "file") {
			t.Errorf("mkdir %s: %v", filepath.Base(dir), err)
		}
	}
}

// PITFALLS row 20
func TestSweepRemovesUnfinishedFilesOnly(t *testing.T) {
	keep := []string{"dir" + TempExt, "file", "file" + TempExt + "x"}
	faultfs.Every(fsys.OS, faultfs.EIO, func(fsy *faultfs.FS) {
		dir := t.TempDir()
		for _, name := range []string{"file", "file.tmpx", tempName("file"), "x.1-1.tmp"} {
			writeFile(t, filepath.Join(dir, name), oldContent)
		}
		if err := os.Mkdir(filepath.Join(dir, "dir.tmp"), 0o700); err != nil {
			t.Fatal(err)
		}
		err := Sweep(fsy, dir)
		if op, ok := fsy.Fault(); ok != (err != nil) {
			t.Errorf("fault %+v: %v", op, err)
		} else if ok {
			fsy.Reset()
			if err := Sweep(fsy, dir); err != nil {
				t.Errorf("retry after fault %+v: %v", op, err)
			}
		}
		if got := list(t, dir); !slices.Equal(got, keep) {
			t.Errorf("left %q, want %q", got, keep)
		}
	})
	if err := Sweep(fsys.OS, filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("no directory: %v", err)
	}
}

func TestSweepAbandonedSparesWorkInProgress(t *testing.T) {
	dir := t.TempDir()
	ours := tempName("ours")
	old := time.Now().Add(-time.Hour)
	for name, mtime := range map[string]time.Time{
		ours: old, "foreign-old.1-1.tmp": old, "foreign-new.1-1.tmp": time.Now(), "file": old,
	} {
		writeFile(t, filepath.Join(dir, name), oldContent)
		if err := os.Chtimes(filepath.Join(dir, name), mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		idle time.Duration
		want []string
	}{
		{time.Minute, []string{"file", "foreign-new.1-1.tmp", ours}},
		{0, []string{"file", ours}},
	} {
		if err := SweepAbandoned(fsys.OS, dir, step.idle); err != nil {
			t.Fatal(err)
		}
		if got := list(t, dir); !slices.Equal(got, step.want) {
			t.Errorf("idle %s: left %q, want %q", step.idle, got, step.want)
		}
	}
}

func TestRemoveAllFollowsNoLink(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	precious := filepath.Join(outside, "precious")
	writeFile(t, precious, oldContent)
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(tree, "sub", "file"), oldContent)
	top := filepath.Join(dir, "top")
	for _, link := range []string{filepath.Join(tree, "link"), filepath.Join(tree, "sub", "link"), top} {
		if err := os.Symlink(outside, link); err != nil {
			t.Skip(err) // Windows without the privilege
		}
	}
	for _, name := range []string{tree, top, filepath.Join(dir, "none")} {
		if err := RemoveAll(fsys.OS, name); err != nil {
			t.Error(err)
		}
	}
	if got := list(t, dir); len(got) != 0 {
		t.Errorf("left %q", got)
	}
	if !bytes.Equal(content(t, precious), oldContent) {
		t.Error("removed a file behind a link")
	}
}

func TestRemoveAllReportsEachFault(t *testing.T) {
	faultfs.Every(fsys.OS, faultfs.EIO, func(fsy *faultfs.FS) {
		dir := t.TempDir()
		tree := filepath.Join(dir, "tree")
		if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(tree, "sub", "file"), oldContent)
		err := RemoveAll(fsy, tree)
		if op, ok := fsy.Fault(); ok != errors.Is(err, faultfs.EIO) {
			t.Errorf("fault %+v: %v", op, err)
		}
		fsy.Reset()
		if err := RemoveAll(fsy, tree); err != nil || len(list(t, dir)) > 0 {
			t.Errorf("retry: %v, left %q", err, list(t, dir))
		}
	})
}

func TestSweepVersionsTakesOneFilesOwn(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "db")
	old := time.Now().Add(-time.Hour)
	for _, f := range []struct {
		name  string
		stays bool
	}{
		{"db", true},
		{"db.tmp", true},
		{"db.0123456789abcdef-1", true},
		{"db.0123456789abcdef-1.tmp", false},
		{"db.0123456789abcdef-12.tmp-0000000000000003.tmp", false},
		{"db.mine-1.tmp", true},
		{"db2.0123456789abcdef-1.tmp", true},
		{filepath.Base(tempName(name)), true}, // this process's
	} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := SweepVersions(fsys.OS, name, time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s did not stay while it was new: %v", f.name, err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		if err := SweepVersions(fsys.OS, name, time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (err == nil) != f.stays {
			t.Errorf("%s: %v", f.name, err)
		}
	}
}
