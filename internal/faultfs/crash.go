package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/litestream/internal/fsys"
)

// CrashFS is a file system over a real directory that knows what a loss of
// power would leave of it: the content of a file as of its last Sync, the names
// in a directory as of its last SyncDir, and of what came later any part.
// [CrashFS.Crash] brings the directory into such a state.
//
// Only what is written through the CrashFS is at risk. Other files below its
// root, such as those of SQLite, stay as they are unless a directory that they
// are in disappears. Nothing is synced for real. It is safe for concurrent use,
// and does not model a rename or a link into another directory.
type CrashFS struct {
	inner fsys.FS
	root  string

	mu  sync.Mutex
	top *node
}

var _ fsys.FS = (*CrashFS)(nil)

// NewCrash returns a CrashFS for what is below root. All that exists there is
// durable.
func NewCrash(inner fsys.FS, root string) *CrashFS {
	return &CrashFS{inner: inner, root: filepath.Clean(root), top: newNode(true)}
}

// node is a file or directory, whatever its names are.
type node struct {
	synced []byte // content of a file at its last Sync; nil before
	left   []byte // content of a file that lost its last name
	mtime  time.Time

	dir     bool
	entries map[string]*node // of a directory, as far as they are at risk
	durable map[string]*node // of these, as of the last SyncDir
	pending []change         // from durable to entries, in order
}

func newNode(dir bool) *node {
	n := &node{dir: dir}
	if dir {
		n.entries, n.durable = make(map[string]*node), make(map[string]*node)
	}
	return n
}

// change is one change of a directory, which survives as a whole or not at all.
type change struct {
	from string // the name that ends, if any
	to   string // the name that n gets, if any
	n    *node
}

func (c change) apply(entries map[string]*node) {
	if c.from != "" {
		delete(entries, c.from)
	}
	if c.to != "" {
		entries[c.to] = c.n
	}
}

func (n *node) change(c change) {
	c.apply(n.entries)
	n.pending = append(n.pending, c)
}

// find returns the node of a path below the root, and that of its directory.
// What exists but was not seen yet is durable. It returns nil for what does not
// exist, and for paths elsewhere. f.mu is held.
func (f *CrashFS) find(name string) (parent, n *node, base string) {
	rel, err := filepath.Rel(f.root, filepath.Clean(name))
	if err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return nil, nil, ""
	}
	if rel == "." {
		return nil, f.top, ""
	}
	n = f.top
	path := f.root
	for _, base = range strings.Split(rel, string(filepath.Separator)) {
		if parent = n; parent == nil || !parent.dir {
			return nil, nil, ""
		}
		path = filepath.Join(path, base)
		if n = parent.entries[base]; n != nil {
			continue
		}
		info, err := f.inner.Lstat(path)
		if err != nil {
			continue
		}
		n = newNode(info.IsDir())
		if !n.dir {
			if n.synced, err = f.read(path); err != nil {
				return nil, nil, ""
			}
		}
		parent.entries[base], parent.durable[base] = n, n
	}
	return parent, n, base
}

// known returns the node of a file that find has seen, or nil. f.mu is held.
func (f *CrashFS) known(name string) *node {
	rel, err := filepath.Rel(f.root, filepath.Clean(name))
	if err != nil {
		return nil
	}
	n := f.top
	for _, base := range strings.Split(rel, string(filepath.Separator)) {
		if n = n.entries[base]; n == nil {
			return nil
		}
	}
	return n
}

func (f *CrashFS) read(name string) (_ []byte, err error) {
	file, err := f.inner.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return io.ReadAll(file)
}

// keep notes the content of a file that is about to lose a name.
func (f *CrashFS) keep(name string, n *node) error {
	if n == nil || n.dir {
		return nil
	}
	info, err := f.inner.Lstat(name)
	if err != nil {
		return err
	}
	n.mtime = info.ModTime()
	n.left, err = f.read(name)
	return err
}

// OpenFile implements fsys.FS.
func (f *CrashFS) OpenFile(name string, flag int, perm fs.FileMode) (fsys.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE) == 0 {
		file, err := f.inner.OpenFile(name, flag, perm)
		if n := f.known(name); n != nil && err == nil {
			return &crashFile{File: file, fs: f, n: n}, nil // its Sync counts
		}
		return file, err
	}
	if flag&os.O_WRONLY != 0 {
		flag = flag&^os.O_WRONLY | os.O_RDWR // Sync reads
	}
	parent, n, base := f.find(name)
	file, err := f.inner.OpenFile(name, flag, perm)
	if err != nil || parent == nil {
		return file, err
	}
	if n == nil {
		n = newNode(false)
		parent.change(change{to: base, n: n})
	}
	return &crashFile{File: file, fs: f, n: n}, nil
}

// Rename implements fsys.FS.
func (f *CrashFS) Rename(oldpath, newpath string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	parent, n, from := f.find(oldpath)
	parent2, replaced, to := f.find(newpath)
	if parent != parent2 {
		return &os.LinkError{Op: "rename", Old: oldpath, New: newpath, Err: errOtherDirectory}
	}
	if replaced != nil && replaced != n {
		if err := f.keep(newpath, replaced); err != nil {
			return err
		}
	}
	if err := f.inner.Rename(oldpath, newpath); err != nil || parent == nil {
		return err
	}
	parent.change(change{from: from, to: to, n: n})
	return nil
}

var errOtherDirectory = errors.New("into another directory: not modelled by CrashFS")

// Link implements fsys.FS.
func (f *CrashFS) Link(oldpath, newpath string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	parent, n, _ := f.find(oldpath)
	parent2, _, to := f.find(newpath)
	if parent != parent2 {
		return &os.LinkError{Op: "link", Old: oldpath, New: newpath, Err: errOtherDirectory}
	}
	if err := f.inner.Link(oldpath, newpath); err != nil || parent == nil {
		return err
	}
	parent.change(change{to: to, n: n})
	return nil
}

// Remove implements fsys.FS.
func (f *CrashFS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	parent, n, base := f.find(name)
	if err := f.keep(name, n); err != nil {
		return err
	}
	if err := f.inner.Remove(name); err != nil || parent == nil {
		return err
	}
	parent.change(change{from: base})
	return nil
}

// Mkdir implements fsys.FS.
func (f *CrashFS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	parent, _, base := f.find(name)
	if err := f.inner.Mkdir(name, perm); err != nil || parent == nil {
		return err
	}
	parent.change(change{to: base, n: newNode(true)})
	return nil
}

// SyncDir makes the names in a directory survive a crash.
func (f *CrashFS) SyncDir(name string) error {
	if _, err := f.inner.Stat(name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, n, _ := f.find(name); n != nil {
		n.durable, n.pending = maps.Clone(n.entries), nil
	}
	return nil
}

// Stat implements fsys.FS.
func (f *CrashFS) Stat(name string) (fs.FileInfo, error) { return f.inner.Stat(name) }

// Lstat implements fsys.FS.
func (f *CrashFS) Lstat(name string) (fs.FileInfo, error) { return f.inner.Lstat(name) }

// ReadDir implements fsys.FS.
func (f *CrashFS) ReadDir(name string) ([]fs.DirEntry, error) { return f.inner.ReadDir(name) }

// Chown implements fsys.FS.
func (f *CrashFS) Chown(name string, uid, gid int) error { return f.inner.Chown(name, uid, gid) }

// crashFile is an open file that is at risk.
type crashFile struct {
	fsys.File
	fs *CrashFS
	n  *node
}

// Sync makes the content survive a crash, if the file has a name then.
func (c *crashFile) Sync() error {
	c.fs.mu.Lock()
	defer c.fs.mu.Unlock()
	info, err := c.File.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, info.Size())
	if _, err := c.File.ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	}
	c.n.synced = b
	return nil
}

// Crash brings the directory into a state that a loss of power could leave. The
// choice depends on seed and on what was done alone. No file may be open for
// writing. What is there afterwards is durable.
func (f *CrashFS) Crash(seed uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := crash{fs: f, rng: rand.New(rand.NewPCG(seed, 0)), content: make(map[*node][]byte)}
	c.names = c.rng.IntN(3) == 0
	if err := c.collect(f.root, f.top); err != nil {
		return fmt.Errorf("crash: %w", err)
	}
	if err := c.rewrite(f.root, f.top); err != nil {
		return fmt.Errorf("crash: %w", err)
	}
	f.top = newNode(true)
	return nil
}

type crash struct {
	fs      *CrashFS
	rng     *rand.Rand
	names   bool             // all names survive, as where names are written before contents
	content map[*node][]byte // of files, that survives
}

// collect reads every file that has a name. One that somebody removed, not
// through the CrashFS, is gone for good.
func (c *crash) collect(path string, n *node) error {
	if !n.dir {
		return c.fs.keep(path, n)
	}
	for name, child := range n.entries {
		err := c.collect(filepath.Join(path, name), child)
		if errors.Is(err, fs.ErrNotExist) {
			n.change(change{from: name})
			n.durable, n.pending = maps.Clone(n.entries), nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// rewrite brings a directory into the state that survives.
func (c *crash) rewrite(path string, n *node) error {
	want := c.surviving(n)
	for name, child := range n.entries {
		if want[name] != child {
			if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		child, path := want[name], filepath.Join(path, name)
		if child.dir {
			if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := c.rewrite(path, child); err != nil {
				return err
			}
			continue
		}
		b, ok := c.content[child]
		if !ok {
			b = c.tear(child.synced, child.left)
			c.content[child] = b
		}
		if n.entries[name] == child && bytes.Equal(b, child.left) {
			continue
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
		if err := os.Chtimes(path, child.mtime, child.mtime); err != nil {
			return err
		}
	}
	return nil
}

// surviving returns the names of a directory: those that are durable, and of
// the changes since then none, all, the first ones, or any.
func (c *crash) surviving(n *node) map[string]*node {
	entries := maps.Clone(n.durable)
	if len(n.pending) == 0 {
		return entries
	}
	if c.names {
		return maps.Clone(n.entries)
	}
	policy, first := c.rng.IntN(4), c.rng.IntN(len(n.pending)+1)
	for i, ch := range n.pending {
		if policy == 1 || policy == 2 && i < first || policy == 3 && c.rng.IntN(2) == 0 {
			ch.apply(entries)
		}
	}
	return entries
}

// tear returns what survives of a file: what was synced, what was written
// since, or of each block either, or zeros. The size may be either, or one in
// between.
func (c *crash) tear(synced, written []byte) []byte {
	if bytes.Equal(synced, written) {
		return written
	}
	switch c.rng.IntN(4) {
	case 0:
		return synced
	case 1:
		return written
	}
	block := []int{512, 4096}[c.rng.IntN(2)]
	low, high := min(len(synced), len(written)), max(len(synced), len(written))
	size := []int{len(synced), len(written), low + c.rng.IntN(high-low+1)/block*block}[c.rng.IntN(3)]
	b := make([]byte, size)
	for at := 0; at < size; at += block {
		end := min(at+block, size)
		was, is := cut(synced, at, end), cut(written, at, end)
		choice := [][]byte{was, is, make([]byte, end-at)}[c.rng.IntN(3)]
		for i := range choice {
			if b[at+i] = choice[i]; was[i] == is[i] {
				b[at+i] = is[i] // as if not written since: SQLite assumes no less
			}
		}
	}
	return b
}

// cut returns b[from:to], with zeros behind its end.
func cut(b []byte, from, to int) []byte {
	p := make([]byte, to-from)
	if from < len(b) {
		copy(p, b[from:])
	}
	return p
}
