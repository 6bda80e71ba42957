// Package faultfs is a file system for tests that counts its operations and
// fails those that a test selects.
package faultfs

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"example.com/litestream/internal/fsys"
)

// Names of operations.
const (
	Open     = "open"   // OpenFile without os.O_CREATE
	Create   = "create" // OpenFile with os.O_CREATE
	Read     = "read"   // Read and ReadAt
	Write    = "write"  // Write and WriteAt
	Seek     = "seek"
	Truncate = "truncate"
	Sync     = "sync"
	FileStat = "fstat"
	Close    = "close"
	Rename   = "rename"
	Link     = "link"
	Remove   = "remove"
	Mkdir    = "mkdir"
	Stat     = "stat"
	Lstat    = "lstat"
	ReadDir  = "readdir"
	Chown    = "chown"
	SyncDir  = "syncdir"
)

// Faults that a hook returns or FailAt takes.
var (
	ENOSPC error = syscall.ENOSPC
	EIO    error = syscall.EIO

	// ShortWrite makes a write store half of its bytes and then fail with
	// ENOSPC. Any other operation fails at once.
	ShortWrite error = shortWrite{}
)

type shortWrite struct{}

func (shortWrite) Error() string { return "short write: " + syscall.ENOSPC.Error() }
func (shortWrite) Unwrap() error { return ENOSPC }

// Op is one operation about to be performed.
type Op struct {
	N    int    // counts from 1
	Name string // one of the names above
	Path string // for Rename and Link the new path
}

// FS passes operations on to another file system, but for those that its hook
// fails. A failed operation has no effect, except that Close closes and
// ShortWrite writes. It is safe for concurrent use.
type FS struct {
	inner fsys.FS

	mu    sync.Mutex
	n     int
	hook  func(Op) error
	fault Op // the first that failed
}

var _ fsys.FS = (*FS)(nil)

// New returns an FS over inner that fails nothing.
func New(inner fsys.FS) *FS { return &FS{inner: inner} }

// SetHook makes hook decide about every later operation: nil lets it pass. The
// hook may block, and is called concurrently where operations are concurrent.
func (f *FS) SetHook(hook func(Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// FailAt fails the nth operation after the last Reset with err, and no other.
func (f *FS) FailAt(n int, err error) {
	f.SetHook(func(op Op) error {
		if op.N == n {
			return err
		}
		return nil
	})
}

// FailOn fails every operation of that name with err.
func (f *FS) FailOn(name string, err error) {
	f.SetHook(func(op Op) error {
		if op.Name == name {
			return err
		}
		return nil
	})
}

// Count returns the number of operations since the last Reset.
func (f *FS) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// Fault returns the first operation that failed since the last Reset.
func (f *FS) Fault() (op Op, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault, f.fault.N > 0
}

// Reset removes the hook and counts from the beginning.
func (f *FS) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n, f.hook, f.fault = 0, nil, Op{}
}

// Every calls run once per operation of run, each time with a fresh FS over
// inner that fails the first, the second, ... with err, and at last without a
// fault.
func Every(inner fsys.FS, err error, run func(f *FS)) {
	for n := 1; ; n++ {
		f := New(inner)
		f.FailAt(n, err)
		run(f)
		if _, ok := f.Fault(); !ok {
			return
		}
	}
}

// next counts an operation and asks the hook about it.
func (f *FS) next(name, path string) error {
	f.mu.Lock()
	f.n++
	op, hook := Op{N: f.n, Name: name, Path: path}, f.hook
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	err := hook(op)
	if err == nil {
		return nil
	}
	f.mu.Lock()
	if f.fault.N == 0 {
		f.fault = op
	}
	f.mu.Unlock()
	return &fs.PathError{Op: name, Path: path, Err: err}
}

// OpenFile implements fsys.FS.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (fsys.File, error) {
	op := Open
	if flag&os.O_CREATE != 0 {
		op = Create
	}
	if err := f.next(op, name); err != nil {
		return nil, err
	}
	file, err := f.inner.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &File{File: file, fs: f}, nil
}

// Rename implements fsys.FS.
func (f *FS) Rename(oldpath, newpath string) error {
	if err := f.next(Rename, newpath); err != nil {
		return err
	}
	return f.inner.Rename(oldpath, newpath)
}

// Link implements fsys.FS.
func (f *FS) Link(oldpath, newpath string) error {
	if err := f.next(Link, newpath); err != nil {
		return err
	}
	return f.inner.Link(oldpath, newpath)
}

// Remove implements fsys.FS.
func (f *FS) Remove(name string) error {
	if err := f.next(Remove, name); err != nil {
		return err
	}
	return f.inner.Remove(name)
}

// Mkdir implements fsys.FS.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	if err := f.next(Mkdir, name); err != nil {
		return err
	}
	return f.inner.Mkdir(name, perm)
}

// Stat implements fsys.FS.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	if err := f.next(Stat, name); err != nil {
		return nil, err
	}
	return f.inner.Stat(name)
}

// Lstat implements fsys.FS.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	if err := f.next(Lstat, name); err != nil {
		return nil, err
	}
	return f.inner.Lstat(name)
}

// ReadDir implements fsys.FS.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.next(ReadDir, name); err != nil {
		return nil, err
	}
	return f.inner.ReadDir(name)
}

// Chown implements fsys.FS.
func (f *FS) Chown(name string, uid, gid int) error {
	if err := f.next(Chown, name); err != nil {
		return err
	}
	return f.inner.Chown(name, uid, gid)
}

// SyncDir implements fsys.FS.
func (f *FS) SyncDir(name string) error {
	if err := f.next(SyncDir, name); err != nil {
		return err
	}
	return f.inner.SyncDir(name)
}

// File is a file of an FS.
type File struct {
	fsys.File
	fs *FS
}

func (f *File) next(name string) error { return f.fs.next(name, f.Name()) }

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if err := f.next(Read); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.next(Read); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) {
	return f.write(p, f.File.Write)
}

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	return f.write(p, func(p []byte) (int, error) { return f.File.WriteAt(p, off) })
}

func (f *File) write(p []byte, inner func([]byte) (int, error)) (int, error) {
	fault := f.next(Write)
	if fault == nil {
		return inner(p)
	}
	if !errors.Is(fault, ShortWrite) {
		return 0, fault
	}
	n, err := inner(p[:len(p)/2])
	return n, errors.Join(fault, err)
}

// Seek implements io.Seeker.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	if err := f.next(Seek); err != nil {
		return 0, err
	}
	return f.File.Seek(offset, whence)
}

// Stat returns the file's info.
func (f *File) Stat() (fs.FileInfo, error) {
	if err := f.next(FileStat); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

// Sync makes the file's content durable.
func (f *File) Sync() error {
	if err := f.next(Sync); err != nil {
		return err
	}
	return f.File.Sync()
}

// Truncate sets the file's size.
func (f *File) Truncate(size int64) error {
	if err := f.next(Truncate); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Close closes the file, also when the hook makes it fail.
func (f *File) Close() error {
	return errors.Join(f.next(Close), f.File.Close())
}
