package litestream

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// replicaJob is work that a replica does now and then, beside its syncs.
type replicaJob int

const (
	jobSnapshot replicaJob = iota
	jobRetention
	jobValidation
	jobCount
)

func (j replicaJob) String() string { return [...]string{"snapshot", "retention", "validation"}[j] }

// interval is the time from one run of a job to the next; 0 means never.
func (r *Replica) interval(j replicaJob) time.Duration {
	switch {
	case j == jobSnapshot:
		return r.SnapshotInterval
	case j == jobRetention && r.Retention > 0:
		return r.RetentionCheckInterval
	case j == jobValidation:
		return r.ValidationInterval
	}
	return 0
}

// jobRetry is the pause after a job that failed, unless its interval is
// shorter.
const jobRetry = 1 * time.Minute

// jobSchedule holds when each job is due; the zero time means never.
type jobSchedule [jobCount]time.Time

// schedule returns when each job is due first. Whether a snapshot is due
// depends on the replica, so its job looks at once. Retention is enforced once
// per interval on average, however often the program restarts, and at times of
// its own for each of many databases.
func (r *Replica) schedule(now time.Time) (s jobSchedule) {
	for j := range jobCount {
		switch d := r.interval(j); {
		case d <= 0:
		case j == jobSnapshot:
			s[j] = now
		case j == jobRetention:
			s[j] = now.Add(r.jitter(d))
		default:
			s[j] = now.Add(d)
		}
	}
	return s
}

// next returns the job that is due first.
func (s *jobSchedule) next() (j replicaJob, at time.Time, ok bool) {
	for i, t := range s {
		if !t.IsZero() && (!ok || t.Before(at)) {
			j, at, ok = replicaJob(i), t, true
		}
	}
	return j, at, ok
}

// runJob runs a job and returns when it is due again.
func (r *Replica) runJob(ctx context.Context, j replicaJob) time.Time {
	wait := r.interval(j)
	var err error
	switch j {
	case jobSnapshot:
		wait, err = r.snapshotIfDue(ctx)
	case jobRetention:
		err = r.EnforceRetention(ctx)
	case jobValidation:
		err = r.Validate(ctx)
	}
	if err != nil {
		wait = min(r.interval(j), jobRetry)
	}
	if ctx.Err() == nil && !errors.Is(err, ErrNoGeneration) { // without one there is nothing to do yet
		r.jobErrs[j].note(j.String(), err)
	}
	return r.now().Add(wait)
}

// snapshotIfDue makes a snapshot if the newest one of the current generation
// is SnapshotInterval old, whoever made it, and returns how long to wait until
// the next is due. Once it has made one, the replica's clock does not count.
func (r *Replica) snapshotIfDue(ctx context.Context) (wait time.Duration, err error) {
	generation := r.Pos().Generation
	if generation == "" {
		return 0, fmt.Errorf("snapshot schedule: %w", ErrNoGeneration)
	}
	snapshots, err := r.snapshotsOf(ctx, generation)
	if err != nil {
		return 0, fmt.Errorf("snapshot schedule: %w", err)
	}
	now := r.stampTime()
	for _, s := range snapshots {
		// A stamp from further in the future is that of a clock that jumped.
		if age := now.Sub(s.CreatedAt); age > -r.SnapshotInterval {
			wait = max(wait, r.SnapshotInterval-age)
		}
	}
	if wait > 0 {
		return wait, nil
	}
	_, err = r.Snapshot(ctx)
	return r.SnapshotInterval, err
}
