package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"time"

	"example.com/litestream/internal/atomicfile"
)

// EnsureExists restores the database from the replica that is furthest if
// there is no file at its path. It returns nil if the file exists or every
// replica is empty, so that a host can start afresh; a replica that cannot be
// read is an error. So is an empty file beside a replica that is not: SQLite
// makes one whenever it opens a path, and would go on with an empty database.
// Call it before Open and before opening the database.
//
// The file is restored with the defaults of [RestoreOptions], so with mode 0600,
// and missing directories are made with mode 0700. For other options call
// [LatestReplica] and [RestoreLatest].
func (db *DB) EnsureExists(ctx context.Context) error {
	if err := db.ensureExists(ctx); err != nil {
		return fmt.Errorf("ensure %s exists: %w", db.path, err)
	}
	return nil
}

func (db *DB) ensureExists(ctx context.Context) error {
	if err := checkPath(db.path); err != nil {
		return err
	}
	size, err := sizeOf(db.real)
	if err != nil || size > 0 {
		return err
	}
	r, err := latestReplica(ctx, db.Replicas)
	if errors.Is(err, ErrNoGeneration) {
		db.logf("no replica holds a database: nothing was restored")
		return nil
	} else if err != nil {
		return err
	}
	if size == 0 {
		return fmt.Errorf("the file is empty, but replica %q holds a database; remove the file if no program has it open: %w", r.Name(), fs.ErrExist)
	}
	if err := atomicfile.MkdirAll(db.fs, filepath.Dir(db.real), metaPath); err != nil {
		return err
	}
	opt := NewRestoreOptions()
	if opt.Logger = db.Logger; opt.Logger == nil {
		opt.Logger = log.New(io.Discard, "", 0)
	}
	opt.LogPrefix = fmt.Sprintf("replica %q: ", r.Name())
	_, err = RestoreLatest(ctx, r.client, db.real, opt)
	if errors.Is(err, fs.ErrExist) {
		if size, serr := sizeOf(db.real); serr == nil && size > 0 {
			return nil // another process restored it meanwhile
		}
	}
	return err
}

// sizeOf returns the size of a file, or -1 if there is none.
func sizeOf(name string) (int64, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	} else if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", name)
	}
	return info.Size(), nil
}

// LatestReplica returns the replica that is furthest, judged by what can be
// restored from it. The error matches ErrNoGeneration if all are empty; a
// replica that cannot be read is an error, since it might be the furthest.
func LatestReplica(ctx context.Context, replicas []*Replica) (*Replica, error) {
	r, err := latestReplica(ctx, replicas)
	if err != nil {
		return nil, fmt.Errorf("latest replica: %w", err)
	}
	return r, nil
}

func latestReplica(ctx context.Context, replicas []*Replica) (*Replica, error) {
	var latest *Replica
	var newest *RestorePlan
	for i, r := range replicas {
		if r == nil || r.client == nil {
			return nil, fmt.Errorf("replica %d is nil or has no client", i)
		}
		plan, err := PlanRestore(ctx, r.client, time.Time{})
		if errors.Is(err, ErrNoGeneration) || errors.Is(err, ErrNoSnapshots) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("replica %q: %w", r.Name(), err)
		}
		if latest != nil {
			if ok, err := further(ctx, r, plan, latest, newest); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		latest, newest = r, plan
	}
	if latest == nil {
		return nil, ErrNoGeneration
	}
	return latest, nil
}

// further reports whether the plan of r leads to a later state than that of s:
// by position where both are of one generation, else by the generations.
// Replicas cut the WAL into segments of their own, so that where the last one
// begins says nothing within an index: its end is read.
func further(ctx context.Context, r *Replica, plan *RestorePlan, s *Replica, other *RestorePlan) (bool, error) {
	if plan.Generation != other.Generation {
		return plan.rank.compare(other.rank) > 0, nil
	}
	if plan.Pos.Index != other.Pos.Index {
		return plan.Pos.Index > other.Pos.Index, nil
	}
	a, err := r.planEnd(ctx, plan)
	if err != nil {
		return false, err
	}
	b, err := s.planEnd(ctx, other)
	return a.compare(b) > 0, err
}

// planEnd returns the position that a plan for the replica leads to.
func (r *Replica) planEnd(ctx context.Context, plan *RestorePlan) (Pos, error) {
	if len(plan.Segments) == 0 {
		return plan.Pos, nil
	}
	at, err := readSegmentEnd(ctx, r.client, plan.Pos)
	if err != nil {
		return Pos{}, fmt.Errorf("replica %q: %w", r.Name(), err)
	}
	return at.pos, nil
}
