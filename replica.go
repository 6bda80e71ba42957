package litestream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a Replica.
const (
	DefaultSyncInterval           = 1 * time.Second
	DefaultRetention              = 24 * time.Hour
	DefaultRetentionCheckInterval = 1 * time.Hour
)

// Replica brings the captured changes of a DB to a ReplicaClient. Construct it
// with [NewReplica], set the exported fields, and append it to DB.Replicas; do
// not change the fields after DB.Open. All methods are safe for concurrent
// use. Methods that need the DB return an error that matches ErrDBClosed if it
// is not open.
type Replica struct {
	// SyncInterval is the least time from the end of one automatic sync to the
	// next. A change after a longer pause is sent at once. 0 never waits.
	SyncInterval time.Duration

	// SnapshotInterval is the time between automatic snapshots, counted from
	// the newest one on the replica. 0 takes none beyond those that retention
	// needs.
	SnapshotInterval time.Duration

	// Retention is how long the history reaches back: every moment since then
	// can be restored. 0 keeps everything.
	Retention time.Duration

	// RetentionCheckInterval is the time between enforcements of Retention, the
	// first within it. 0 makes none: call EnforceRetention, as a program does
	// that runs for less.
	RetentionCheckInterval time.Duration

	// ValidationInterval is the time between automatic calls of Validate. 0
	// makes none.
	ValidationInterval time.Duration

	// MonitorEnabled makes DB.Open start the replica. Without it, call Sync.
	MonitorEnabled bool

	// Logger receives what a person must know.
	Logger *log.Logger

	db     *DB
	name   string
	client ReplicaClient
	woken  chan struct{} // the DB's position moved
	errs   errorLog
	now    func() time.Time                        // runs steadily: see steadyClock
	wall   func() time.Time                        // the machine's clock
	jitter func(limit time.Duration) time.Duration // draws a delay below limit

	jobErrs [jobCount]errorLog

	synced atomic.Int64 // Unix nanoseconds of the last success; 0 before
	due    atomic.Int64 // Unix nanoseconds from when on the run loop may sync
	count  struct {
		segments, snapshots, mismatches atomic.Uint64
		bytes                           atomic.Int64
	}

	role chan uploader // the uploader's state: whoever received it may write to the replica
	anew atomic.Bool   // the DB was opened since: the uploader's state says nothing

	pub struct {
		sync.Mutex              // leaf; guards:
		snapshot   SnapshotInfo // the last one written
		pos        Pos
		needs      Pos           // start of the lowest shadow WAL index that an upload or locate may ask for
		changed    chan struct{} // closed when pos changes
	}

	behind atomic.Int64 // nanoseconds that the replica's clock was behind this machine's, at most

	empty struct {
		sync.Mutex                      // leaf; guards:
		since      map[string]time.Time // generations without a file, when they were seen so first
	}

	life struct {
		sync.Mutex // Start and Stop, whole
		cancel     context.CancelFunc
		done       chan struct{}
	}
}

// uploader is the state of the one who writes to a replica.
type uploader struct {
	pos   Pos  // everything before it is on the replica
	known bool // pos was read from the client, and no write failed since

	damaged Pos       // the segment on the replica that could not be read by the last try
	stamp   time.Time // the latest that a segment of this generation was given by this process

	// failed is the last upload, if it failed. It may be stored yet, after another
	// of that name was: so the next ends there, too. Before the first snapshot
	// each try begins at the start of an index, and captured segments are not
	// joined: whatever is stored late is what the try after it has stored.
	failed struct {
		pos Pos
		end int64
	}
}

// NewReplica returns a replica of db with default settings. The name appears
// in logs, errors and DB.Replica; the client's type stands in for an empty one.
func NewReplica(db *DB, name string, client ReplicaClient) *Replica {
	if isNil(client) {
		client = nil // methods look for that alone
	}
	r := &Replica{
		SyncInterval:           DefaultSyncInterval,
		Retention:              DefaultRetention,
		RetentionCheckInterval: DefaultRetentionCheckInterval,
		MonitorEnabled:         true,

		db:     db,
		name:   name,
		client: client,
		woken:  make(chan struct{}, 1),
		role:   make(chan uploader, 1),
		now:    steadyClock(),
		wall:   time.Now,
		jitter: rand.N[time.Duration],
	}
	path := ""
	if db != nil {
		path = db.path
	}
	r.Logger = newLogger(logPrefix(path, r.Name()))
	r.errs.logf = r.logf
	for i := range r.jobErrs {
		r.jobErrs[i].logf = r.logf
	}
	r.role <- uploader{}
	r.pub.changed = make(chan struct{})
	return r
}

// steadyClock returns a clock that goes on from the present time however the
// machine's clock is set meanwhile: a jump alone must not make history look
// old enough to be deleted.
func steadyClock() func() time.Time {
	start := time.Now()
	return func() time.Time { return start.Add(time.Since(start)) }
}

// Name returns the name given to NewReplica, or the client's type.
func (r *Replica) Name() string {
	if r.name == "" && r.client != nil {
		return r.client.Type()
	}
	return r.name
}

// DB returns the database of the replica.
func (r *Replica) DB() *DB { return r.db }

// Client returns the replica's client.
func (r *Replica) Client() ReplicaClient { return r.client }

// Pos returns the position up to which the replica is durable. It is zero
// until the first sync has found out or made it so.
func (r *Replica) Pos() Pos {
	r.pub.Lock()
	defer r.pub.Unlock()
	return r.pub.pos
}

func (r *Replica) validate() error {
	return cmp.Or(
		checkInterval("SyncInterval", r.SyncInterval),
		checkInterval("SnapshotInterval", r.SnapshotInterval),
		checkInterval("Retention", r.Retention),
		checkInterval("RetentionCheckInterval", r.RetentionCheckInterval),
		checkInterval("ValidationInterval", r.ValidationInterval),
	)
}

// checkInterval rejects a negative setting.
func checkInterval(field string, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("%s is %s; it must not be negative", field, d)
	}
	return nil
}

// Start begins to sync whenever the DB's position moves, until ctx ends or
// Stop is called. DB.Open calls it if MonitorEnabled is set. A replica that was
// started is left alone.
func (r *Replica) Start(ctx context.Context) {
	r.life.Lock()
	defer r.life.Unlock()
	if r.life.cancel != nil || r.db == nil || r.client == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	r.life.cancel, r.life.done = cancel, done
	go func() {
		defer close(done)
		r.run(ctx)
	}()
}

// Stop ends what Start began and waits for it. A running upload is cancelled;
// nothing is lost: the next sync goes on from what the replica has.
func (r *Replica) Stop() {
	r.life.Lock()
	defer r.life.Unlock()
	if r.life.cancel == nil {
		return
	}
	r.life.cancel()
	<-r.life.done
	r.life.cancel, r.life.done = nil, nil
}

// Close is Stop. It always returns nil.
func (r *Replica) Close() error { r.Stop(); return nil }

func (r *Replica) wake() { wake(r.woken) }

// run syncs at the leading edge, at once after a pause, else when SyncInterval
// is over, and starts the jobs that are due, one at a time.
func (r *Replica) run(ctx context.Context) {
	syncTimer := time.NewTimer(0) // what the replica lacks from before
	defer syncTimer.Stop()
	ended := time.Unix(0, 0) // of the last sync that sent something, or failed
	var fail backoff

	jobs := r.schedule(r.now())
	var running replicaJob
	var done chan time.Time // while a job runs: receives when it is due again
	defer func() {
		if done != nil {
			<-done
		}
	}()
	jobTimer := time.NewTimer(0)
	defer jobTimer.Stop()

	for {
		jobTimer.Stop()
		job, due, ok := jobs.next()
		if ok && done == nil {
			jobTimer.Reset(due.Sub(r.now()))
		}
		select {
		case <-ctx.Done():
			return
		case jobs[running] = <-done:
			done = nil
		case <-jobTimer.C:
			running, done = job, make(chan time.Time, 1)
			go func(done chan<- time.Time) { done <- r.runJob(ctx, job) }(done)
		case <-r.woken:
			syncTimer.Reset(max(time.Until(ended.Add(r.SyncInterval)), time.Until(ended.Add(fail.wait)), 0))
		case <-syncTimer.C:
			if r.Pos() == r.db.Pos() {
				continue // someone else has synced it
			}
			// The monitor may have put a capture off. If it fails, the monitor
			// reports that; what was captured before is sent all the same.
			_ = r.db.sync(ctx, tierNone)
			sent := r.sent()
			err := r.Sync(ctx)
			if err != nil || r.sent() != sent { // else a lone commit need not wait for the interval
				ended = time.Now()
			}
			if fail = fail.next(err); err != nil {
				r.wake() // again, without waiting for a commit
			}
			r.due.Store(ended.Add(max(r.SyncInterval, fail.wait)).UnixNano())
		}
	}
}

// sent counts what was written to the replica.
func (r *Replica) sent() uint64 { return r.count.segments.Load() + r.count.snapshots.Load() }

// untilDue returns how long the run loop waits at least until it can use what is
// captured. A replica that is not started waits for nothing.
func (r *Replica) untilDue(now time.Time) time.Duration {
	return time.Unix(0, r.due.Load()).Sub(now)
}

// backoff is the pause after failed tries, with jitter.
type backoff struct {
	base, wait time.Duration
}

const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 1 * time.Minute
)

func (b backoff) next(err error) backoff {
	if err == nil {
		return backoff{}
	}
	b.base = min(max(2*b.base, minBackoff), maxBackoff)
	b.wait = b.base/2 + rand.N(b.base/2)
	return b
}

// acquire makes the caller the one who writes to the replica.
func (r *Replica) acquire(ctx context.Context) (*uploader, error) {
	if r.db == nil || r.client == nil {
		return nil, errors.New("replica has no database or no client")
	}
	select {
	case u := <-r.role:
		return &u, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *Replica) release(u *uploader) { r.role <- *u }

// Sync brings everything that is captured to the replica, now, and returns
// when it is durable there. It captures nothing: see DB.SyncAndWait. On an
// error nothing is skipped; the next call begins with what the replica has.
func (r *Replica) Sync(ctx context.Context) (err error) {
	u, err := r.acquire(ctx)
	if err == nil {
		err = r.sync(ctx, u)
		u.known = u.known && err == nil
		r.release(u)
	}
	if err != nil {
		err = fmt.Errorf("sync replica %q: %w", r.Name(), err)
	} else {
		r.synced.Store(time.Now().UnixNano())
	}
	if ctx.Err() == nil {
		r.errs.note("sync", err)
	}
	return err
}

// maxGenerations bounds how many changes of generation one sync follows.
const maxGenerations = 3

func (r *Replica) sync(ctx context.Context, u *uploader) (err error) {
	for range maxGenerations {
		if r.anew.Swap(false) {
			*u = uploader{failed: u.failed}
		}
		st := r.db.status.Load()
		target := st.pos
		if !st.open {
			return errNotOpen
		} else if target.IsZero() {
			return nil
		}
		if !u.known || u.pos.Generation != target.Generation {
			if err = r.locate(ctx, u, target); err == nil {
				target = r.db.Pos()
			}
		}
		if err == nil {
			if err = r.uploadTo(ctx, u, target); err == nil {
				r.publish(u.pos)
				return nil
			}
		}
		if !errors.Is(err, ErrGenerationChanged) {
			return err
		}
	}
	return err
}

// WaitPos waits until the replica is durable up to pos, without asking for an
// upload before its time. The error matches ErrGenerationChanged if both the
// replica and the DB have left the generation of pos, and ErrDBClosed if the
// DB is not open, so that nothing will come.
func (r *Replica) WaitPos(ctx context.Context, pos Pos) error {
	if pos.IsZero() {
		return nil
	}
	for {
		r.pub.Lock()
		at, changed := r.pub.pos, r.pub.changed
		r.pub.Unlock()
		if at.Generation == pos.Generation {
			if at.compare(pos) >= 0 {
				return nil
			}
		}
		if r.db == nil || !r.db.status.Load().open {
			return fmt.Errorf("wait for %s on replica %q: %w", pos, r.Name(), errNotOpen)
		}
		if !at.IsZero() && at.Generation != pos.Generation && r.db.Pos().Generation != pos.Generation {
			return fmt.Errorf("wait for %s on replica %q: %w", pos, r.Name(), ErrGenerationChanged)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s on replica %q: %w", pos, r.Name(), ctx.Err())
		}
	}
}

// publish makes a durable position visible.
func (r *Replica) publish(pos Pos) {
	r.pub.Lock()
	defer r.pub.Unlock()
	if r.pub.pos == pos {
		return
	}
	r.pub.pos = pos
	r.wakeWaiters()
}

// wakeWaiters lets every WaitPos look again. r.pub is locked.
func (r *Replica) wakeWaiters() {
	close(r.pub.changed)
	r.pub.changed = make(chan struct{})
}

// dbOpened forgets what an earlier opening of the DB knew of the replica:
// another manager may have written to it meanwhile.
func (r *Replica) dbOpened() {
	r.anew.Store(true)
	r.pub.Lock()
	defer r.pub.Unlock()
	r.pub.pos, r.pub.needs = Pos{}, Pos{}
}

// dbClosed ends every WaitPos, after the DB's status says that it is closed.
func (r *Replica) dbClosed() {
	r.pub.Lock()
	defer r.pub.Unlock()
	r.wakeWaiters()
}

func (r *Replica) noteSnapshot(info SnapshotInfo) {
	r.pub.Lock()
	defer r.pub.Unlock()
	r.pub.snapshot = info
}

func (r *Replica) lastSnapshot() SnapshotInfo {
	r.pub.Lock()
	defer r.pub.Unlock()
	return r.pub.snapshot
}

// need notes from which index on uploads, and locate, may ask for segments.
func (r *Replica) need(pos Pos) {
	r.pub.Lock()
	defer r.pub.Unlock()
	r.pub.needs = pos.Truncate()
}

// needs returns the lowest index of the shadow WAL that the replica may still
// ask for: all of them while its position is not known (I7).
func (r *Replica) needs(pos Pos) int {
	r.pub.Lock()
	defer r.pub.Unlock()
	if r.pub.needs.Generation != pos.Generation {
		return 0
	}
	return r.pub.needs.Index
}

// Stats returns the current figures. It takes no lock that is held during I/O.
func (r *Replica) Stats() ReplicaStats {
	s := ReplicaStats{
		Name:      r.Name(),
		Pos:       r.Pos(),
		LastError: r.errs.lastError(),
		Segments:  r.count.segments.Load(),
		Snapshots: r.count.snapshots.Load(),
		Bytes:     r.count.bytes.Load(),

		ChecksumMismatches: r.count.mismatches.Load(),
	}
	if n := r.synced.Load(); n != 0 {
		s.LastSync = time.Unix(0, n)
	}
	if r.db == nil {
		return s
	}
	if pos := r.db.Pos(); s.Pos != pos {
		if t := r.db.shadow.capturedAfter(s.Pos, pos); !t.IsZero() {
			s.Lag = max(time.Since(t), 0)
		}
	}
	return s
}

func (r *Replica) logf(format string, a ...any) {
	if r.Logger != nil {
		r.Logger.Printf(format, a...)
	}
}
