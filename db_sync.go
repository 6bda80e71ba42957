package litestream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Sync captures everything that was committed before the call. It returns nil
// if there is no database yet. It does not wait for replicas. A follower
// captures nothing: the error matches ErrFollower.
func (db *DB) Sync(ctx context.Context) error {
	if err := db.sync(ctx, tierNone); err != nil {
		return fmt.Errorf("sync %s: %w", db.path, err)
	}
	return nil
}

// sync captures, then checkpoints if one is due, up to a tier.
func (db *DB) sync(ctx context.Context, limit checkpointTier) error {
	tier, whole := tierNone, false
	err := db.withSession(ctx, func(s *session) (err error) {
		policy, before := db.checkpointPolicy(), s.capt.pos
		if limit != tierNone && db.fruitless() == 0 { // else what is ahead is one transaction
			if err := s.catchUp(ctx, policy); err != nil {
				return err
			}
		}
		began := time.Now()
		err = s.capture()
		if s.capt.pos == before {
			db.count.fruitless.Store(int64(time.Since(began)))
		} else {
			db.count.fruitless.Store(0)
		}
		if err != nil || limit == tierNone {
			return err
		}
		if tier, err = s.autoCheckpoint(ctx, policy); tier != tierNone {
			db.count.checkpoints.Add(1)
		}
		whole = s.backfilled == s.capt.pos
		db.count.checkpointAt.Store(time.Now().Add(s.untilDue(policy)).UnixNano())
		return err
	})
	if err == nil && tier == tierRestart && !whole {
		err = db.restartWAL(ctx)
	}
	if errors.Is(err, errNoDatabase) {
		return nil
	}
	return err
}

// walAhead reports whether the WAL has grown by as many frames as a checkpoint
// is due for, or cannot be looked at, since the last capture. If that read for
// long and found no commit, what is ahead is one large transaction.
func (db *DB) walAhead() bool {
	if fruitlessRest*db.fruitless() > maxBlindWait {
		return false
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	s := db.mu.session
	if s == nil {
		return true
	}
	ok, err := s.capt.ahead(int64(db.MinCheckpointPageN), math.MaxInt32)
	return ok || err != nil
}

// fruitless returns how long the last capture took, if it found no commit:
// reading a large transaction that is still open takes long.
func (db *DB) fruitless() time.Duration { return time.Duration(db.count.fruitless.Load()) }

func (db *DB) checkpointPolicy() checkpointPolicy {
	return checkpointPolicy{min: db.MinCheckpointPageN, max: db.MaxCheckpointPageN, interval: db.CheckpointInterval}
}

// withSession calls fn with the session, holding DB.mu. The error matches
// errNoDatabase if there is no database yet.
func (db *DB) withSession(ctx context.Context, fn func(*session) error) error {
	if err := db.mu.LockContext(ctx); err != nil {
		return err
	}
	defer db.mu.Unlock()
	s, err := db.ready(ctx)
	if err != nil {
		return err
	}
	if s == nil {
		return errNoDatabase
	}
	if err := fn(s); errors.Is(err, errPinLost) {
		return errors.Join(err, db.endSession()) // the next call opens another
	} else if err != nil {
		return err
	}
	return nil
}

// restartWAL repeats barriers, for at most BusyTimeout, until the WAL has
// restarted, or will with the next commit. Captures run between them. A reader
// that outlasts this is no error: the WAL has to grow on.
func (db *DB) restartWAL(ctx context.Context) error {
	deadline := time.Now().Add(BusyTimeout)
	for pause := time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 50*time.Millisecond) {
		before := db.Pos()
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
		restarted := false
		err := db.withSession(ctx, func(s *session) error {
			if err := s.capture(); err != nil {
				return err
			}
			if restarted = s.capt.pos.Index != before.Index || s.capt.pos == s.backfilled; restarted {
				return nil
			}
			return s.barrier(ctx)
		})
		if restarted || err != nil {
			return err
		}
	}
	tracef("%s: the wal did not restart: a reader holds an old snapshot", db.path)
	return nil
}

// ready returns the session, opening or replacing it as the files demand. It
// returns nil if there is no database yet. DB.mu is held.
func (db *DB) ready(ctx context.Context) (*session, error) {
	if db.follower.Load() != nil {
		return nil, ErrFollower
	}
	if !db.mu.open {
		return nil, errNotOpen
	}
	if s := db.mu.session; s != nil {
		err := s.verify()
		if err == nil {
			return s, nil
		}
		db.logf("reopening the database: %v", err)
		if errors.Is(err, errFileReplaced) {
			if err := db.setStaleWAL(newStaleWAL(db.WALPath(), s.walInfo)); err != nil {
				return nil, err
			}
		}
		if err := db.endSession(); err != nil {
			return nil, err
		}
	}
	if stale, err := db.staleWAL(); err != nil {
		return nil, err
	} else if stale {
		return nil, fmt.Errorf("%w, and %s belongs to the old file: close its connections and remove it", ErrDatabaseReplaced, db.WALPath())
	}
	s, err := openSession(ctx, db.real, db.WALPath(), db.mu.capturer)
	if errors.Is(err, errNoDatabase) {
		if db.mu.seen {
			return nil, fmt.Errorf("%w: it was deleted", ErrDatabaseReplaced)
		}
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	s.onCapture, s.keep.held = db.publish, db.count.holds.add
	db.mu.session, db.mu.seen = s, true
	db.pool.Store(s.pool)
	if !s.capt.pos.IsZero() { // else replicas go on with what was captured, until there is a new generation
		db.publish(captured{})
	}
	return s, nil
}

// staleWAL reports whether the WAL beside the database is that of a file that
// was replaced.
func (db *DB) staleWAL() (bool, error) {
	if db.mu.staleWAL == nil {
		return false, nil
	}
	stale, err := db.mu.staleWAL.isAt(db.WALPath())
	if err != nil || stale {
		return stale, err
	}
	return false, db.setStaleWAL(nil)
}

func (db *DB) setStaleWAL(w *staleWAL) (err error) {
	if old := db.mu.staleWAL; old != nil {
		err = old.close()
	}
	db.mu.staleWAL = w
	return err
}

// publish makes the capturer's position visible and wakes the replicas. It is
// called with DB.mu held, when the bytes before the position are readable.
func (db *DB) publish(got captured) {
	c, old := db.mu.capturer, db.status.Load()
	st := &dbStatus{open: true, pos: c.pos, pageSize: old.pageSize, walSize: c.cursor.offset, capturedAt: old.capturedAt}
	if s := db.mu.session; s != nil {
		st.pageSize = s.pageSize
	}
	if got.segments > 0 {
		st.capturedAt = time.Now()
	}
	db.status.Store(st)
	db.count.add(got)
	if got.generation != "" {
		db.logf("new generation %s: %s", st.pos.Generation, got.generation)
		db.endIterators(ErrGenerationChanged)
	}
	if st.pos != old.pos {
		db.feedIterators(old.pos, st.pos)
		db.streams.wake()
		for _, r := range db.Replicas {
			r.wake()
		}
	}
	if got.restarts > 0 {
		db.prune()
	}
}

// prune removes captured indexes that nobody needs (I7).
func (db *DB) prune() {
	pos := db.Pos()
	keep := pos.Index - db.ShadowRetentionN + 1
	for _, r := range db.Replicas {
		keep = min(keep, r.needs(pos))
	}
	keep = db.iteratorsNeed(keep)
	keep = db.streams.needs(keep, func(index int) bool { return db.shadow.bytesFrom(index) > db.streamBacklog() })
	if err := db.shadow.prune(keep); err != nil {
		tracef("%s: %v", db.path, err) // tried again with the next restart
	}
}

// newGeneration gives the current generation up, because the replica's data
// does not belong to the captured WAL.
func (db *DB) newGeneration(ctx context.Context, old, reason string) error {
	return db.withSession(ctx, func(s *session) error {
		if s.capt.pos.Generation != old {
			return nil // another replica asked first
		}
		s.capt.forget(reason)
		return s.capture()
	})
}

// Checkpoint runs a checkpoint in one of SQLite's modes, CheckpointModePassive
// and so on, without losing a frame (I5). It waits at most BusyTimeout for
// other connections; an error that matches ErrCheckpointBusy says that they
// kept the mode from completing. It returns nil if there is no database yet.
func (db *DB) Checkpoint(ctx context.Context, mode string) error {
	if err := db.checkpoint(ctx, mode); err != nil && !errors.Is(err, errNoDatabase) {
		return fmt.Errorf("checkpoint %s: %w", db.path, err)
	}
	return nil
}

func (db *DB) checkpoint(ctx context.Context, mode string) error {
	switch mode {
	case CheckpointModePassive, CheckpointModeFull, CheckpointModeRestart, CheckpointModeTruncate:
	default:
		return fmt.Errorf("mode %q is none of PASSIVE, FULL, RESTART, TRUNCATE", mode)
	}
	if f := db.follower.Load(); f != nil {
		return f.checkpoint(ctx, mode)
	}
	deadline := time.Now().Add(BusyTimeout)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		done := false
		err := db.withSession(ctx, func(s *session) (err error) {
			if err = s.capture(); err == nil {
				done, err = s.tryCheckpoint(ctx, mode)
			}
			return err
		})
		if done || err != nil {
			db.count.checkpoints.Add(1)
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: other connections are reading or writing (%s)", ErrCheckpointBusy, mode)
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// SyncAndWait captures everything committed before the call and returns when
// every replica has it durably. It does not wait for any interval. Like Sync, it
// returns nil if there is no database yet.
func (db *DB) SyncAndWait(ctx context.Context) error {
	if err := db.Sync(ctx); err != nil {
		return err
	}
	return eachReplica(db.Replicas, func(r *Replica) error { return r.Sync(ctx) })
}

// WaitPos waits until every replica has pos, without asking for an upload
// before its time. An error matches ErrGenerationChanged if pos belongs to a
// generation that was given up, and is ctx's if that ends first. On a follower
// it waits until pos, of the upstream, is applied; a generation was given up if
// the follower had a position of it since Open, and has one of another now.
func (db *DB) WaitPos(ctx context.Context, pos Pos) error {
	if f := db.follower.Load(); f != nil {
		return f.waitPos(ctx, pos)
	}
	return eachReplica(db.Replicas, func(r *Replica) error { return r.WaitPos(ctx, pos) })
}

// eachReplica calls fn for all replicas at once and joins their errors.
func eachReplica(replicas []*Replica, fn func(*Replica) error) error {
	if slices.Contains(replicas, nil) { // Open would have refused it
		return errors.New("a replica is nil")
	}
	if len(replicas) == 1 {
		return fn(replicas[0])
	}
	errs := make([]error, len(replicas))
	var wg sync.WaitGroup
	for i, r := range replicas {
		wg.Go(func() { errs[i] = fn(r) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
