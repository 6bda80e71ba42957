package litestream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// keeper keeps the WAL from being overwritten before it is captured (I5), and
// lets it restart as soon as it is.
//
// It holds a read transaction, the pin. One that begins when the whole WAL is
// in the database file holds SQLite's read mark 0: nothing can be backfilled,
// but the WAL may restart once. Any other holds a mark at its snapshot:
// backfill stops there, and the WAL cannot restart. The order of roll and
// barrier makes both enough:
//
//   - A pin ends only when another transaction of ours is open, and after a
//     capture that followed its begin. So everything up to its mark is captured.
//   - Hence a pin that was given mark 0 stands at the WAL's end, and that end
//     is captured: the pin before it let no frame beyond its own mark be
//     backfilled. A restart under it loses nothing, and what is committed
//     after the restart cannot be backfilled until the pin moves.
//
// Two connections take turns: the one that does not hold the pin begins the
// next one, holds the write lock, or checkpoints.
type keeper struct {
	open       func(ctx context.Context) (sqliteConn, error)
	capture    func() error                 // captures all that is committed
	counted    func(checkpointResult) error // of a checkpoint that followed a capture
	pin, spare sqliteConn                   // nil until needed
	held       func(time.Duration)
}

// begin takes the first pin.
func (k *keeper) begin(ctx context.Context) error {
	c, err := k.open(ctx)
	if err != nil {
		return err
	}
	if err := c.BeginRead(ctx); err != nil {
		return errors.Join(err, c.Close())
	}
	k.pin = c
	return nil
}

// close ends the pin and closes the connections.
func (k *keeper) close() error {
	var errs []error
	for _, c := range []sqliteConn{k.spare, k.pin} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	k.spare, k.pin = nil, nil
	return errors.Join(errs...)
}

// rest closes the connection that an idle database does not need.
func (k *keeper) rest() error {
	if k.spare == nil {
		return nil
	}
	c := k.spare
	k.spare = nil
	return c.Close()
}

// errPinLost reports that the pin ended without our doing: continuity cannot
// be proven any more.
var errPinLost = errors.New("read transaction was lost")

// check verifies that the pin still stands.
func (k *keeper) check() error {
	if k.pin == nil {
		return errPinLost
	}
	ok, err := k.pin.InTransaction()
	if err != nil {
		return fmt.Errorf("%w: %w", errPinLost, err)
	}
	if !ok {
		return errPinLost
	}
	return nil
}

func (k *keeper) ensureSpare(ctx context.Context) (err error) {
	if k.spare == nil {
		k.spare, err = k.open(ctx)
	}
	return err
}

// abandonSpare closes a connection that is in a state we do not know.
func (k *keeper) abandonSpare(cause error) error {
	c := k.spare
	k.spare = nil
	return errors.Join(cause, c.Close())
}

// roll moves the pin to the newest commit. It takes no write lock.
func (k *keeper) roll(ctx context.Context) error {
	if err := k.ensureSpare(ctx); err != nil {
		return err
	}
	if err := k.spare.BeginRead(ctx); err != nil {
		return k.abandonSpare(err)
	}
	if err := k.capture(); err != nil {
		return k.endSpare(err)
	}
	k.pin, k.spare = k.spare, k.pin
	if err := k.spare.End(); err != nil {
		return k.abandonSpare(err)
	}
	return nil
}

func (k *keeper) endSpare(cause error) error {
	if err := k.spare.End(); err != nil {
		return k.abandonSpare(errors.Join(cause, err))
	}
	return cause
}

// cooperate is the first tier: the heavy copying happens here, beside the
// writers. If no commit comes in between, the WAL restarts with the next one.
func (k *keeper) cooperate(ctx context.Context) (r checkpointResult, err error) {
	if err := k.roll(ctx); err != nil {
		return r, err
	}
	// The host's own checkpoint, for which the pin has made way, may be faster.
	if r, err = passive(ctx, k.spare, maxLockHold); err != nil {
		return r, k.abandonSpare(err)
	}
	if err = k.counted(r); err == nil && r.complete() {
		err = k.roll(ctx)
	}
	return r, err
}

// barrier is the second tier: it keeps writers out while it captures the rest
// of the WAL, has it backfilled, and moves the pin to its end. The result is
// complete unless other readers, or another checkpoint, are in the way.
func (k *keeper) barrier(ctx context.Context, deadline time.Time) (r checkpointResult, err error) {
	err = k.excluding(ctx, time.Until(deadline), func() error {
		if err := k.capture(); err != nil {
			return err
		}
		// From here the write transaction is the pin.
		if err := k.pin.End(); err != nil {
			return k.lose(err)
		}
		var cerr error
		r, cerr = passive(ctx, k.pin, min(time.Until(deadline), maxLockHold))
		if err := k.pin.BeginRead(bg); err != nil {
			return k.lose(errors.Join(cerr, err))
		}
		if cerr != nil {
			return cerr
		}
		return k.counted(r)
	})
	return r, err
}

// excluding calls fn while the spare connection holds the write lock.
func (k *keeper) excluding(ctx context.Context, wait time.Duration, fn func() error) error {
	if err := k.ensureSpare(ctx); err != nil {
		return err
	}
	if err := k.spare.BeginWrite(ctx, wait); isBusy(err) {
		return err
	} else if err != nil {
		return k.abandonSpare(err)
	}
	locked := time.Now()
	err := fn()
	if k.spare != nil { // fn did not lose it
		err = k.endSpare(err)
	}
	k.held(time.Since(locked))
	return err
}

// maxLockHold bounds how long a barrier waits, with writers kept out, for a
// checkpoint that another connection runs.
const maxLockHold = 10 * time.Millisecond

// passive checkpoints, trying again while another connection's checkpoint runs.
func passive(ctx context.Context, c sqliteConn, wait time.Duration) (r checkpointResult, err error) {
	deadline := time.Now().Add(wait)
	for {
		r, err = c.Checkpoint(ctx, CheckpointModePassive)
		if err != nil || r.Log >= 0 || time.Now().After(deadline) {
			return r, err
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// lose gives up both connections after the pin failed in the middle of a
// barrier.
func (k *keeper) lose(cause error) error {
	return fmt.Errorf("%w: %w", errPinLost, errors.Join(cause, k.close()))
}

// attempt tries once to complete a checkpoint of a mode, waiting at most wait
// for the write lock. It is not done while other connections are in the way.
func (k *keeper) attempt(ctx context.Context, mode string, wait time.Duration) (done bool, err error) {
	if mode == CheckpointModePassive {
		_, err := k.cooperate(ctx)
		return true, err // it waits for no reader or writer
	}
	r, err := k.barrier(ctx, time.Now().Add(wait))
	if isBusy(err) && !errors.Is(err, errPinLost) {
		return false, nil
	}
	if err != nil || !r.complete() || mode == CheckpointModeFull {
		return r.complete(), err
	}
	// Nothing is left to backfill: what a writer adds from now on is held back
	// by the pin, and makes the pragma busy.
	if r, err = k.spare.Checkpoint(ctx, mode); err != nil {
		return false, k.abandonSpare(err)
	}
	return !r.Busy, nil
}

// sleep waits for d and reports whether it did; false means that ctx is done.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// checkpointTier is how far an automatic checkpoint goes.
type checkpointTier int

const (
	tierNone checkpointTier = iota
	tierCooperate
	tierBarrier
	tierRestart
)

// checkpointPolicy decides when automatic checkpoints run.
type checkpointPolicy struct {
	min, max int           // pages; max 0 means that none is forced
	interval time.Duration // 0 means that none is due by time
}

// checkpointLoad is what the decision depends on. Thresholds are in pages of
// the current WAL, since the last restart.
type checkpointLoad struct {
	pages      int64 // in the WAL
	backfilled bool  // all of them are in the database file
	cooperate  int64 // pages at the last attempt of each tier; 0 for none
	barrier    int64
	restart    int64
	growth     int64         // expected while a checkpoint runs beside the writers
	burst      int64         // expected within burstTime
	age        time.Duration // since the last checkpoint
	snapshots  int           // running: they pin the WAL
}

// maxCooperate bounds, in pages, how large a WAL grows before the first tier.
const maxCooperate = 500

// due returns the highest tier that is worth an attempt. An attempt that did
// not lead to a restart is repeated only after the WAL has grown again.
func (p checkpointPolicy) due(l checkpointLoad) checkpointTier {
	switch {
	case l.backfilled: // the next commit restarts the WAL
		return tierNone
	case l.pages >= p.restartAt(l):
		return tierRestart
	case l.pages >= p.barrierAt(l):
		return tierBarrier
	case l.pages >= p.cooperateAt(l) && !p.outrun(l):
		return tierCooperate
	case p.interval > 0 && l.age >= p.interval && l.pages > 0:
		return tierCooperate
	}
	return tierNone
}

// dueAt returns how many pages the WAL has when the next attempt is due.
func (p checkpointPolicy) dueAt(l checkpointLoad) int64 {
	return min(p.restartAt(l), p.barrierAt(l), p.cooperateAt(l))
}

func (p checkpointPolicy) restartAt(l checkpointLoad) int64 {
	if p.max <= 0 || l.snapshots > 0 {
		return math.MaxInt64
	}
	return again(int64(p.max), l.restart, int64(p.max)/4)
}

// burstTime is how long a WAL that grows fast is left alone. A barrier costs its
// writers the pauses of SQLite's busy handler, some 3 ms. Between two of them the
// pin stands still at a mark that the first tier has backfilled to, and the
// host's automatic checkpoints, tried with each commit from 1000 pages on, see
// at once that there is nothing to do.
const burstTime = 30 * time.Millisecond

// burst returns the size to which fast writers bring a WAL that is left alone,
// a quarter of the maximum at most. It is 0 for all others.
func (p checkpointPolicy) burst(l checkpointLoad) int64 {
	n := l.burst
	if p.max > 0 {
		n = min(n, int64(p.max)/4)
	}
	if n < int64(p.min) {
		return 0
	}
	return n
}

// small is the size at which the first tier comes.
func (p checkpointPolicy) small() int64 { return int64(min(p.min, max(p.min/2, 1), maxCooperate)) }

func (p checkpointPolicy) barrierAt(l checkpointLoad) int64 {
	first := max(int64(p.min), p.burst(l))
	return again(first, l.barrier, first/2)
}

// cooperateAt comes earlier for a fast writer. Its pin holds read mark 0 until
// the first tier has moved it; from 1000 pages on each of its commits would try
// a checkpoint against that, which sorts the whole WAL before it finds the mark
// locked.
func (p checkpointPolicy) cooperateAt(l checkpointLoad) int64 {
	small := p.small()
	return again(small-min(l.growth, small/2), l.cooperate, max(small, p.burst(l)))
}

// outrun reports whether the WAL may grow beyond its maximum during the first
// tier, which takes longer now and then than ever before. Where the disk is that
// slow, only the write lock holds writers back.
func (p checkpointPolicy) outrun(l checkpointLoad) bool {
	return p.max > 0 && l.pages+2*l.growth > int64(p.max)
}

// maxLockedCapture bounds, in bytes of the WAL, what is left to capture with
// writers kept out: it takes some 30 ms.
const maxLockedCapture = 16 << 20

// farBehind returns between how many frames that are not captured a barrier
// comes before the capture: a quarter of the maximum, and what the lock may be
// held for. Beside writers that fast a capture is late as soon as it ends.
func (p checkpointPolicy) farBehind(frameSize int) (from, to int64) {
	return int64(p.max) / 4, maxLockedCapture / int64(frameSize)
}

// beyond reports whether the WAL does not restart, and is above its maximum.
func (p checkpointPolicy) beyond(l checkpointLoad) bool {
	return l.snapshots > 0 || !l.backfilled && l.pages >= int64(p.max)
}

// again returns first, or what is by step above the last attempt, if any.
func again(first, last, step int64) int64 {
	if last == 0 {
		return first
	}
	return max(first, last+max(step, 1))
}
