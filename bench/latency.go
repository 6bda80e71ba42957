package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// openReplicated opens a new database with an empty table t, and replicates it
// at default settings. Nothing is replicated for the system alone.
func openReplicated(ctx context.Context, j *job) (w *inserter, s stream, end func() error, err error) {
	path := filepath.Join(j.Dir, "db")
	host, err := openHost(path)
	if err != nil {
		return nil, nil, nil, err
	}
	if _, err := host.ExecContext(ctx, insertSchema); err != nil {
		return nil, nil, nil, err
	}
	if s, err = systems[j.System].open(path, filepath.Join(j.Dir, "replica"), false); err != nil {
		return nil, nil, nil, err
	}
	if err := s.Sync(ctx); err != nil {
		return nil, nil, nil, err
	}
	if w, err = newInserter(ctx, host); err != nil {
		return nil, nil, nil, err
	}
	return w, s, func() error {
		if err := host.Close(); err != nil {
			return err
		}
		return s.Close(ctx)
	}, nil
}

// syncInterval is both libraries' default time between two uploads.
const syncInterval = time.Second

// measureLoneCommit measures the time from a commit on an idle database until
// the replica has it. The limit is a write of 4 KiB after the 10 ms that this
// library waits for more commits.
func measureLoneCommit(ctx context.Context, j *job) (metrics, error) {
	var lat []time.Duration
	if j.System == limit {
		m, err := measureSyncAndWait(ctx, j)
		if err == nil {
			m["p50-ms"] += 10
		}
		return m, err
	}
	w, s, end, err := openReplicated(ctx, j)
	if err != nil {
		return nil, err
	}
	_, err = j.measure(func() error {
		for range j.N {
			// Idle, and at a random moment of a library's period.
			time.Sleep(syncInterval + syncInterval/10 + rand.N(syncInterval))
			before := s.Replicated()
			if err := w.insert(ctx); err != nil {
				return err
			}
			began := time.Now()
			for s.Replicated() == before {
				if time.Since(began) > time.Minute {
					return fmt.Errorf("a commit is not on the replica after a minute")
				}
				time.Sleep(100 * time.Microsecond)
			}
			lat = append(lat, time.Since(began))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return percentiles(lat), end()
}

// measureSyncAndWait measures how long it takes to bring one commit to the
// replica now. The limit is a file of 4 KiB: written, synced, renamed.
func measureSyncAndWait(ctx context.Context, j *job) (metrics, error) {
	var lat []time.Duration
	if j.System == limit {
		for i := range j.N {
			began := time.Now()
			if err := writeFile(filepath.Join(j.Dir, fmt.Sprint(i))); err != nil {
				return nil, err
			}
			lat = append(lat, time.Since(began))
		}
		return percentiles(lat), nil
	}
	w, s, end, err := openReplicated(ctx, j)
	if err != nil {
		return nil, err
	}
	_, err = j.measure(func() error {
		for range j.N {
			if err := w.insert(ctx); err != nil {
				return err
			}
			began := time.Now()
			if err := s.Sync(ctx); err != nil {
				return err
			}
			lat = append(lat, time.Since(began))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return percentiles(lat), end()
}

// writeFile makes a file of 4 KiB durable under its name.
func writeFile(name string) error {
	f, err := os.Create(name + ".tmp")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

func percentiles(lat []time.Duration) metrics {
	slices.Sort(lat)
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
	return metrics{"p50-ms": ms(lat[len(lat)/2]), "p99-ms": ms(lat[len(lat)*99/100])}
}
