package fileclient

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"example.com/litestream/internal/atomicfile"
)

// abandonedAfter is how long an unfinished file of another process must have
// been left alone before a writer takes it for the rubbish of a crash.
const abandonedAfter = 5 * time.Minute

// directories remembers which directories of the replica exist and have
// durable names, so that a write need not look at them again.
type directories struct {
	// change is held, across I/O, while a directory is made or removed, so
	// that a name in durable is never that of a directory in the making.
	change sync.Mutex

	durable sync.Map // path to struct{}
}

// forget makes the next writes look at all directories again.
func (d *directories) forget() {
	d.change.Lock()
	defer d.change.Unlock()
	d.durable.Clear()
}

// ensureDir makes dir, in which files are to be written, and its parents, and
// their names durable. When this client sees dir for the first time it removes
// what crashed processes left in it; an error of that is reported once.
func (c *FileReplicaClient) ensureDir(dir string) error {
	if _, ok := c.dirs.durable.Load(dir); ok {
		return nil
	}
	c.dirs.change.Lock()
	defer c.dirs.change.Unlock()
	if _, ok := c.dirs.durable.Load(dir); ok {
		return nil
	}
	if err := c.makeDir(dir); err != nil {
		return err
	}
	return atomicfile.SweepAbandoned(c.fs, dir, abandonedAfter)
}

// makeDir makes dir and its parents. It syncs the names also of those that
// exist, since whoever made them may have failed to. The caller holds
// dirs.change.
func (c *FileReplicaClient) makeDir(dir string) error {
	if _, ok := c.dirs.durable.Load(dir); ok {
		return nil
	}
	opt := c.options(c.DirMode)
	if dir == filepath.Clean(c.path) {
		opt.Durable = true // the parents are not ours: sync what we make
		if err := atomicfile.MkdirAll(c.fs, dir, opt); err != nil {
			return err
		}
	} else {
		parent := filepath.Dir(dir)
		if err := c.makeDir(parent); err != nil {
			return err
		}
		if err := atomicfile.MkdirAll(c.fs, dir, opt); err != nil {
			return err
		}
		if err := c.fs.SyncDir(parent); err != nil {
			return err
		}
	}
	c.dirs.durable.Store(dir, struct{}{})
	return nil
}

// removeDir removes dir if it is empty, and reports whether it is gone.
func (c *FileReplicaClient) removeDir(dir string) (gone bool, err error) {
	c.dirs.change.Lock()
	defer c.dirs.change.Unlock()
	c.dirs.durable.Delete(dir)
	for range maxAttempts {
		err = c.fs.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		// Operating systems do not agree on the error for a directory in use,
		// and its last file may have gone since.
		ents, readErr := c.fs.ReadDir(dir)
		if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
			return false, errors.Join(err, readErr)
		}
		if len(ents) > 0 {
			return false, nil
		}
	}
	return false, err
}

// syncDir makes the deletions in dir durable. A directory that does not exist
// has none.
func (c *FileReplicaClient) syncDir(dir string) error {
	if err := c.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
