package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// measureSnapshot measures the time from Open to the first snapshot of
// j.Database on the replica.
func measureSnapshot(ctx context.Context, j *job) (metrics, error) {
	replica := filepath.Join(j.Dir, "replica")
	var s stream
	cost, err := j.measure(func() (err error) {
		if s, err = systems[j.System].open(j.Database, replica, true); err != nil {
			return err
		}
		return s.Sync(ctx)
	})
	if err != nil {
		return nil, err
	}
	if err := s.Close(ctx); err != nil {
		return nil, err
	}
	size, err := fileSize(j.Database)
	if err != nil {
		return nil, err
	}
	for _, meta := range []string{j.Database + "-litestream", filepath.Join(filepath.Dir(j.Database), "."+filepath.Base(j.Database)+"-litestream")} {
		if err := os.RemoveAll(meta); err != nil {
			return nil, err
		}
	}
	stored, err := treeSize(replica)
	if err != nil {
		return nil, err
	}
	if ratio := float64(size) / float64(stored); ratio > 10 {
		return nil, fmt.Errorf("the replica of %d bytes has %d: there is no snapshot", size, stored)
	}
	return metrics{"s": cost.wall.Seconds(), "cpu-s": cost.cpu.Seconds(), "bytes": float64(size)}, nil
}

// measureRestore measures the restore of j.Replica, and makes sure that the
// last of its j.N segments is there.
func measureRestore(ctx context.Context, j *job) (metrics, error) {
	target := filepath.Join(j.Dir, "restored")
	cost, err := j.measure(func() error { return systems[j.System].restore(ctx, j.Replica, target) })
	if err != nil {
		return nil, err
	}
	size, err := fileSize(target)
	if err != nil {
		return nil, err
	}
	if err := checkHistory(ctx, target, j.N); err != nil {
		return nil, err
	}
	return metrics{"s": cost.wall.Seconds(), "cpu-s": cost.cpu.Seconds(), "bytes": float64(size)}, nil
}

// treeSize returns the bytes of all files below a directory.
func treeSize(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, ent os.DirEntry, err error) error {
		if err != nil || ent.IsDir() {
			return err
		}
		info, err := ent.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}
