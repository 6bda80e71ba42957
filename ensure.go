package litestream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"example.com/litestream/internal/atomicfile"
)

// EnsureExists restores the database from the replica that is furthest if
// there is no file at its path. It returns nil if the file exists or every
// replica is empty, so that a host can start afresh; a replica that cannot be
// read is an error. Call it before Open and before opening the database.
func (db *DB) EnsureExists(ctx context.Context) error {
	if _, err := os.Stat(db.real); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ensure %s exists: %w", db.path, err)
	}
	r, err := latestReplica(ctx, db.Replicas)
	if errors.Is(err, ErrNoGeneration) {
		return nil
	} else if err != nil {
		return fmt.Errorf("ensure %s exists: %w", db.path, err)
	}
	if err := atomicfile.MkdirAll(db.fs, filepath.Dir(db.real), metaPath); err != nil {
		return fmt.Errorf("ensure %s exists: %w", db.path, err)
	}
	opt := NewRestoreOptions()
	opt.Logger = db.Logger
	pos, err := RestoreLatest(ctx, r.client, db.real, opt)
	if err != nil {
		return fmt.Errorf("ensure %s exists: %w", db.path, err)
	}
	db.logf("restored from replica %q up to %s", r.Name(), pos)
	return nil
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
	for _, r := range replicas {
		plan, err := PlanRestore(ctx, r.client, time.Time{})
		if errors.Is(err, ErrNoGeneration) || errors.Is(err, ErrNoSnapshots) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("replica %q: %w", r.Name(), err)
		}
		if latest == nil || further(plan, newest) {
			latest, newest = r, plan
		}
	}
	if latest == nil {
		return nil, ErrNoGeneration
	}
	return latest, nil
}

// further reports whether a leads to a later state than b: by position where
// both are of one generation, else by the time of their newest data.
func further(a, b *RestorePlan) bool {
	if a.Generation == b.Generation {
		return a.Pos.compare(b.Pos) > 0
	}
	return a.CreatedAt.After(b.CreatedAt)
}
