package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// FollowerStats tells what a follower has received. It is zero for a primary.
type FollowerStats struct {
	Upstream   Pos       // up to where the upstream has captured, as far as it said
	LastRecord time.Time // when it was last heard; zero before
	Streams    uint64    // opened
	Snapshots  uint64    // applied
}

// follower applies the changes of an upstream to the DB's database. It runs
// one goroutine, which ends with its context.
type follower struct {
	db    *DB
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) bool
	boot  bootID

	conn struct {
		sync.Mutex // held while a transaction is open; guards:
		c          *pageConn
		info       fs.FileInfo // of the file that c opened
		refused    Pos         // where what followed failed verification last
		closed     bool        // by stop
	}

	mu struct {
		sync.Mutex // leaf; guards:
		state      followerState
		stored     storedMark
		timer      *time.Timer   // of the next store; nil if none is due
		changed    chan struct{} // closed when the state changes, and at the end
		stats      FollowerStats
		stopped    bool

		generation string              // of the last position that was not zero
		left       map[string]struct{} // those before it
	}

	storing   sync.Mutex // held while the state is written or removed; behind conn
	storeErrs errorLog
}

func newFollower(db *DB) *follower {
	f := &follower{db: db, now: time.Now, sleep: sleep, boot: readBootID()}
	f.mu.changed = make(chan struct{})
	f.mu.left = make(map[string]struct{})
	f.storeErrs.logf = db.logf
	return f
}

// startFollower starts to follow. The returned channel is closed when the
// goroutine has ended, after ctx has.
func startFollower(ctx context.Context, db *DB) (_ *follower, done chan struct{}, err error) {
	f := newFollower(db)
	defer func() {
		if err != nil {
			err = errors.Join(err, f.closeConn())
		}
	}()
	if err := atomicfile.SweepVersions(db.fs, db.real, abandonedAfter); err != nil {
		tracef("%s: %v", db.path, err) // no reason not to follow
	}
	pageSize, err := f.resume(ctx)
	if err != nil {
		return nil, nil, err
	}
	// As a primary it would go on with a history that ends here.
	if err := removeIfExists(db.fs, db.meta.generationName()); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(db.shadow.removeOthers(""), removeIfExists(db.fs, db.meta.position())); err != nil {
		return nil, nil, err
	}
	// When it is promoted, everything on the replicas is its past.
	if err := removeIfExists(db.fs, db.meta.lineage()); err != nil {
		return nil, nil, err
	}
	db.status.Store(&dbStatus{open: true, pos: f.mu.state.pos, pageSize: pageSize})
	done = make(chan struct{})
	go func() {
		defer close(done)
		f.run(ctx)
	}()
	return f, done, nil
}

// run follows stream after stream until ctx ends.
func (f *follower) run(ctx context.Context) {
	var fail backoff
	for ctx.Err() == nil {
		from := f.state().pos
		records, current, err := f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if progressed(from, f.state().pos, current) {
			fail = backoff{}
		}
		if err == io.EOF { // the upstream begins another generation, or restarts
			err = nil
			if records == 0 {
				err = errors.New("upstream ends the stream at once")
			}
		}
		f.db.errs.note("follow", err)
		fail = fail.next(errors.Join(err, io.EOF))
		if !f.sleep(ctx, fail.wait) {
			return
		}
	}
}

// streamSettled is how long a stream is current before its end is no reason to
// wait longer than after the first failure.
const streamSettled = 10 * time.Second

// progressed reports whether a stream did so much good that its end is the first
// failure. It brought the follower from one position to another, and was current
// for some time. To go on is progress; a snapshot is none by itself: it costs
// the upstream much, and one that cannot be kept is followed by the next.
func progressed(from, to Pos, current time.Duration) bool {
	return current >= streamSettled || to.Generation == from.Generation && to.compare(from) > 0
}

// follow applies one stream to its end. It returns how many records it had, and
// for how long the follower had been current, or nearly so, when it ended.
func (f *follower) follow(ctx context.Context) (records int, current time.Duration, err error) {
	from := f.state()
	r, err := f.db.StreamClient.Stream(ctx, from.pos)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = closeAfter(err, r) }()
	f.mu.Lock()
	f.mu.stats.Streams++
	f.mu.Unlock()
	if !isPageSize(int64(r.PageSize())) {
		return 0, 0, fmt.Errorf("upstream has page size %d", r.PageSize())
	}
	var since time.Time // zero until it is current
	defer func() {
		if !since.IsZero() {
			current = f.now().Sub(since)
		}
	}()
	for {
		hdr, err := r.Next()
		if err != nil {
			return records, 0, err
		}
		records++
		if !heartbeat(hdr) {
			if err := f.apply(ctx, r, hdr); err != nil {
				return records, 0, err
			}
		}
		if since.IsZero() && (!heartbeat(hdr) || hdr.Pos() == f.state().pos) {
			since = f.now()
		}
		f.heard(hdr)
		f.db.errs.note("follow", nil)
	}
}

// closeAfter closes r and returns the error that matters.
func closeAfter(err error, r io.Closer) error {
	if cerr := r.Close(); err == nil {
		return cerr
	}
	return err
}

// heard notes a record after it was applied.
func (f *follower) heard(hdr *StreamRecordHeader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.stats.LastRecord = time.Now()
	f.mu.stats.Upstream = f.mu.state.pos
	if heartbeat(hdr) {
		f.mu.stats.Upstream = hdr.Pos()
	}
	if hdr.Type == StreamRecordTypeSnapshot {
		f.mu.stats.Snapshots++
	}
}

func (f *follower) state() followerState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.state
}

// apply applies the batch of records that begins with hdr.
func (f *follower) apply(ctx context.Context, r StreamReader, hdr *StreamRecordHeader) (err error) {
	f.conn.Lock()
	defer f.conn.Unlock()
	defer func() {
		if errors.Is(err, ErrFollowerModified) || errors.Is(err, ErrDatabaseReplaced) || errors.Is(err, errStartOver) {
			f.setState(followerState{}, 0)     // the next stream begins with a snapshot
			err = errors.Join(err, f.forget()) // and so does that after a crash
			return
		}
		var bad *ChecksumError
		if at := f.state().pos; errors.As(err, &bad) && !at.IsZero() && hdr.Type != StreamRecordTypeSnapshot {
			if f.conn.refused == at { // not the way that broke: they differ
				f.setState(followerState{}, 0)
			}
			f.conn.refused = at
		}
	}()
	exists, err := f.openConn(ctx, r.PageSize())
	if err != nil {
		return err
	}
	if err := f.storeUnclean(); err != nil {
		return err
	}
	b := &followBatch{state: f.state(), pageSize: r.PageSize(), name: "stream of " + f.db.path}
	snapshot := hdr.Type == StreamRecordTypeSnapshot
	switch {
	case exists:
		sink := &sqlSink{conn: f.conn.c, ctx: ctx, snapshot: snapshot}
		b.sink = sink
		if err = b.read(ctx, r, hdr); err != nil {
			err = errors.Join(err, sink.abandon())
		}
	case snapshot:
		f.setState(followerState{}, 0)
		if err = f.create(ctx, r, hdr, b); err == nil {
			_, err = f.openConn(ctx, b.pageSize) // what others write from now on is found
		}
	default:
		err = fmt.Errorf("%w: it was deleted", ErrDatabaseReplaced)
	}
	if err != nil {
		return err
	}
	if snapshot {
		f.db.logf("follower: snapshot applied up to %s", b.state.pos)
	}
	f.setState(b.state, b.pageSize)
	return nil
}

// create builds the database beside its name. What the name's -wal may hold is
// of another file, and would be replayed into the new one.
func (f *follower) create(ctx context.Context, r StreamReader, hdr *StreamRecordHeader, b *followBatch) error {
	if err := refuseLeftovers(f.db.fs, f.db.real); err != nil {
		return err
	}
	opt := metaFile
	opt.Durable = true
	return atomicfile.Create(f.db.fs, f.db.real, opt, func(file fsys.File) error {
		b.sink = fileSink{file, b.pageSize}
		if err := b.read(ctx, r, hdr); err != nil {
			return err
		}
		return refuseExisting(f.db.fs, f.db.real, "-wal", "-shm", "-journal")
	})
}

// openConn opens the connection if the database exists, with the page size that
// it must have, or 0. There is one whenever the state is not zero: what others
// wrote before it was opened is not seen. f.conn is locked, or not yet shared.
func (f *follower) openConn(ctx context.Context, pageSize int) (exists bool, err error) {
	info, err := os.Stat(f.db.real)
	if errors.Is(err, fs.ErrNotExist) {
		return false, f.closeConn()
	} else if err != nil {
		return false, err
	}
	if c := f.conn.c; c != nil {
		if !os.SameFile(info, f.conn.info) {
			return true, errors.Join(ErrDatabaseReplaced, f.closeConn())
		}
		if c.pageSize != pageSize {
			return true, fmt.Errorf("%w: %d and %d bytes", ErrPageSizeMismatch, pageSize, c.pageSize)
		}
		return true, nil
	}
	c, err := openPageConn(ctx, f.db.real, pageSize)
	if err != nil {
		return true, err
	}
	f.conn.c, f.conn.info = c, info
	f.db.pool.Store(c.pool)
	return true, nil
}

func (f *follower) closeConn() error {
	if f.conn.c == nil {
		return nil
	}
	err := f.conn.c.Close()
	f.conn.c = nil
	f.db.pool.Store(nil)
	return err
}

// setState makes what was applied visible, and has it stored before long.
func (f *follower) setState(s followerState, pageSize int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.state = s
	if old, now := f.mu.generation, s.pos.Generation; now != old && now != "" {
		if old != "" {
			f.mu.left[old] = struct{}{}
		}
		delete(f.mu.left, now)
		f.mu.generation = now
	}
	f.db.status.Store(&dbStatus{open: true, pos: s.pos, pageSize: pageSize, capturedAt: time.Now()})
	close(f.mu.changed)
	f.mu.changed = make(chan struct{})
	f.scheduleStore()
}

// wakeWaiters lets every waitPos look again.
func (f *follower) wakeWaiters() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.mu.changed)
	f.mu.changed = make(chan struct{})
}

// waitPos waits until the follower has applied pos.
func (f *follower) waitPos(ctx context.Context, pos Pos) error {
	for {
		f.mu.Lock()
		at, changed, stopped := f.mu.state.pos, f.mu.changed, f.mu.stopped
		_, left := f.mu.left[pos.Generation]
		f.mu.Unlock()
		if at.Generation == pos.Generation && at.compare(pos) >= 0 {
			return nil
		}
		if left {
			return fmt.Errorf("wait for %s: %w", pos, ErrGenerationChanged)
		}
		if stopped {
			return fmt.Errorf("wait for %s: %w", pos, ErrDBClosed)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", pos, ctx.Err())
		}
	}
}

// checkpoint runs on the follower's own connection: to another's it would look
// as if someone had written to the database.
func (f *follower) checkpoint(ctx context.Context, mode string) error {
	deadline := time.Now().Add(BusyTimeout)
	for {
		done, err := f.tryCheckpoint(ctx, mode)
		if done || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: a change is being applied, or other connections are reading (%s)", ErrCheckpointBusy, mode)
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
}

func (f *follower) tryCheckpoint(ctx context.Context, mode string) (done bool, err error) {
	if !f.conn.TryLock() {
		return false, nil
	}
	defer f.conn.Unlock()
	if f.conn.closed {
		return false, ErrDBClosed // the DB may have another follower by now
	}
	if f.conn.c == nil {
		return true, nil // nothing was applied yet: what is there is not the follower's
	}
	r, err := f.conn.c.Checkpoint(ctx, mode)
	if err != nil {
		return false, err
	}
	return mode == CheckpointModePassive || !r.Busy, nil
}
