package litestream

import (
	"context"
	"time"
)

// SetClock puts test clocks in the place of the steady one and the machine's.
// It is called before Start.
func SetClock(r *Replica, steady, wall func() time.Time) { r.now, r.wall = steady, wall }

// SetJitter decides about delays that are drawn at random. It is called before
// Start.
func SetJitter(r *Replica, jitter func(limit time.Duration) time.Duration) { r.jitter = jitter }

// WakeLoop makes the run loop look at the clock again.
func (r *Replica) WakeLoop() { r.wake() }

// BeginGeneration gives the current generation up.
func (db *DB) BeginGeneration(ctx context.Context, reason string) error {
	return db.newGeneration(ctx, db.Pos().Generation, reason)
}
