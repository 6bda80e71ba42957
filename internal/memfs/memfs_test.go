package memfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"example.com/litestream/internal/fsys"
)

// class tells what a caller can match of an error.
func class(err error) string {
	switch {
	case err == nil:
		return "no error"
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case errors.Is(err, fs.ErrExist):
		return "exists"
	case err == io.EOF:
		return "end of file"
	}
	return "other error"
}

// side is one of two file systems that get the same calls.
type side struct {
	fsys.FS
	root string
	open []fsys.File
}

// step makes one call, drawn from r, and returns what a caller sees of it.
func (s *side) step(r *rand.Rand) string {
	files := []string{"a", "b", "dir/a", "dir/b", "missing/a"}
	pick := func() string { return files[r.IntN(len(files))] }
	path := func(name string) string { return filepath.Join(s.root, name) }
	data := bytes.Repeat([]byte{byte(r.IntN(256))}, 1+r.IntN(50))
	switch op := r.IntN(12); op {
	case 0:
		return "mkdir dir: " + class(s.Mkdir(path("dir"), 0o700))
	case 1:
		return "remove dir: " + class(s.Remove(path("dir")))
	case 2:
		name := pick()
		return "remove " + name + ": " + class(s.Remove(path(name)))
	case 3:
		from, to := pick(), pick()
		return "rename " + from + " " + to + ": " + class(s.Rename(path(from), path(to)))
	case 4:
		from, to := pick(), pick()
		return "link " + from + " " + to + ": " + class(s.Link(path(from), path(to)))
	case 5:
		name := pick()
		info, err := s.Stat(path(name))
		if err != nil {
			return "stat " + name + ": " + class(err)
		}
		return fmt.Sprintf("stat %s: %s, %d bytes, directory %v, regular %v", name, info.Name(), info.Size(), info.IsDir(), info.Mode().IsRegular())
	case 6:
		dir := []string{".", "dir", "missing"}[r.IntN(3)]
		ents, err := s.ReadDir(path(dir))
		text := "list " + dir + ": " + class(err)
		for _, ent := range ents {
			text += fmt.Sprintf(" %s %v", ent.Name(), ent.IsDir())
		}
		return text
	case 7, 8:
		name, flag := pick(), os.O_RDWR
		for _, f := range []int{os.O_CREATE, os.O_CREATE, os.O_TRUNC, os.O_EXCL} {
			if r.IntN(3) == 0 {
				flag |= f
			}
		}
		if flag&os.O_CREATE == 0 {
			flag &^= os.O_EXCL // undefined by itself
		}
		f, err := s.OpenFile(path(name), flag, 0o600)
		if err == nil {
			s.open = append(s.open, f)
		}
		return fmt.Sprintf("open %s %#x: %s", name, flag, class(err))
	default:
		if len(s.open) == 0 {
			return "nothing is open"
		}
		f := s.open[r.IntN(len(s.open))]
		off, whence, which := int64(r.IntN(100)), r.IntN(3), r.IntN(6)
		switch which {
		case 0:
			n, err := f.Write(data)
			return fmt.Sprintf("write %d: %s", n, class(err))
		case 1:
			n, err := f.WriteAt(data, off)
			return fmt.Sprintf("write %d at %d: %s", n, off, class(err))
		case 2:
			b := make([]byte, 40)
			n, err := f.Read(b)
			return fmt.Sprintf("read %x: %s", b[:n], class(err))
		case 3:
			b := make([]byte, 40)
			n, err := f.ReadAt(b, off)
			return fmt.Sprintf("read %x at %d: %s", b[:n], off, class(err))
		case 4:
			at, err := f.Seek(off-20, whence)
			if err != nil {
				return "seek: " + class(err)
			}
			return fmt.Sprintf("seek to %d", at)
		default:
			info, err := f.Stat()
			if err := errors.Join(err, f.Truncate(off), f.Sync()); err != nil {
				return "truncate: " + class(err)
			}
			return fmt.Sprintf("truncate %d to %d", info.Size(), off)
		}
	}
}

// state returns the path and the content of every file.
func (s *side) state(t *testing.T, names []string) (text string) {
	t.Helper()
	for _, name := range names {
		f, err := s.OpenFile(name, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(s.root, name)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("%s %x\n", rel, b)
	}
	return text
}

// The same calls have the same results as on the file system of the operating
// system, whatever their order, on names and on files that stay open.
func TestFSBehavesAsThatOfTheSystem(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("what is open cannot be renamed or removed there")
	}
	for seed := range uint64(100) {
		disk := &side{FS: fsys.OS, root: t.TempDir()}
		memory := &side{FS: New("/m"), root: "/m"}
		r1, r2 := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 1))
		for i := range 300 {
			want, got := disk.step(r1), memory.step(r2)
			if got != want {
				t.Fatalf("seed %d, call %d: %s, want %s", seed, i, got, want)
			}
		}
		var names []string
		if err := filepath.WalkDir(disk.root, func(name string, ent fs.DirEntry, err error) error {
			if err == nil && !ent.IsDir() {
				names = append(names, name)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		if got, want := memory.state(t, memory.FS.(*FS).Files(memory.root)), disk.state(t, names); got != want {
			t.Fatalf("seed %d: memory holds\n%swant\n%s", seed, got, want)
		}
		for i, f := range disk.open {
			if err := errors.Join(f.Close(), memory.open[i].Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDamageIsSeenByThoseThatHaveTheFileOpen(t *testing.T) {
	fsy := New("/m")
	f, err := fsy.OpenFile("/m/a", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("whole")); err != nil {
		t.Fatal(err)
	}
	fsy.Damage("/m/a", func(b []byte) []byte { return b[:2] })
	fsy.Damage("/m/missing", func([]byte) []byte { t.Error("a file that does not exist is damaged"); return nil })
	b := make([]byte, 5)
	if n, err := f.ReadAt(b, 0); n != 2 || err != io.EOF || string(b[:n]) != "wh" {
		t.Errorf("read %q, error %v", b[:n], err)
	}
}
