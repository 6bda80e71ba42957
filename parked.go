package litestream

import (
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"
)

// parkedFile is the process's one descriptor of a database file. On Unix,
// closing any descriptor of a file drops all POSIX locks that the process
// holds on it, SQLite's among them; so it is not closed there while the file has
// a name (I8).
type parkedFile struct {
	f    *os.File
	info fs.FileInfo // identity, compared with os.SameFile
	refs int
	user string // path under which a session has the database open, or ""
}

// parked holds every database file that the process ever opened through the
// library, but for those that were deleted. The reference also keeps the garbage
// collector from closing a descriptor.
var parked struct {
	sync.Mutex
	files []*parkedFile
}

// closeDropsLocks tells whether closing a descriptor drops the process's locks.
const closeDropsLocks = runtime.GOOS != "windows"

// parkDatabase returns the descriptor of the file at path, opening it if the
// process has none yet.
func parkDatabase(path string) (*parkedFile, error) {
	parked.Lock()
	defer parked.Unlock()
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if p := findParked(info); p != nil {
		p.refs++
		return p, nil
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	closeDeleted()
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	p := &parkedFile{f: f, refs: 1}
	parked.files = append(parked.files, p)
	// The path may name another file by now: trust the descriptor. Should it
	// fail, the descriptor stays parked all the same.
	if p.info, err = f.Stat(); err != nil {
		return nil, err
	}
	return p, nil
}

// closeDeleted closes the descriptors of files that were deleted since, so that
// a process whose databases come and go does not keep their disk space. Only
// who had such a file open before can lock it still. parked is locked.
func closeDeleted() {
	parked.files = slices.DeleteFunc(parked.files, func(p *parkedFile) bool {
		if p.refs > 0 || p.info == nil || deleted(p.info) { // some file systems count no links
			return false
		}
		info, err := p.f.Stat()
		if err != nil || !deleted(info) {
			return false
		}
		if err := p.f.Close(); err != nil {
			tracef("close deleted database: %v", err)
		}
		return true
	})
}

func findParked(info fs.FileInfo) *parkedFile {
	for _, p := range parked.files {
		if p.info != nil && os.SameFile(p.info, info) {
			return p
		}
	}
	return nil
}

// use makes path the one under which the database is open. Under another name
// of the file, a hard link, SQLite would have another WAL.
func (p *parkedFile) use(path string) error {
	parked.Lock()
	defer parked.Unlock()
	if p.user != "" && p.user != path {
		return fmt.Errorf("%w: %s and %s are links to one file, and each would have a WAL of its own; use one path alone", ErrDatabaseLocked, path, p.user)
	}
	p.user = path
	return nil
}

// disuse ends use.
func (p *parkedFile) disuse(path string) {
	parked.Lock()
	defer parked.Unlock()
	if p.user == path {
		p.user = ""
	}
}

// release gives the descriptor back. Only where that is harmless is it closed.
func (p *parkedFile) release() error {
	parked.Lock()
	defer parked.Unlock()
	p.refs--
	if closeDropsLocks || p.refs > 0 {
		return nil
	}
	parked.files = slices.DeleteFunc(parked.files, func(q *parkedFile) bool { return q == p })
	return p.f.Close()
}
