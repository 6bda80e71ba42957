package litestream

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// The descriptor of a deleted database is closed when the next one is parked,
// unless someone uses it, or the file has another name.
func TestParked_DeletedFileIsClosed(t *testing.T) {
	dir := t.TempDir()
	park := func(name string) *parkedFile {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := parkDatabase(path)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(p *parkedFile) bool {
		_, err := p.f.Stat()
		return err == nil
	}

	deleted, linked, used, kept := park("deleted"), park("linked"), park("used"), park("kept")
	for _, p := range []*parkedFile{deleted, linked, kept} {
		must(p.release())
	}
	if runtime.GOOS == "windows" {
		if open(deleted) || !open(used) {
			t.Errorf("open after release: %v, before: %v", open(deleted), open(used))
		}
		must(used.release())
		return
	}
	must(os.Link(linked.f.Name(), filepath.Join(dir, "second name")))
	for _, p := range []*parkedFile{deleted, linked, used} {
		must(os.Remove(p.f.Name()))
	}
	for _, p := range []*parkedFile{deleted, linked, used, kept} {
		if !open(p) {
			t.Errorf("%s was closed", p.f.Name())
		}
	}
	next := park("next")
	for p, want := range map[*parkedFile]bool{deleted: false, linked: true, used: true, kept: true} {
		if got := open(p); got != want {
			t.Errorf("%s is open: %v, want %v", p.f.Name(), got, want)
		}
	}
	must(used.release())
	must(os.RemoveAll(dir))
	must(os.Mkdir(dir, 0o700))
	must(next.release())
	must(park("last").release())
	for _, p := range []*parkedFile{linked, used, kept, next} {
		if open(p) {
			t.Errorf("%s is still open", p.f.Name())
		}
	}
}
