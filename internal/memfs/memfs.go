// Package memfs is a file system in memory for tests that need many files fast
// and want to damage them as a power loss does.
package memfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/litestream/internal/fsys"
)

// FS holds files and directories by their cleaned paths. Modes and owners are
// not kept. It is safe for concurrent use.
type FS struct {
	mu    sync.Mutex
	nodes map[string]*node
	tick  int64 // modification times count writes
}

var _ fsys.FS = (*FS)(nil)

type node struct {
	dir      bool
	data     []byte
	modified int64
}

// New returns a file system that holds one empty directory.
func New(dir string) *FS {
	return &FS{nodes: map[string]*node{filepath.Clean(dir): {dir: true}}}
}

func fail(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// Files returns the paths of the files below dir, sorted.
func (f *FS) Files(dir string) (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	prefix := filepath.Clean(dir) + string(filepath.Separator)
	for name, n := range f.nodes {
		if !n.dir && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Damage replaces a file's content by what fn makes of it, also for those that
// have it open. fn may change its argument.
func (f *FS) Damage(name string, fn func(data []byte) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[filepath.Clean(name)]; n != nil {
		n.data = fn(n.data)
	}
}

// OpenFile implements fsys.FS.
func (f *FS) OpenFile(name string, flag int, _ fs.FileMode) (fsys.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clean := filepath.Clean(name)
	n := f.nodes[clean]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, fail("open", name, fs.ErrNotExist)
	case n == nil:
		if err := f.parent(clean); err != nil {
			return nil, fail("open", name, err)
		}
		n = &node{}
		f.nodes[clean] = n
	case flag&os.O_EXCL != 0:
		return nil, fail("open", name, fs.ErrExist)
	case n.dir:
		return nil, fail("open", name, errors.New("is a directory"))
	}
	if flag&os.O_TRUNC != 0 {
		n.data = nil
	}
	return &File{fs: f, n: n, name: name}, nil
}

// parent returns an error unless the directory that holds name exists.
func (f *FS) parent(name string) error {
	if n := f.nodes[filepath.Dir(name)]; n == nil || !n.dir {
		return fs.ErrNotExist
	}
	return nil
}

// Rename implements fsys.FS, for files.
func (f *FS) Rename(oldpath, newpath string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, to := filepath.Clean(oldpath), filepath.Clean(newpath)
	n := f.nodes[from]
	if n == nil || n.dir {
		return fail("rename", oldpath, fs.ErrNotExist)
	}
	if err := f.parent(to); err != nil {
		return fail("rename", newpath, err)
	}
	if f.nodes[to] != n { // else rename(2) does nothing
		delete(f.nodes, from)
		f.nodes[to] = n
	}
	return nil
}

// Link implements fsys.FS.
func (f *FS) Link(oldpath, newpath string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, to := filepath.Clean(oldpath), filepath.Clean(newpath)
	if f.nodes[from] == nil {
		return fail("link", oldpath, fs.ErrNotExist)
	}
	if f.nodes[to] != nil {
		return fail("link", newpath, fs.ErrExist)
	}
	if err := f.parent(to); err != nil {
		return fail("link", newpath, err)
	}
	f.nodes[to] = f.nodes[from]
	return nil
}

// Remove implements fsys.FS.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clean := filepath.Clean(name)
	n := f.nodes[clean]
	if n == nil {
		return fail("remove", name, fs.ErrNotExist)
	}
	if n.dir && len(f.list(clean)) > 0 {
		return fail("remove", name, syscall.ENOTEMPTY)
	}
	delete(f.nodes, clean)
	return nil
}

// Mkdir implements fsys.FS.
func (f *FS) Mkdir(name string, _ fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clean := filepath.Clean(name)
	if f.nodes[clean] != nil {
		return fail("mkdir", name, fs.ErrExist)
	}
	if err := f.parent(clean); err != nil {
		return fail("mkdir", name, err)
	}
	f.nodes[clean] = &node{dir: true}
	return nil
}

// Stat implements fsys.FS.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[filepath.Clean(name)]
	if n == nil {
		return nil, fail("stat", name, fs.ErrNotExist)
	}
	return n.info(name), nil
}

// Lstat implements fsys.FS; there are no symbolic links.
func (f *FS) Lstat(name string) (fs.FileInfo, error) { return f.Stat(name) }

// list returns the names in a directory, sorted.
func (f *FS) list(dir string) (names []string) {
	for name := range f.nodes {
		if filepath.Dir(name) == dir && name != dir {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ReadDir implements fsys.FS.
func (f *FS) ReadDir(name string) (ents []fs.DirEntry, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clean := filepath.Clean(name)
	if n := f.nodes[clean]; n == nil || !n.dir {
		return nil, fail("readdir", name, fs.ErrNotExist)
	}
	for _, ent := range f.list(clean) {
		ents = append(ents, fs.FileInfoToDirEntry(f.nodes[ent].info(ent)))
	}
	return ents, nil
}

// Chown implements fsys.FS and does nothing.
func (f *FS) Chown(string, int, int) error { return nil }

// SyncDir implements fsys.FS and does nothing.
func (f *FS) SyncDir(string) error { return nil }

type info struct {
	name     string
	dir      bool
	size     int64
	modified time.Time
}

func (n *node) info(name string) fs.FileInfo {
	return info{filepath.Base(name), n.dir, int64(len(n.data)), time.Unix(n.modified, 0)}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return i.modified }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

// File is an open file.
type File struct {
	fs   *FS
	n    *node
	name string
	off  int64
}

// Name returns the name that the file was opened with.
func (f *File) Name() string { return f.name }

// Stat returns the file's info.
func (f *File) Stat() (fs.FileInfo, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.n.info(f.name), nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 || len(p) == 0 {
		err = nil
	}
	return n, err
}

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.n.resize(max(int64(len(f.n.data)), off+int64(len(p))))
	copy(f.n.data[off:], p)
	f.fs.tick++
	f.n.modified = f.fs.tick
	return len(p), nil
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.off)
	f.off += int64(n)
	return n, err
}

func (n *node) resize(size int64) {
	if old := int64(len(n.data)); size > old {
		n.data = slices.Grow(n.data, int(size-old))[:size]
		clear(n.data[old:])
	} else {
		n.data = n.data[:size]
	}
}

// Seek implements io.Seeker.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		offset += int64(len(f.n.data))
	}
	if offset < 0 {
		return 0, fail("seek", f.name, fs.ErrInvalid)
	}
	f.off = offset
	return offset, nil
}

// Truncate sets the file's size.
func (f *File) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.n.resize(size)
	return nil
}

// Sync does nothing.
func (f *File) Sync() error { return nil }

// Close does nothing.
func (f *File) Close() error { return nil }
