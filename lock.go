package litestream

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
)

// managerLock is the exclusive lock that makes a DB the only manager of its
// database. The file stays behind; the operating system drops the lock when
// the process ends.
type managerLock struct {
	path string
	f    *os.File
}

// managers holds the lock files of this process: where locks belong to the
// process, the operating system would grant a second one.
var managers struct {
	sync.Mutex
	paths map[string]bool
}

// lockManager takes the lock. An error that matches ErrDatabaseLocked says
// who holds it.
func lockManager(path string) (_ *managerLock, err error) {
	managers.Lock()
	defer managers.Unlock()
	if managers.paths[path] {
		return nil, fmt.Errorf("%w by another DB of this process (lock file %s)", ErrDatabaseLocked, path)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		holder, rerr := io.ReadAll(io.LimitReader(f, 200))
		err = errors.Join(err, rerr, f.Close())
		if errors.Is(err, errLockHeld) {
			return nil, fmt.Errorf("%w by %s (lock file %s)", ErrDatabaseLocked, describeHolder(string(holder)), path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "process %d on %s\n", os.Getpid(), host), 0); err != nil {
		return nil, err
	}
	if managers.paths == nil {
		managers.paths = make(map[string]bool)
	}
	managers.paths[path] = true
	return &managerLock{path: path, f: f}, nil
}

func describeHolder(s string) string {
	if s = strings.TrimSpace(s); s == "" {
		return "another process"
	}
	return s
}

// unlock releases the lock; closing the file does.
func (l *managerLock) unlock() error {
	managers.Lock()
	defer managers.Unlock()
	delete(managers.paths, l.path)
	if err := l.f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}

// errLockHeld reports that another process holds the lock.
var errLockHeld = errors.New("lock is held")
