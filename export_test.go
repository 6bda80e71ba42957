package litestream

import (
	"context"
	"errors"

	"example.com/litestream/internal/fsys"
)

// Hooks for the tests of package litestream_test.

// SetFS makes a DB that is not open work on another file system.
func (db *DB) SetFS(fsy fsys.FS) {
	db.fs = fsy
	db.shadow = newShadowWAL(fsy, db.meta)
}

// StopMonitor ends the DB's run loop and what Open started of its replicas:
// from then on only calls of the test capture and upload.
func (db *DB) StopMonitor() {
	db.life.Lock()
	defer db.life.Unlock()
	db.life.cancel()
	<-db.life.done
	for _, r := range db.Replicas {
		r.Stop()
	}
}

// A fileWatch for RestartMonitor.
type (
	// NoWatch cannot watch.
	NoWatch = noWatch

	// DeafWatch says that it watches, and yields no event.
	DeafWatch struct{}
)

func (DeafWatch) arm(string) error { return nil }
func (DeafWatch) close()           {}

// RestartMonitor puts a run loop with another watch in the place of the one
// that StopMonitor ended.
func (db *DB) RestartMonitor(w fileWatch) {
	db.life.Lock()
	defer db.life.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	db.life.cancel, db.life.done = cancel, done
	loop := newMonitor(db)
	loop.watch.close()
	loop.watch = w
	go func() {
		defer close(done)
		loop.run(ctx)
	}()
}

// ReleasePin ends the read transaction that keeps the WAL from restarting
// unseen. The function that it returns begins it again, behind the back of the
// capture.
func (db *DB) ReleasePin() (again func() error, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	s := db.mu.session
	if s == nil {
		return nil, errors.New("no session")
	}
	pin := s.keep.pin
	return func() error {
		db.mu.Lock()
		defer db.mu.Unlock()
		return pin.BeginRead(context.Background())
	}, pin.End()
}

// RollPin moves the pin to the newest commit.
func (db *DB) RollPin(ctx context.Context) error {
	return db.withSession(ctx, func(s *session) error { return s.keep.roll(ctx) })
}

// SetStreamBacklog sets how many bytes are kept for a slow stream, at least.
func (db *DB) SetStreamBacklog(n int64) { db.backlog = n }

// NewGeneration makes the DB begin a new generation.
func (db *DB) NewGeneration(ctx context.Context) error {
	return db.newGeneration(ctx, db.Pos().Generation, "a test asks for it")
}

// SpoilFollowerState stores another checksum of the upstream's WAL.
func SpoilFollowerState(name string) error {
	s, err := readFollowerState(fsys.OS, name)
	if err != nil || s.cursor.offset <= WALHeaderSize {
		return errors.Join(err, errors.New("the state has no frame"))
	}
	s.cursor.last[WALFrameHeaderChecksumOffset]++
	return writeFollowerState(fsys.OS, name, s)
}

// HoldSnapshotSlot keeps databases from being read for a snapshot until release
// is called.
func HoldSnapshotSlot() (release func()) {
	snapshotSlots <- struct{}{}
	return releaseSnapshotSlot
}

// RebootFollowerState makes a stored state one of another run of the machine.
func RebootFollowerState(name string) error {
	s, err := readFollowerState(fsys.OS, name)
	if err != nil || s.clean {
		return errors.Join(err, errors.New("the state is clean"))
	}
	s.boot[0]++
	return writeFollowerState(fsys.OS, name, s)
}

// HasBootID reports whether the system tells one run of the machine from
// another.
func HasBootID() bool { return readBootID() != bootID{} }
