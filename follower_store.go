package litestream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"example.com/litestream/internal/fsys"
)

// followerStoreInterval is the shortest time between two notes of how far a
// follower is.
const followerStoreInterval = 1 * time.Second

// storedMark is what tells one stored state from another.
type storedMark struct {
	pos   Pos // zero if none is stored
	clean bool
}

// resume takes the stored state up, and opens the database, whose page size it
// returns: what others write from now on is found. Where that is impossible
// nobody knows what they write, and a snapshot has to come.
func (f *follower) resume(ctx context.Context) (pageSize int, err error) {
	db := f.db
	info, err := os.Stat(db.real)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if err != nil || info.Size() == 0 { // not what the state is of
		return 0, f.forget()
	}
	stored, err := readFollowerState(db.fs, db.meta.follower())
	if err != nil {
		return 0, err
	}
	if !stored.usable(f.boot) {
		if !stored.pos.IsZero() {
			db.logf("follower: a snapshot is needed: the machine restarted without a Close")
		}
		return 0, f.forget()
	}
	if _, err := f.openConn(ctx, 0); err != nil {
		db.logf("follower: a snapshot is needed: %v", err)
		return 0, f.forget()
	}
	f.mu.state, f.mu.stored = stored.followerState, storedMark{stored.pos, stored.clean}
	f.mu.generation = stored.pos.Generation
	return f.conn.c.pageSize, nil
}

// forget removes what is stored of the position: the next start begins with a
// snapshot.
func (f *follower) forget() error {
	f.storing.Lock()
	defer f.storing.Unlock()
	return f.forgetStored()
}

// forgetStored is forget with f.storing locked.
func (f *follower) forgetStored() error {
	if err := errors.Join(removeIfExists(f.db.fs, f.db.meta.follower()), removeIfExists(f.db.fs, f.db.meta.position())); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.stored = storedMark{}
	return nil
}

// removeIfExists removes a file for good: a power loss does not bring it back.
func removeIfExists(fsy fsys.FS, name string) error {
	err := fsy.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return fsy.SyncDir(filepath.Dir(name))
}

// scheduleStore has the state stored before long. f.mu is locked.
func (f *follower) scheduleStore() {
	if f.mu.timer == nil && !f.mu.stopped {
		f.mu.timer = time.AfterFunc(followerStoreInterval, f.storeLater)
	}
}

// storeLater runs on a goroutine of its own, which stop joins through storing.
func (f *follower) storeLater() {
	f.storing.Lock()
	defer f.storing.Unlock()
	f.mu.Lock()
	due := f.mu.timer != nil
	f.mu.timer = nil
	f.mu.Unlock()
	if !due {
		return
	}
	err := f.store(false)
	f.storeErrs.note("note how far the follower is", err)
	if err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.scheduleStore()
	}
}

// storeUnclean takes back the word that the database is not beyond what is
// stored, before that is no longer true.
func (f *follower) storeUnclean() error {
	f.storing.Lock()
	defer f.storing.Unlock()
	f.mu.Lock()
	clean := f.mu.stored.clean
	f.mu.Unlock()
	if !clean {
		return nil
	}
	return f.store(false)
}

// store notes how far the follower is, after it has made that durable: the
// follower's commits are not synced one by one. Its -wal file, unlike the
// others, carries no locks and may be opened and closed. The database is not
// beyond it if clean. f.storing is locked.
func (f *follower) store(clean bool) error {
	f.mu.Lock()
	s, stored := f.mu.state, f.mu.stored
	f.mu.Unlock()
	mark := storedMark{s.pos, clean}
	switch {
	case mark == stored:
		return nil
	case s.pos.IsZero():
		return f.forgetStored()
	}
	if err := syncFile(f.db.fs, f.db.WALPath()); err != nil {
		return err
	}
	state := storedState{followerState: s, clean: clean}
	if !clean {
		state.boot = f.boot
	}
	if err := writeFollowerState(f.db.fs, f.db.meta.follower(), state); err != nil {
		return fmt.Errorf("write follower state: %w", err)
	}
	f.mu.Lock()
	f.mu.stored = mark
	f.mu.Unlock()
	return f.db.writePosition()
}

// syncFile makes a file durable if it exists.
func syncFile(fsy fsys.FS, name string) error {
	flag := os.O_RDONLY
	if runtime.GOOS == "windows" { // it syncs no other
		flag = os.O_RDWR
	}
	file, err := fsy.OpenFile(name, flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// stop notes how far the follower is and closes its connection, after its
// goroutine has ended.
func (f *follower) stop() error {
	f.mu.Lock()
	f.mu.stopped = true
	if f.mu.timer != nil {
		f.mu.timer.Stop()
		f.mu.timer = nil
	}
	f.mu.Unlock()
	f.conn.Lock()
	defer f.conn.Unlock()
	f.conn.closed = true
	f.storing.Lock()
	defer f.storing.Unlock()
	if err := f.unmodified(); err != nil {
		f.db.logf("follower: a snapshot is needed: %v", err)
		f.mu.Lock()
		f.mu.state = followerState{}
		f.mu.Unlock()
	}
	return errors.Join(f.store(true), f.closeConn())
}

// unmodified returns nil if the database is what was applied: nobody looks for
// what others wrote once the connection is closed. f.conn is locked.
func (f *follower) unmodified() error {
	if f.conn.c == nil {
		return nil // nothing was applied
	}
	if same, err := isFile(f.db.real, f.conn.info); err != nil {
		return err
	} else if !same {
		return ErrDatabaseReplaced
	}
	modified := false
	err := retryBusy(bg, BusyTimeout, func() (err error) {
		modified, err = f.conn.c.Modified(bg)
		return err
	})
	if modified {
		err = ErrFollowerModified
	}
	return err
}
